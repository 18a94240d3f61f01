"""Responses of one prompt in the order of their implicit reward, beside what is simpler than it."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tokenq.credit.answers import read_answer
from tokenq.credit.columns import named_responses
from tokenq.credit.finished import records_by_row
from tokenq.credit.summary import Mean
from tokenq.data.formats import TEMPLATE_COLUMNS, Messages
from tokenq.data.loading import Rows, source_columns
from tokenq.data.turns import OTHERS
from tokenq.errors import UserError
from tokenq.models.logps import TOKEN_BUDGET, token_logps
from tokenq.models.pair import Pair, reference_of
from tokenq.models.reference import scoring
from tokenq.storage import atomic_file


@dataclass(frozen=True)
class ResponseSums:
    """Sums over the `tokens` tokens of one response that the model wrote, end tokens included.

    reward:         implicit reward, beta times nats
    logp, ref_logp: log-probabilities under policy and reference, nats
    """

    reward: float
    logp: float
    ref_logp: float
    tokens: int

    @classmethod
    def of_record(cls, side: Mapping[str, Any]) -> "ResponseSums":
        """Of `record["responses"][name]`, as `tokenq credit` writes it."""
        turns = side.get("turn_numbers") or [0] * len(side["token_ids"])
        logp, ref_logp = (
            sum(value for value, turn in zip(side[name], turns, strict=True) if turn != OTHERS)
            for name in ("logps", "ref_logps")
        )
        return cls(side["reward"], logp, ref_logp, sum(turn != OTHERS for turn in turns))

    @classmethod
    def of_logps(
        cls, logps: Tensor, ref_logps: Tensor, beta: float, turns: Sequence[int] | None = None
    ) -> "ResponseSums":
        """Of the log-probabilities [T] of its tokens, nats; `turns` as in `Credit.turn_numbers`."""
        if turns is not None:
            own = torch.tensor(turns) != OTHERS
            logps, ref_logps = logps[own.to(logps.device)], ref_logps[own.to(ref_logps.device)]
        # The same float32 products as in `Credit`, so that both give the same reward.
        reward = float((beta * (logps - ref_logps)).sum())
        logp, ref_logp = (float(each.double().sum()) for each in (logps, ref_logps))
        return cls(reward, logp, ref_logp, len(logps))


SIGNALS: dict[str, Callable[[ResponseSums], float]] = {
    "implicit_reward": lambda sums: sums.reward,
    "implicit_reward_per_token": lambda sums: sums.reward / sums.tokens,
    "policy_logp": lambda sums: sums.logp,
    "policy_logp_per_token": lambda sums: sums.logp / sums.tokens,
    "reference_logp": lambda sums: sums.ref_logp,
    "reference_logp_per_token": lambda sums: sums.ref_logp / sums.tokens,
    "shorter": lambda sums: -float(sums.tokens),
}
"""What responses may be ranked by, the highest first.

Only the summed implicit reward is what preference training fitted: responses to one prompt differ
in it by their difference in reward (2404.12358, eq. 8). The others are controls: the length, what
the model before training would have said, and policy likelihood, which is reward and reference
together.
"""


@dataclass(frozen=True)
class RankedResponse:
    """A response and its place among those of its prompt.

    place:   where it stood among the responses as they were given, from 0
    score:   the signal that it was ranked by
    signals: all of :data:`SIGNALS`
    """

    place: int
    response: str | Messages
    score: float
    tokens: int
    signals: dict[str, float]


def rank(
    pair: Pair,
    prompt: str | Messages,
    responses: Sequence[str | Messages],
    *,
    beta: float = 0.1,
    by: str = "implicit_reward",
    token_budget: int = TOKEN_BUDGET,
) -> list[RankedResponse]:
    """Score the responses of one prompt, which is encoded once, and return them best first.

    beta:         the KL penalty that the policy was trained with; changes no order
    by:           a name in :data:`SIGNALS`
    token_budget: input tokens of one forward

    Of responses of several messages only what the model wrote is counted, as in `tokenq.credit`.

    Raises UserError for a pair without a reference, an unknown signal, no responses, or one that
    cannot be tokenised.
    """
    check_signal(by)
    if not responses:
        raise UserError("there are no responses to rank; accepted: one or more")
    reference = reference_of(pair)
    answers = [read_answer(pair.tokenizer, prompt, each) for each in responses]
    prompts = [each.encoded.prompt_ids for each in answers]
    ids = [each.encoded.response_ids for each in answers]
    sides = []
    for side in (pair.policy, reference):
        with scoring(side) as model:
            sides.append(token_logps(model, prompts, ids, token_budget=token_budget))
    sums = [
        ResponseSums.of_logps(ours, theirs, beta, answer.turns)
        for ours, theirs, answer in zip(*sides, answers, strict=True)
    ]
    return ranked_responses(responses, sums, by)


def ranked_responses(
    responses: Sequence[str | Messages], sums: Sequence[ResponseSums], by: str
) -> list[RankedResponse]:
    """Order scored responses, best first; equal ones stay in the order given."""
    found = []
    for place, (response, each) in enumerate(zip(responses, sums, strict=True)):
        signals = {name: signal(each) for name, signal in SIGNALS.items()}
        found.append(RankedResponse(place, response, signals[by], each.tokens, signals))
    return sorted(found, key=lambda each: -each.score)


def check_signal(name: str) -> None:
    """Raise UserError for a name that is not in :data:`SIGNALS`."""
    if name not in SIGNALS:
        raise UserError(f"responses are ranked by {name!r}; accepted: {', '.join(SIGNALS)}")


@dataclass
class Agreement:
    """How often a signal agrees with an order that came with the data.

    right: of the pairs of responses to one prompt that the data orders; ties of the signal are half
    top:   how often the signal's first response is one that the data ranks first; of responses that
           share the first place by share, since their order is that of the data
    """

    right: Mean = field(default_factory=Mean)
    top: Mean = field(default_factory=Mean)


@dataclass
class RankingSummary:
    """What the rankings of many prompts say together.

    truncated: responses that were scored without their end
    skipped:   rows left out, by reason
    agreement: by signal; counts nothing of prompts whose responses have no order
    tau:       mean over prompts of Kendall's tau-b between the signal ranked by and the others
    margins:   best score less second best, in the signal's unit
    """

    by: str
    prompts: int = 0
    responses: int = 0
    truncated: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    margins: Mean = field(default_factory=Mean)
    agreement: dict[str, Agreement] = field(
        default_factory=lambda: {name: Agreement() for name in SIGNALS}
    )
    tau: dict[str, Mean] = field(default_factory=lambda: {name: Mean() for name in SIGNALS})

    def add(self, ranking: Sequence[RankedResponse], ranks: Sequence[int]) -> None:
        """Count one prompt; `ranks`: the order that its responses came with, 0 the best."""
        self.prompts += 1
        self.responses += len(ranking)
        if len(ranking) > 1:
            self.margins.add(ranking[0].score - ranking[1].score)
        given = np.array([ranks[each.place] for each in ranking])
        columns = {name: np.array([each.signals[name] for each in ranking]) for name in SIGNALS}
        for name, values in columns.items():
            if name != self.by and len(set(values)) > 1 and len(set(columns[self.by])) > 1:
                self.tau[name].add(float(stats.kendalltau(columns[self.by], values).statistic))
        better, worse = np.nonzero(given[:, None] < given[None, :])
        if not len(better):
            return
        for name, values in columns.items():
            wins = np.heaviside(values[better] - values[worse], 0.5)
            for win in wins:
                self.agreement[name].right.add(float(win))
            self.agreement[name].top.add(float((given[values == values.max()] == 0).mean()))

    def skip(self, reason: str) -> None:
        """Count a row that was left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `agreement` is None where no prompt's responses have an order."""
        ordered = any(each.right.count for each in self.agreement.values())
        return {
            "by": self.by,
            "prompts": self.prompts,
            "responses": self.responses,
            "truncated": self.truncated,
            "skipped": self.skipped,
            "mean_margin": self.margins.value,
            "kendall_tau": {name: mean.value for name, mean in self.tau.items() if name != self.by},
            "agreement": {
                name: {
                    "pairs": each.right.count,
                    "accuracy": each.right.value,
                    "prompts": each.top.count,
                    "top_1": each.top.value,
                }
                for name, each in self.agreement.items()
            }
            if ordered
            else None,
        }


def rank_dataset(
    rows: Rows,
    records: Path,
    out: str | Path,
    *,
    by: str = "implicit_reward",
    keep: int = 1,
    min_margin: float = 0.0,
    on_progress: Callable[[int], None] = lambda count: None,
) -> RankingSummary:
    """Rank the responses of every scored row and write three files of rows to `out`.

    * `ranked.jsonl`: `prompt`, `completions` and `scores`, best first (ranked rows to train on),
      `places` (where each stood in the row as it was read), `margin` (best less second), `tokens`,
      and all `signals`
    * `best.jsonl`: `prompt` and `completion` of the `keep` best, each a row
    * `pairs.jsonl`: `prompt`, `chosen` (the best), `rejected` (the worst) and their scores, where
      these differ by more than `min_margin`

    All have `row`, the number of the row in the source, and what the chat template is given.

    rows:        of kind "ranked" or "preference"
    records:     `credit.jsonl` over these rows
    on_progress: called with the number of rows done since the last call

    Raises UserError for an unknown signal.
    """
    check_signal(by)
    summary = RankingSummary(by)
    with ExitStack() as stack:
        files = {}
        for name in ("ranked", "best", "pairs"):
            path = stack.enter_context(atomic_file(Path(out) / f"{name}.jsonl"))
            files[name] = stack.enter_context(path.open("w", encoding="utf-8"))
        for row, record in records_by_row(records, rows):
            on_progress(1)
            if "skipped" in record:
                summary.skip(record["skipped"])
                continue
            sums = [ResponseSums.of_record(side) for side in record["responses"].values()]
            ranking = ranked_responses([*named_responses(rows.kind, row).values()], sums, by)
            summary.add(ranking, row.get("ranks", range(len(ranking))))
            summary.truncated += sum(
                side["tokens_cut"] > 0 for side in record["responses"].values()
            )
            kept = ("row", "prompt", *TEMPLATE_COLUMNS)
            prompt = source_columns({name: row[name] for name in kept if name in row})
            for name, columns in (
                ("ranked", [ranked_columns(ranking)]),
                ("best", [{"completion": each.response} for each in ranking[:keep]]),
                ("pairs", pair_columns(ranking, min_margin)),
            ):
                lines = [json.dumps({**prompt, **each}, ensure_ascii=False) for each in columns]
                files[name].writelines(line + "\n" for line in lines)
    return summary


def ranked_columns(ranking: Sequence[RankedResponse]) -> dict[str, Any]:
    """The columns of a ranked row, and what its scores are made of."""
    return {
        "completions": [each.response for each in ranking],
        "scores": [each.score for each in ranking],
        "places": [each.place for each in ranking],
        "margin": ranking[0].score - ranking[1].score,
        "tokens": [each.tokens for each in ranking],
        "signals": {name: [each.signals[name] for each in ranking] for name in SIGNALS},
    }


def pair_columns(ranking: Sequence[RankedResponse], least: float) -> list[dict[str, Any]]:
    """The preference pair of best and worst; none if their scores differ by `least` or less."""
    best, worst = ranking[0], ranking[-1]
    if not best.score - worst.score > least:
        return []
    scores = {"score_chosen": best.score, "score_rejected": worst.score}
    return [{"chosen": best.response, "rejected": worst.response, **scores}]
