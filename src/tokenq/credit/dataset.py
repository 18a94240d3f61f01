"""Credit of a whole data set: scored in bounded memory, resumable, one JSON line a row.

Several processes, each with models of its own, score one data set together (`processes`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenq.credit.alignment import aligned_segments
from tokenq.credit.answers import Answer, read_answer
from tokenq.credit.api import assemble
from tokenq.credit.columns import named_responses, write_columns
from tokenq.credit.estimators import estimator
from tokenq.credit.journal import Journal, read_records
from tokenq.credit.processes import ALONE, Processes, Share
from tokenq.credit.result import Credit
from tokenq.credit.summary import Summary
from tokenq.credit.vocabulary import Alternative, StateFacts, survey
from tokenq.data.encoding import EncodedResponse
from tokenq.data.formats import Kind, Messages
from tokenq.data.loading import Rows
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.logps import TOKEN_BUDGET, token_logps
from tokenq.models.packing import Ids
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.reference import scoring
from tokenq.models.reference_cache import ReferenceCache
from tokenq.storage import cache_dir

FACTS = ("entropies", "ref_entropies", "divergences")
"""What `CreditOptions.facts` adds to a response's record: [T] each, nats, beta not included."""

DECIMALS = 6

_WINDOW_BUDGETS = 4
"""Token budgets read ahead: rows are packed together with what lies in the same window."""


@dataclass(frozen=True)
class CreditOptions:
    """How a data set is read.

    beta:            the KL penalty that the policy was trained with
    max_length:      most tokens of prompt and response together; longer responses lose their end.
                     None: what the models can read
    alternatives:    best alternatives kept for each token. With 0, and no facts, the reference's
                     log-probs come from the shared cache: scoring with a reference that has been
                     read before then takes half the time
    min_probability: alternatives to which the policy gives less are left out
    facts:           keep each position's entropies under both models and the divergence between
                     them
    estimators:      names of token credits that are kept beside the rewards (`ESTIMATORS`)
    token_budget:    input tokens of one forward
    skip_bad_rows:   set aside rows that cannot be tokenised, instead of stopping
    """

    beta: float = 0.1
    max_length: int | None = None
    alternatives: int = 3
    min_probability: float = 0.01
    facts: bool = False
    estimators: tuple[str, ...] = ()
    token_budget: int = TOKEN_BUDGET
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        accepted = {
            "beta": (self.beta > 0, "a number above 0"),
            "max_length": (self.max_length is None or self.max_length > 1, "2 or more tokens"),
            "alternatives": (self.alternatives >= 0, "0 or more tokens"),
            "min_probability": (0 <= self.min_probability < 1, "from 0 up to below 1"),
            "token_budget": (self.token_budget > 0, "1 or more tokens"),
        }
        for name, (fine, what) in accepted.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: {what}")
        for name in self.estimators:
            estimator(name)

    @property
    def needs_vocabulary(self) -> bool:
        """Whether anything asked for takes a sweep over the vocabulary."""
        several = any(estimator(name).needs_facts for name in self.estimators)
        return bool(self.alternatives) or self.facts or several


@dataclass(frozen=True)
class CreditRun:
    """A scored data set: `path` of its JSON lines, what they say together, the settings."""

    path: Path
    summary: Summary
    settings: dict[str, Any]

    def records(self) -> Iterator[dict[str, Any]]:
        """The scored rows, one at a time; rows that were left out are not among them."""
        return (record for record in read_records(self.path) if "responses" in record)

    def columns(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, estimator: str = "plain"
    ) -> datasets.Dataset:
        """The rows with their token credit in columns that SePO and TGDPO read (`write_columns`).

        They are written to `columns.parquet` beside the records.
        """
        path = self.path.with_name("columns.parquet")
        write_columns(rows, tokenizer, self.records(), path, estimator=estimator)
        dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache_dir("columns")))
        assert isinstance(dataset, datasets.Dataset)
        return dataset


@dataclass(frozen=True)
class _Job:
    """One row on its way to the models."""

    row: int
    prompt: str | Messages
    answers: dict[str, Answer]
    cut: dict[str, int]
    extra: dict[str, Any]

    @property
    def encoded(self) -> list[EncodedResponse]:
        return [answer.encoded for answer in self.answers.values()]

    @property
    def size(self) -> int:
        return sum(len(each.prompt_ids) + len(each.response_ids) for each in self.encoded)


def credit_dataset(
    pair: Pair,
    rows: Rows,
    out: str | Path,
    options: CreditOptions | None = None,
    *,
    processes: Processes = ALONE,
    on_progress: Callable[[int], None] = lambda count: None,
) -> CreditRun:
    """Score every row and write `out/credit.jsonl`; rows found finished there are not scored again.

    A line holds `row` (its number in the source), `prompt`, `responses` (by name: `chosen` and
    `rejected`; `completion`; or `1`, `2`... from the best down; each as in `Credit.to_dict`) and,
    where there is an order, `margin`: the smallest difference in summed reward between a better and
    a worse response. A pair has `segments`: where the two differ, and what each place adds to the
    margin (:func:`aligned_segments`). A row that cannot be scored has `skipped`, the reason.

    processes:   from :func:`join_processes`; all of them make this call, with the same rows and a
                 folder that all can write. Each scores a share; a run may be continued with another
                 number of them
    on_progress: called with the number of rows passed since the last call: scored, found finished,
                 or left to another process

    Memory does not grow with the number of rows, the data set's own apart (`load_rows` can stream).

    Raises UserError for a pair without a reference, records of another run in `out`, another
    process at work there, or (without `skip_bad_rows`) a row that cannot be tokenised.
    """
    options = options or CreditOptions()
    reference = reference_of(pair)
    processes.check_whole(pair.policy)
    cache = ReferenceCache.open(reference)
    settings = run_settings(pair, rows, options, cache.weights)
    path = Path(out) / "credit.jsonl"
    with Journal(path, settings, processes) as journal:
        if not journal.finished:
            share = Share(rows.dataset, journal.done(), processes)
            passed = 0
            for window in _windows(_jobs(pair, rows, share, options), options):
                jobs = [job for job in window if isinstance(job, _Job)]
                scored = iter(_score(pair, jobs, options, cache))
                journal.append([next(scored) if isinstance(job, _Job) else job for job in window])
                on_progress(share.passed - passed)
                passed = share.passed
            on_progress(share.passed - passed)
        journal.finish()
    summary = Summary()
    for record in read_records(path):
        summary.add(record)
    names = {"policy": pair.policy_name, "reference": pair.reference_name, "data": rows.source}
    return CreditRun(path, summary, {**names, **settings})


def run_settings(
    pair: Pair, rows: Rows, options: CreditOptions, reference_hash: str
) -> dict[str, Any]:
    """What decides the numbers of a run, to be compared when it is continued."""
    return {
        "policy_hash": weight_hash(pair.policy),
        "reference_hash": reference_hash,
        "kind": rows.kind,
        "data_fingerprint": rows.fingerprint,
        "beta": options.beta,
        "max_length": options.max_length,
        "alternatives": options.alternatives,
        "min_probability": options.min_probability,
        "facts": options.facts,
        "estimators": list(options.estimators),
    }


def _jobs(
    pair: Pair, rows: Rows, share: Share, options: CreditOptions
) -> Iterator[_Job | dict[str, Any]]:
    """Rows of the share, tokenised; a record in place of a row that cannot be."""
    limits = [each for each in (options.max_length, context_length(pair)) if each]
    longest = min(limits, default=None)
    for row in share:
        try:
            yield _job(pair, rows.kind, row, longest)
        except _TooLong as error:
            yield {"row": row["row"], "skipped": str(error)}
        except UserError as error:
            if not options.skip_bad_rows:
                raise UserError(f"{rows.source}, row {row['row']}: {error}") from error
            yield {"row": row["row"], "skipped": str(error)}


class _TooLong(Exception):
    """A prompt that leaves no room for a response."""


def _job(pair: Pair, kind: Kind, row: dict[str, Any], longest: int | None) -> _Job:
    answers, cut = {}, {}
    for name, response in named_responses(kind, row).items():
        answer = read_answer(
            pair.tokenizer,
            row["prompt"],
            response,
            tools=row.get("tools"),
            chat_template_kwargs=row.get("chat_template_kwargs"),
        )
        whole = answer.encoded
        room = len(whole.response_ids)
        if longest is not None:
            room = min(room, longest - len(whole.prompt_ids))
        if room < 1:
            raise _TooLong(f"the prompt leaves no room for a response in {longest} tokens")
        cut[name] = len(whole.response_ids) - room
        answers[name] = _shortened(answer, room)
    extra: dict[str, Any] = {each: row[each] for each in ("label", "ranks") if each in row}
    return _Job(row["row"], row["prompt"], answers, cut, extra)


def _shortened(answer: Answer, room: int) -> Answer:
    """The answer's first `room` tokens, with all of its text."""
    encoded = replace(
        answer.encoded,
        response_ids=answer.encoded.response_ids[:room],
        offsets=answer.encoded.offsets[:room],
    )
    turns = None if answer.turns is None else answer.turns[:room]
    return replace(answer, encoded=encoded, turns=turns)


def _windows(
    jobs: Iterable[_Job | dict[str, Any]], options: CreditOptions
) -> Iterator[list[_Job | dict[str, Any]]]:
    """Consecutive rows of about `_WINDOW_BUDGETS` token budgets."""
    iterator = iter(jobs)
    while window := list(islice(iterator, 1)):
        size = _size(window[0])
        while size < _WINDOW_BUDGETS * options.token_budget and (more := list(islice(iterator, 1))):
            window += more
            size += _size(more[0])
        yield window


def _size(job: _Job | dict[str, Any]) -> int:
    return job.size if isinstance(job, _Job) else 1


@dataclass(frozen=True, eq=False)
class _Scored:
    """One response's log-probs [T] under both models, and what else was asked for."""

    logps: Tensor
    ref_logps: Tensor
    facts: StateFacts | None = None
    alternatives: list[list[Alternative]] | None = None


def _score(
    pair: Pair, jobs: list[_Job], options: CreditOptions, cache: ReferenceCache
) -> list[dict[str, Any]]:
    """Records of tokenised rows, all responses of the window in common forwards."""
    encoded = [each for job in jobs for each in job.encoded]
    if not encoded:
        return []
    prompts = [each.prompt_ids for each in encoded]
    responses = [each.response_ids for each in encoded]
    if options.needs_vocabulary:
        scored = _surveyed(pair, prompts, responses, options)
    else:
        scored = _looked_up(pair, prompts, responses, options, cache)
    each_response = iter(scored)
    return [_record(pair, job, each_response, options) for job in jobs]


def _surveyed(
    pair: Pair, prompts: Sequence[Ids], responses: Sequence[Ids], options: CreditOptions
) -> list[_Scored]:
    """Both models run, over the whole vocabulary."""
    surveys = survey(
        pair,
        prompts,
        responses,
        k=options.alternatives,
        beta=options.beta,
        min_probability=options.min_probability,
        token_budget=options.token_budget,
    )
    return [
        _Scored(
            each.logps, each.ref_logps, each, each.alternatives if options.alternatives else None
        )
        for each in surveys
    ]


def _looked_up(
    pair: Pair,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    options: CreditOptions,
    cache: ReferenceCache,
) -> list[_Scored]:
    """The policy runs; the reference only where training and earlier readings have not been."""
    with scoring(pair.policy) as policy:
        logps = token_logps(policy, prompts, responses, token_budget=options.token_budget)
    cache.fill(prompts, responses, token_budget=options.token_budget, progress=False)
    ref_logps = cache.lookup(prompts, responses)
    return [_Scored(*both) for both in zip(logps, ref_logps, strict=True)]


def _record(
    pair: Pair, job: _Job, scored: Iterator[_Scored], options: CreditOptions
) -> dict[str, Any]:
    record: dict[str, Any] = {"row": job.row, "prompt": job.prompt, **job.extra, "responses": {}}
    credits: list[Credit] = []
    for name, answer in job.answers.items():
        scores = next(scored)
        both = scores.logps, scores.ref_logps
        credit = assemble(pair, job.prompt, answer, both, options.beta, facts=scores.facts)
        credits.append(credit)
        record["responses"][name] = _side(credit, scores, options) | {"tokens_cut": job.cut[name]}
    ranks = job.extra.get("ranks", range(len(credits)))
    differences = [
        better.reward - worse.reward
        for place, better in zip(ranks, credits, strict=True)
        for other, worse in zip(ranks, credits, strict=True)
        if place < other
    ]
    if differences:
        record["margin"] = round(min(differences), DECIMALS)
    if {"chosen", "rejected"} <= set(job.answers):
        record["segments"] = [_rounded(each.to_dict()) for each in aligned_segments(record)]
    return record


def _side(credit: Credit, scored: _Scored, options: CreditOptions) -> dict[str, Any]:
    """The response's part of a record."""
    side = credit.response_record(None, options.estimators)
    if not options.facts:
        for name in FACTS:
            side.pop(name, None)
    if scored.alternatives is not None:
        side["alternatives"] = [
            [_rounded(vars(each)) for each in best] for best in scored.alternatives
        ]
    return side


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DECIMALS) if isinstance(value, float) else value
        for name, value in record.items()
    }
