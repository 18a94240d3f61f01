"""Best of n: samples over one prefill, ranked by a judge or by the pair's own implicit reward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Unpack

from tokenq.errors import UserError
from tokenq.search.decoding import Decoding, DecodingOptions, is_number, whole
from tokenq.search.prefixes import told_numbers
from tokenq.search.results import SearchResult, SearchResults
from tokenq.search.running import run
from tokenq.search.sampling import SampleOptions, samples
from tokenq.search.target import Given, Prompt, Target
from tokenq.search.warping import Warping

Judge = Callable[[Sequence[Any], Sequence[Any]], Sequence[float]]
"""Takes prompts as they were given, one a response, and the responses' texts (token ids where there
is no tokenizer); returns a score each, the higher the better."""

Named = Literal["implicit_reward", "likelihood"]
NAMES = ("implicit_reward", "likelihood")


@dataclass(frozen=True)
class ResultJudge:
    """A judge that is shown whole results, log-probabilities and all.

    judge: takes results, returns a score each, the higher the better
    """

    judge: Callable[[Sequence[SearchResult]], Sequence[float]]


@dataclass(frozen=True)
class BestOfNOptions:
    """What decides best of n; see :func:`best_of_n`."""

    n: int = 16
    judge: Named | Judge | ResultJudge = "implicit_reward"
    length_penalty: float = 0.0
    num_return_sequences: int | None = None
    warping: Warping = field(default_factory=Warping)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("n", self.n, 1)
        whole("seed", self.seed, 0)
        wanted = self.num_return_sequences
        if wanted is not None and wanted not in range(1, self.n + 1):
            raise UserError(
                f"num_return_sequences is {wanted}; accepted: 1 to {self.n}, the number of samples"
            )
        if self.judge not in NAMES and not (
            callable(self.judge) or isinstance(self.judge, ResultJudge)
        ):
            raise UserError(
                f"judge is {self.judge!r}; accepted: {', '.join(NAMES)}, or a function of prompts "
                "and responses"
            )
        if not is_number(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty!r}; accepted: a finite number")
        if self.length_penalty and self.judge not in NAMES:
            raise UserError(
                f"length_penalty is {self.length_penalty} with a judge that gives its own scores; "
                f"accepted: 0, or one of {', '.join(NAMES)} as judge"
            )


def best_of_n(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    n: int = 16,
    max_new_tokens: int = 64,
    judge: Named | Judge | ResultJudge = "implicit_reward",
    *,
    length_penalty: float = 0.0,
    num_return_sequences: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    **decoding: Unpack[DecodingOptions],
) -> SearchResults:
    """Draw `n` samples for each prompt and return them ranked, best first.

    pair_or_model: a pair; a bare model, for prompts that are lists of token ids; or
                   {"policy": model, "reference": model}
    prompts:       texts, lists of messages, or lists of token ids
    n:             how many samples are drawn
    judge:         what ranks them. "implicit_reward": log pi/pi_ref of the response, the reward
                   that preference training taught the pair, over beta (needs a reference);
                   "likelihood": log pi. Or a function of prompts and responses, such as a reward
                   model, or a :class:`ResultJudge`
    length_penalty: of "implicit_reward" and "likelihood": a response of n tokens is ranked by its
                   score / n ** length_penalty. 0: by the sum; 1: by the mean of a token
    num_return_sequences: how many of the samples are returned; all if None
    temperature, top_k, top_p, min_p: the law of each token, see :class:`Warping`; the policy's own
                   unless given
    seed:          as in :func:`sample`, whose samples these are
    decoding:      see :class:`Decoding`

    Equal responses to equal prompts are judged once; equal scores keep the order of drawing. A
    result's score is the judge's; details["drawn"] is the sample's place among those drawn, from
    0. Raises UserError for options out of range, prompts that the models cannot read, and scores
    that are no numbers.
    """
    options = BestOfNOptions(
        n,
        judge,
        length_penalty,
        num_return_sequences,
        Warping(temperature, top_k, top_p, min_p),
        seed,
    )
    settings = Decoding(max_new_tokens=max_new_tokens, **decoding)
    target = Target.of(pair_or_model)
    if judge == "implicit_reward":
        check_reference(target)
    drawing = SampleOptions(n, options.warping, seed)
    drawn = run(target, prompts, settings, lambda batch: samples(batch, drawing))
    scores = _judged(list(prompts), drawn, options)
    ranked = [
        _ranked(row, theirs, num_return_sequences or n)
        for row, theirs in zip(drawn, scores, strict=True)
    ]
    for trace, row in zip(drawn.traces, ranked, strict=True):
        if trace is not None:
            trace.rank([one.token_ids for one in row])
    return SearchResults(ranked, drawn.traces, drawn.statistics)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n nats: at least KL(best of n || what was sampled from).

    Beirami et al. (arXiv 2401.01879). With samples of the policy itself, KL(best of n ||
    reference) is KL(best of n || policy) plus the mean log-ratio of the best, which
    :meth:`SearchResults.mean_log_ratio` measures.
    """
    return math.log(n) - (n - 1) / n


def check_reference(target: Target) -> None:
    """Raise UserError where no log-ratio can be had."""
    if target.reference is None and "reference" not in target.models:
        raise UserError(
            "judge is 'implicit_reward', which needs a reference; accepted: a pair with one, "
            "{'policy': ..., 'reference': ...}, or another judge"
        )


def _judged(
    prompts: Sequence[Prompt], drawn: SearchResults, options: BestOfNOptions
) -> list[list[float]]:
    """The score of every sample; what is equal is judged once."""
    keys = [[(tuple(one.prompt_ids), tuple(one.token_ids)) for one in row] for row in drawn]
    distinct: dict[Any, tuple[Prompt, SearchResult]] = {}
    for prompt, row, theirs in zip(prompts, drawn, keys, strict=True):
        for one, key in zip(row, theirs, strict=True):
            distinct.setdefault(key, (prompt, one))
    given = list(distinct.values())
    answered = _scores(given, options) if given else []
    scores = told_numbers(answered, len(given), "judge", "responses")
    for score, (_, one) in zip(scores, given, strict=True):
        if math.isnan(score):
            raise UserError(
                f"judge returned nan for {one.text or one.token_ids!r}; accepted: numbers"
            )
    of = dict(zip(distinct, scores, strict=True))
    return [[of[key] for key in theirs] for theirs in keys]


def _scores(
    given: Sequence[tuple[Prompt, SearchResult]], options: BestOfNOptions
) -> Sequence[float]:
    results = [one for _, one in given]
    judge = options.judge
    if isinstance(judge, ResultJudge):
        return judge.judge(results)
    if judge == "implicit_reward" or judge == "likelihood":
        totals = [one.log_ratio if judge == "implicit_reward" else one.score for one in results]
        return [
            total / len(one.token_ids) ** options.length_penalty
            for total, one in zip(totals, results, strict=True)
            if total is not None
        ]
    responses = [one.token_ids if one.text is None else one.text for one in results]
    return judge([prompt for prompt, _ in given], responses)


def _ranked(row: Sequence[SearchResult], scores: Sequence[float], limit: int) -> list[SearchResult]:
    order = sorted(range(len(row)), key=lambda place: -scores[place])
    return [
        replace(
            row[place],
            score=scores[place],
            details={**row[place].details, "drawn": float(place)},
        )
        for place in order[:limit]
    ]
