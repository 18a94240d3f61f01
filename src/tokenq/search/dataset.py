"""Search over a data set of prompts: resumable, one JSON line a prompt, traces beside them."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenq.data.encoding import encode_prompt
from tokenq.data.formats import TEMPLATE_COLUMNS
from tokenq.data.prompts import PromptRow, Prompts
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.pair import Pair
from tokenq.search.decoding import Progress
from tokenq.search.methods import Method
from tokenq.search.results import SearchResult, SearchResults
from tokenq.search.target import Prompt
from tokenq.search.trace import Trace
from tokenq.storage import write_text

RECORDS = "search.jsonl"
TRACES = "traces"
DECIMALS = 6
_OWN = {"row", "prompt", "responses", "skipped", "trace", "evaluations", "seconds", "given"}
_ANSWERS = {"response", "output", "completion", "completions"}
"""Columns under whose names a reader of responses would look for what was found."""


@dataclass(frozen=True)
class SearchPlan:
    """How a data set is searched.

    options: of the method, by keyword, as far as they are not its defaults
    opened:  arguments that are objects: judges, further models, functions
    named:   what these are called, for the record
    beta:    of the implicit rewards that are written
    trace:   keep the trees that were searched
    """

    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)
    opened: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)
    beta: float = 0.1
    trace: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}; accepted: a number above 0")

    @property
    def every_option(self) -> dict[str, Any]:
        """All options with their values, defaults too; not the objects."""
        known = {
            name: self.options.get(name, option.default)
            for name, option in self.method.options.items()
            if not option.required
        }
        return {**known, **self.named}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt on its way to the models: its row and token ids, or why it is left out."""

    source: PromptRow
    token_ids: list[int]
    skipped: str | None = None

    @property
    def given(self) -> Prompt:
        """What a search is given: text and messages, which judges read too, where that is all."""
        if TEMPLATE_COLUMNS.keys() & self.source.columns.keys():
            return self.token_ids
        return self.source.prompt


@dataclass(frozen=True)
class _Answered:
    """What was found for one prompt, and what that took."""

    responses: list[SearchResult]
    trace: Trace | None
    evaluations: float


@dataclass
class SearchSummary:
    """What the best responses to all prompts say together."""

    prompts: int = 0
    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluations: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    finish: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one line."""
        if "skipped" in record:
            self.skipped[record["skipped"]] += 1
            return
        best = record["responses"][0]
        self.prompts += 1
        self.seconds += record["seconds"]
        self.evaluations += record["evaluations"]
        self.responses += len(record["responses"])
        self.tokens += sum(len(each["token_ids"]) for each in record["responses"])
        self.finish[best["finish"]] += 1
        for name in ("score", "log_ratio", "kl"):
            if best.get(name) is not None:
                self._add(name, best[name])
        self._add("logp", sum(best["logps"]))
        self._add("length", len(best["token_ids"]))

    def mean(self, name: str) -> float | None:
        """Mean over the best responses, None where no response has it."""
        return self.sums[name] / self.counts[name] if self.counts[name] else None

    def to_dict(self) -> dict[str, Any]:
        """JSON types. `search/*` are means over the best response to each prompt: `score`, `logp`
        under what was searched, `log_ratio` to the reference and `kl` in nats a response, `length`
        in tokens, the shares of responses that ended by an end token, a stop string, or not; and
        `evaluations`, the prompts and tokens that the models read, for each prompt."""
        metrics = {
            f"search/{name}": _rounded(self.mean(name))
            for name in ("score", "logp", "log_ratio", "kl", "length")
            if self.mean(name) is not None
        }
        shares = {
            f"search/finish_{name}": _rounded(self.finish[name] / max(1, self.prompts))
            for name in ("eos", "stop", "length")
        }
        shares["search/evaluations"] = _rounded(self.evaluations / max(1, self.prompts), 3)
        rate = {"search/tokens_per_second": _rounded(self.tokens / (self.seconds or 1.0), 3)}
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "skipped": dict(self.skipped),
            **metrics,
            **shares,
            **rate,
        }

    def _add(self, name: str, value: float) -> None:
        self.sums[name] += value  # type: ignore[assignment]
        self.counts[name] += 1


@dataclass(frozen=True)
class SearchRun:
    """A searched data set: `path` of its JSON lines, what they say together, the settings."""

    path: Path
    summary: SearchSummary
    settings: dict[str, Any]

    def records(self) -> Iterator[dict[str, Any]]:
        """The prompts with their responses, one at a time, those left out not among them."""
        return (record for record in _read_records(self.path) if "responses" in record)

    def trace(self, row: int) -> dict[str, Any] | None:
        """The tree of one prompt (`Trace.to_dict`), if it was kept."""
        path = trace_path(self.path.parent, row)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    context: int | None,
    max_new_tokens: int,
    skip: bool = False,
) -> list[EncodedPrompt]:
    """Token ids of all prompts, through the chat template where they are messages.

    context: most tokens that the models read
    skip:    leave out prompts that cannot be read, instead of stopping

    Raises UserError, naming file and row, for a prompt that leaves no room for an answer, or that
    the template refuses.
    """
    encoded = []
    for row in prompts.rows:
        try:
            encoded.append(EncodedPrompt(row, _encoded(tokenizer, row, context, max_new_tokens)))
        except UserError as error:
            if not skip:
                raise UserError(f"{row.where}: {error}") from error
            encoded.append(EncodedPrompt(row, [], str(error)))
    return encoded


def search_dataset(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    out: str | Path,
    plan: SearchPlan,
    *,
    fingerprint: str,
    on_progress: Callable[[int], None] = lambda count: None,
    on_step: Callable[[Progress], None] | None = None,
) -> SearchRun:
    """Search every prompt and write `out/search.jsonl`; what is found finished there is kept.

    A line holds `row` (its number in the source), `prompt`, the source's other columns, and
    `responses`, best first: `text`, `tokens` with `offsets` (characters of the text), `token_ids`,
    `score`, `finish`, `logps`, and with a reference `rewards`, `log_ratio`, `kl`. Columns that
    could be taken for responses stand under `given`. A prompt that was left out has `skipped`.

    Prompts that stand in the source several times get different random numbers, and no result
    depends on where a run was interrupted.

    fingerprint: of the prompts' source
    on_progress: called with the number of rows done since the last call

    Raises UserError for records of another run in `out`, and another process at work there.
    """
    from tokenq.credit.journal import Journal

    out = Path(out)
    settings = run_settings(pair, plan, fingerprint)
    path = out / RECORDS
    width = int(plan.every_option["batch_size"])
    copies = _copies(prompts)
    with Journal(path, settings) as journal:
        if not journal.finished:
            done = set(journal.done())
            todo = [place for place, each in enumerate(prompts) if each.source.row not in done]
            on_progress(len(prompts) - len(todo))
            for start in range(0, len(todo), width):
                window = todo[start : start + width]
                started = time.perf_counter()
                found = _search(pair, prompts, window, copies, plan, on_step)
                seconds = (time.perf_counter() - started) / max(1, len(found))
                for place, each in found.items():
                    if each.trace is not None:
                        _write_trace(out, prompts[place].source.row, each.trace.to_dict())
                journal.append(
                    _record(pair, prompts[place], found.get(place), seconds, plan)
                    for place in window
                )
                on_progress(len(window))
        journal.finish()
    summary = SearchSummary()
    for record in _read_records(path):
        summary.add(record)
    names = {"policy": pair.policy_name, "reference": pair.reference_name}
    return SearchRun(path, summary, {**names, **settings})


def run_settings(pair: Pair, plan: SearchPlan, fingerprint: str) -> dict[str, Any]:
    """What decides the responses, to be compared when a run is continued."""
    options = {name: value for name, value in plan.every_option.items() if name != "batch_size"}
    return {
        "policy_hash": weight_hash(pair.policy),
        "reference_hash": None if pair.reference is None else weight_hash(pair.reference),
        "data_fingerprint": fingerprint,
        "method": plan.method.name,
        **options,
        "beta": plan.beta,
        "trace": plan.trace,
    }


def response_record(pair: Pair, result: SearchResult, beta: float) -> dict[str, Any]:
    """One response as it stands in a line of `search.jsonl`."""
    from tokenq.credit.found import token_offsets

    plain = result.to_dict(beta)
    text = plain.pop("text")
    _, offsets = token_offsets(pair.tokenizer, result.token_ids)
    # The text has lost a stop string at its end.
    within = [[min(start, len(text)), min(end, len(text))] for start, end in offsets]
    tokens = [str(pair.tokenizer.decode([token])) for token in result.token_ids]
    plain = {"text": text, "tokens": tokens, "offsets": within, **plain}
    return {name: _rounded(value) for name, value in plain.items()}


def trace_path(out: Path, row: int) -> Path:
    """Where the tree of a row lies."""
    return out / TRACES / f"{row}.json"


def _encoded(
    tokenizer: PreTrainedTokenizerBase, row: PromptRow, context: int | None, max_new_tokens: int
) -> list[int]:
    ids = encode_prompt(
        tokenizer,
        row.prompt,
        tools=row.columns.get("tools"),
        chat_template_kwargs=row.columns.get("chat_template_kwargs"),
    )
    if context is not None and len(ids) + max_new_tokens > context:
        raise UserError(
            f"its prompt has {len(ids)} tokens, which with {max_new_tokens} new ones is more than "
            f"the {context} that the models read; accepted: up to {context - max_new_tokens}, or "
            "fewer new tokens"
        )
    return ids


def _copies(prompts: Sequence[EncodedPrompt]) -> list[int]:
    """For each prompt how many equal ones stand before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    copies = []
    for each in prompts:
        key = tuple(each.token_ids)
        copies.append(seen[key])
        seen[key] += 1
    return copies


def _search(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    window: Sequence[int],
    copies: Sequence[int],
    plan: SearchPlan,
    on_step: Callable[[Progress], None] | None,
) -> dict[int, _Answered]:
    """Responses and tree of the prompts of a window that are not left out, by place.

    A search tells equal prompts apart only where it sees them together; here they come in several
    calls, and each further copy has a seed of its own instead.
    """
    found = {}
    there = [place for place in window if prompts[place].skipped is None]
    for copy in sorted({copies[place] for place in there}):
        places = [place for place in there if copies[place] == copy]
        options = {**plan.options, **plan.opened}
        if plan.method.is_random:
            options["seed"] = _seed(plan.every_option["seed"], copy)
        results: SearchResults = plan.method.function(
            pair,
            [prompts[place].given for place in places],
            **options,
            trace=plan.trace,
            on_step=on_step,
        )
        evaluations = results.statistics.get("expansions", 0.0) / len(places)
        for place, row, trace in zip(places, results, results.traces, strict=True):
            found[place] = _Answered(row, trace, evaluations)
    return found


def _seed(seed: int, copy: int) -> int:
    if copy == 0:
        return seed
    return int.from_bytes(sha256(f"{seed},{copy}".encode()).digest()[:4], "big")


def _record(
    pair: Pair,
    prompt: EncodedPrompt,
    found: "_Answered | None",
    seconds: float,
    plan: SearchPlan,
) -> dict[str, Any]:
    row = prompt.source
    record: dict[str, Any] = {"row": row.row, "prompt": row.prompt}
    if found is None or not found.responses:
        return {**record, "skipped": prompt.skipped or "every token was forbidden by the options"}
    clashing = _OWN | _ANSWERS
    carried = {name: value for name, value in row.columns.items() if name not in clashing}
    given = {name: value for name, value in row.columns.items() if name in clashing}
    record |= {**carried, **({"given": given} if given else {})}
    record["responses"] = [response_record(pair, each, plan.beta) for each in found.responses]
    if found.trace is not None:
        record["trace"] = f"{TRACES}/{row.row}.json"
    record["evaluations"] = round(found.evaluations, 3)
    return {**record, "seconds": round(seconds, 4)}


def _write_trace(out: Path, row: int, trace: dict[str, Any]) -> None:
    write_text(trace_path(out, row), json.dumps(trace, ensure_ascii=False) + "\n")


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    from tokenq.credit.journal import read_records

    return read_records(path)


def _rounded(value: Any, decimals: int = DECIMALS) -> Any:
    if isinstance(value, float):
        return round(value, decimals)
    if isinstance(value, list):
        return [_rounded(each, decimals) for each in value]
    if isinstance(value, dict):
        return {name: _rounded(each, decimals) for name, each in value.items()}
    return value
