"""Files of responses to prompts, and the comparisons that two of them make."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenq.data.formats import MalformedRow, checked_messages
from tokenq.data.sources import Record, TextFiles, Unreadable, open_source
from tokenq.errors import UserError
from tokenq.judges.comparisons import Comparison, Prompt, prompt_key, shown

_PROMPTS = ("prompt", "instruction")
_RESPONSES = ("response", "output", "completion", "responses", "completions")
_ACCEPTED = f"a field {' or '.join(_PROMPTS)}, and one of {', '.join(_RESPONSES)}"
_NAMED = 3


@dataclass(frozen=True)
class Responses:
    """What one model answered: for each prompt (by its key) all its responses, in their order.

    rows: the first row of each prompt, where further columns such as the right answer are found
    """

    source: str
    fingerprint: str
    prompts: dict[str, Prompt]
    texts: dict[str, list[str]]
    rows: dict[str, Mapping[str, Any]]

    def column(self, name: str) -> dict[str, str]:
        """A column's texts and numbers by prompt key, where there are any."""
        found = ((key, row.get(name)) for key, row in self.rows.items())
        return {
            key: str(value)
            for key, value in found
            if isinstance(value, str | int | float) and not isinstance(value, bool)
        }


def read_responses(
    source: str | Path,
    *,
    chat: bool = False,
    first_only: bool = False,
    split: str = "test",
    config: str | None = None,
) -> Responses:
    """Read a file (.jsonl, .json, .csv, .parquet), a folder or a hub set of responses.

    Rows hold `prompt` (text or messages) or `instruction`, and one of `response`, `output`,
    `completion` (text or messages), or `responses`, `completions`, a list of these or of objects
    with a `text`: what `tokenq search` writes (prompts that it skipped have none), and AlpacaEval's
    files. Rows of one prompt are put together.

    chat:       a text prompt is what a user says: judges see one message
    first_only: of several responses to a prompt, the first

    Raises UserError, naming file, line and field, for rows that are not so.
    """
    opened = open_source(source, split=split, config=config, revision=None, streaming=False)
    if isinstance(opened, TextFiles):
        records, fingerprint = opened.records(), opened.fingerprint()
    else:
        fingerprint = opened.fingerprint
        records = (
            Record(number, f"{opened.name}, row {number}", _without_nulls(row))
            for number, row in enumerate(opened.dataset)
        )
    found = Responses(str(source), fingerprint, {}, {}, {})
    for record in records:
        if _was_skipped(record):
            continue
        try:
            prompt, texts = _row(record, chat)
        except MalformedRow as error:
            raise UserError(f"{record.where}: {error}") from None
        key = prompt_key(prompt)
        found.prompts.setdefault(key, prompt)
        found.rows.setdefault(key, record.row)  # type: ignore[arg-type]
        known = found.texts.setdefault(key, [])
        known += texts[: max(0, 1 - len(known))] if first_only else texts
    if not found.texts:
        raise UserError(f"{source}: holds no rows")
    return found


def pair_up(ours: Responses, theirs: Responses, *, matched_only: bool = False) -> list[Comparison]:
    """Compare the responses to each prompt, in our order: each to its counterpart, or to the one.

    matched_only: leave out prompts that only one side has

    Raises UserError, naming prompts, where one side has no response to a prompt, or the sides have
    different numbers of them and neither has one; and where one side's prompts are messages.
    """
    if _has_messages(ours) != _has_messages(theirs):
        text, chat = (theirs, ours) if _has_messages(ours) else (ours, theirs)
        raise UserError(
            f"the prompts of {chat.source} are messages, those of {text.source} text; accepted: "
            "the same in both, or --chat, which makes messages of text"
        )
    for one, other in ((ours, theirs), (theirs, ours)):
        alone = [key for key in one.texts if key not in other.texts]
        if alone and not matched_only:
            raise UserError(
                f"{other.source} has no response to {len(alone)} of the {len(one.texts)} prompts "
                f"of {one.source}: {_named(one, alone)}; accepted: the same prompts in both, or "
                "--matched_only"
            )
    shared = [key for key in ours.texts if key in theirs.texts]
    if not shared:
        raise UserError(
            f"{ours.source} and {theirs.source} share no prompt; accepted: responses to the same "
            f"prompts (ours begin {_named(ours, list(ours.texts))}; theirs "
            f"{_named(theirs, list(theirs.texts))})"
        )
    return [each for key in shared for each in _of_prompt(ours, theirs, key)]


def _has_messages(side: Responses) -> bool:
    return any(not isinstance(prompt, str) for prompt in side.prompts.values())


def _of_prompt(ours: Responses, theirs: Responses, key: str) -> Iterator[Comparison]:
    left, right = ours.texts[key], theirs.texts[key]
    if 1 not in (len(left), len(right)) and len(left) != len(right):
        raise UserError(
            f"prompt {_named(ours, [key])} has {len(left)} responses in {ours.source}, "
            f"{len(right)} in {theirs.source}; accepted: as many, one on a side, or --first_only"
        )
    count = max(len(left), len(right))
    left, right = (side * count if len(side) == 1 else side for side in (left, right))
    for sample, texts in enumerate(zip(left, right, strict=True)):
        yield Comparison(ours.prompts[key], *texts, sample)


def _was_skipped(record: Record) -> bool:
    """Whether `tokenq search` says that it left this prompt out."""
    row = record.row
    return isinstance(row, dict) and "skipped" in row and not row.keys() & set(_RESPONSES)


def _row(record: Record, chat: bool) -> tuple[Prompt, list[str]]:
    """Raises MalformedRow."""
    if isinstance(record.row, Unreadable):
        raise UserError(f"{record.where}: {record.row.fault}")
    row = record.row
    names = [name for name in _PROMPTS if name in row]
    answers = [name for name in _RESPONSES if name in row]
    if not names or len(answers) != 1:
        raise UserError(f"{record.where}: has the fields {', '.join(row)}; accepted: {_ACCEPTED}")
    prompt: Prompt = row[names[0]]
    if not isinstance(prompt, str):
        prompt = checked_messages(prompt, names[0], answer=False)
    elif chat:
        prompt = [{"role": "user", "content": _text(prompt, names[0])}]
    else:
        prompt = _text(prompt, names[0])
    name, value = answers[0], row[answers[0]]
    if name.endswith("s"):
        if not isinstance(value, list) or not value:
            raise MalformedRow(name, "is no list with something in it", "a list of responses")
        return prompt, [_text(each, f"{name}[{i}]") for i, each in enumerate(value)]
    return prompt, [_text(value, name)]


def _text(value: Any, field: str) -> str:
    if isinstance(value, Mapping):
        field, value = f"{field}.text", value.get("text")
    if isinstance(value, list):
        return str(checked_messages(value, field, answer=False)[-1].get("content", ""))
    if not isinstance(value, str):
        raise MalformedRow(field, "is no text", "a string, messages, or an object with a text")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise MalformedRow(field, "holds half of a surrogate pair", "valid Unicode text")
    return value


def _named(side: Responses, keys: list[str]) -> str:
    """The first few prompts, quoted and short."""
    first = ", ".join(shown(side.prompts[key]) for key in keys[:_NAMED])
    return first + (", ..." if len(keys) > _NAMED else "")


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the empty cells that Arrow adds."""
    return {name: value for name, value in row.items() if value is not None}
