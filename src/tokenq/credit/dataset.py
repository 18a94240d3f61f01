"""Credit of a whole data set: scored in bounded memory, resumable, one JSON line a row."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tokenq.credit.api import assemble
from tokenq.credit.journal import Journal, read_records
from tokenq.credit.result import Credit
from tokenq.credit.summary import Summary
from tokenq.credit.vocabulary import Alternative, Survey, survey
from tokenq.data.encoding import EncodedResponse, encode
from tokenq.data.formats import Kind, Messages
from tokenq.data.loading import Rows
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.logps import TOKEN_BUDGET, token_logps
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.reference import scoring
from tokenq.models.reference_cache import ReferenceCache

_WINDOW_BUDGETS = 4
"""Token budgets read ahead: rows are packed together with what lies in the same window."""


@dataclass(frozen=True)
class CreditOptions:
    """How a data set is read.

    beta:            the KL penalty that the policy was trained with
    max_length:      most tokens of prompt and response together; longer responses lose their end.
                     None: what the models can read
    alternatives:    best alternatives kept for each token. 0 keeps none and is faster: no position
                     needs the whole vocabulary then
    min_probability: alternatives to which the policy gives less are left out
    token_budget:    input tokens of one forward
    skip_bad_rows:   set aside rows that cannot be tokenised, instead of stopping
    """

    beta: float = 0.1
    max_length: int | None = None
    alternatives: int = 3
    min_probability: float = 0.01
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


@dataclass(frozen=True)
class CreditRun:
    """A scored data set: `path` of its JSON lines, what they say together, the settings."""

    path: Path
    summary: Summary
    settings: dict[str, Any]

    def records(self) -> Iterator[dict[str, Any]]:
        """The scored rows, one at a time; rows that were left out are not among them."""
        return (record for record in read_records(self.path) if "responses" in record)


@dataclass(frozen=True)
class _Job:
    """One row on its way to the models."""

    row: int
    prompt: str | Messages
    responses: dict[str, str | Messages]
    encoded: dict[str, EncodedResponse]
    cut: dict[str, int]
    extra: dict[str, Any]

    @property
    def size(self) -> int:
        return sum(len(each.prompt_ids) + len(each.response_ids) for each in self.encoded.values())


def credit_dataset(
    pair: Pair,
    rows: Rows,
    out: str | Path,
    options: CreditOptions | None = None,
    *,
    on_progress: Callable[[int], None] = lambda count: None,
) -> CreditRun:
    """Score every row and write `out/credit.jsonl`; rows found finished there are not scored again.

    A line holds `row` (its number in the source), `prompt`, `responses` (by name: `chosen` and
    `rejected`; `completion`; or `1`, `2`... from the best down; each as in `Credit.to_dict`) and,
    where there is an order, `margin`: the smallest difference in summed reward between a better and
    a worse response. A row that cannot be scored has `skipped`, the reason, instead.

    on_progress: called with the number of rows done since the last call

    Raises UserError for a pair without a reference, records of another run in `out`, or (without
    `skip_bad_rows`) a row that cannot be tokenised.
    """
    options = options or CreditOptions()
    cache = ReferenceCache.open(reference_of(pair))
    settings = run_settings(pair, rows, options, cache.weights)
    journal = Journal(Path(out) / "credit.jsonl", settings)
    for window in _windows(_jobs(pair, rows, options, journal.rows), options):
        scored = iter(
            _score(pair, [job for job in window if isinstance(job, _Job)], options, cache)
        )
        journal.append([next(scored) if isinstance(job, _Job) else job for job in window])
        on_progress(len(window))
    journal.finish()
    summary = Summary()
    for record in read_records(journal.path):
        summary.add(record)
    names = {"policy": pair.policy_name, "reference": pair.reference_name, "data": rows.source}
    return CreditRun(journal.path, summary, {**names, **settings})


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
    }


def named_responses(kind: Kind, row: dict[str, Any]) -> dict[str, str | Messages]:
    """The responses of a normalised row by name, from the best down."""
    if kind == "preference":
        return {"chosen": row["chosen"], "rejected": row["rejected"]}
    if kind == "ranked":
        return {str(place): each for place, each in enumerate(row["completions"], start=1)}
    return {"completion": row["completion"]}


def _jobs(
    pair: Pair, rows: Rows, options: CreditOptions, done: set[int]
) -> Iterator[_Job | dict[str, Any]]:
    """Rows still to be scored, tokenised; a record in place of a row that cannot be."""
    limits = [each for each in (options.max_length, context_length(pair)) if each]
    longest = min(limits, default=None)
    for row in rows.dataset:
        if row["row"] in done:
            continue
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
    responses = named_responses(kind, row)
    encoded, cut = {}, {}
    for name, response in responses.items():
        whole = encode(
            pair.tokenizer,
            row["prompt"],
            response,
            tools=row.get("tools"),
            chat_template_kwargs=row.get("chat_template_kwargs"),
        )
        room = len(whole.response_ids)
        if longest is not None:
            room = min(room, longest - len(whole.prompt_ids))
        if room < 1:
            raise _TooLong(f"the prompt leaves no room for a response in {longest} tokens")
        cut[name] = len(whole.response_ids) - room
        encoded[name] = replace(
            whole, response_ids=whole.response_ids[:room], offsets=whole.offsets[:room]
        )
    extra: dict[str, Any] = {each: row[each] for each in ("label", "ranks") if each in row}
    return _Job(row["row"], row["prompt"], responses, encoded, cut, extra)


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


def _score(
    pair: Pair, jobs: list[_Job], options: CreditOptions, cache: ReferenceCache
) -> list[dict[str, Any]]:
    """Records of tokenised rows, all responses of the window in common forwards.

    Alternatives need the reference's whole vocabulary; without them its log-probs come from the
    cache, which training and earlier readings may have filled.
    """
    encoded = [each for job in jobs for each in job.encoded.values()]
    if not encoded:
        return []
    prompts = [each.prompt_ids for each in encoded]
    responses = [each.response_ids for each in encoded]
    listed: list[list[list[Alternative]]] | list[None]
    if options.alternatives:
        surveys: list[Survey] = survey(
            pair,
            prompts,
            responses,
            k=options.alternatives,
            beta=options.beta,
            min_probability=options.min_probability,
            token_budget=options.token_budget,
        )
        scores = [(each.logps, each.ref_logps) for each in surveys]
        listed = [each.alternatives for each in surveys]
    else:
        with scoring(pair.policy) as policy:
            logps = token_logps(policy, prompts, responses, token_budget=options.token_budget)
        cache.fill(prompts, responses, token_budget=options.token_budget, progress=False)
        scores = list(zip(logps, cache.lookup(prompts, responses), strict=True))
        listed = [None] * len(encoded)
    each_response = iter(zip(encoded, scores, listed, strict=True))
    return [_record(pair, job, each_response, options.beta) for job in jobs]


def _record(
    pair: Pair, job: _Job, scored: Iterator[tuple[EncodedResponse, Any, Any]], beta: float
) -> dict[str, Any]:
    record: dict[str, Any] = {"row": job.row, "prompt": job.prompt, **job.extra, "responses": {}}
    credits: list[Credit] = []
    for name, response in job.responses.items():
        encoded, scores, alternatives = next(scored)
        credit = assemble(pair, job.prompt, response, encoded, scores, beta, None)
        credits.append(credit)
        side = credit.response_record(alternatives)
        record["responses"][name] = {**side, "tokens_cut": job.cut[name]}
    ranks = job.extra.get("ranks", range(len(credits)))
    differences = [
        better.reward - worse.reward
        for place, better in zip(ranks, credits, strict=True)
        for other, worse in zip(ranks, credits, strict=True)
        if place < other
    ]
    if differences:
        record["margin"] = round(min(differences), 6)
    return record
