"""Prompts to answer: rows of any source from which nothing but the prompt is read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from tokenq.data.formats import (
    MalformedRow,
    Messages,
    checked_messages,
    split_common_prompt,
    split_last_answer,
)
from tokenq.data.loading import Rejects
from tokenq.data.sources import Record, TextFiles, Unreadable, open_source
from tokenq.errors import UserError

ACCEPTED = (
    "prompt or instruction (text or messages), messages, or chosen and rejected that begin alike"
)
_FIELDS = ("prompt", "instruction", "messages")


@dataclass(frozen=True)
class PromptRow:
    """One prompt, the number of its row in the source, where that stands, its other columns."""

    row: int
    where: str
    prompt: str | Messages
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a source, in its order.

    fingerprint: hash that names the content
    rejected:    malformed rows that were set aside
    """

    rows: list[PromptRow]
    source: str
    fingerprint: str
    rejected: int = 0


def load_prompts(
    source: str | Path,
    *,
    chat: bool = False,
    split: str = "test",
    config: str | None = None,
    limit: int | None = None,
    rejects: Path | None = None,
) -> Prompts:
    """Read the prompts of a file (.jsonl, .json, .csv, .parquet), a folder, a hub or bundled set.

    A row's prompt is its `prompt` or `instruction`; else `messages` without a last answer; else the
    beginning that `chosen` and `rejected` share. All other columns are carried along.

    chat:    a text prompt is what a user says: it becomes a message
    limit:   at most so many rows of the source
    rejects: file for malformed rows; without it the first one raises

    Raises UserError, naming file, line and field, for rows without a prompt.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; accepted: a number of rows from 1 up")
    opened = open_source(source, split=split, config=config, revision=None, streaming=False)
    records: Iterable[Record]
    if isinstance(opened, TextFiles):
        fingerprint, records = opened.fingerprint(), opened.records()
    else:
        fingerprint = opened.fingerprint
        records = _arrow_records(opened.name, opened.dataset)
    aside = Rejects(rejects)
    rows = []
    for record in islice(records, limit):
        try:
            rows.append(_read(record, chat))
        except MalformedRow as error:
            value = record.row.value if isinstance(record.row, Unreadable) else record.row
            aside.add(record.index, record.where, str(error.args[0]), value)
    aside.save()
    if not rows:
        raise UserError(f"{source}: has no usable row ({len(aside.rows)} malformed)")
    if limit is not None:
        fingerprint = sha256(f"{fingerprint}[:{limit}]".encode()).hexdigest()
    return Prompts(rows, str(source), fingerprint, len(aside.rows))


def one_prompt(text: str, *, chat: bool = False) -> Prompts:
    """A single prompt that is no row of anything."""
    row = PromptRow(0, "--prompt", _as_message(text) if chat else text)
    return Prompts([row], "--prompt", sha256(text.encode()).hexdigest())


def _read(record: Record, chat: bool) -> PromptRow:
    """Raises MalformedRow."""
    if isinstance(record.row, Unreadable):
        raise _Unreadable(record.row.fault)
    row = {name: value for name, value in record.row.items() if value is not None}
    prompt, used = _prompt(row)
    if chat and isinstance(prompt, str):
        prompt = _as_message(prompt)
    columns = {name: value for name, value in row.items() if name != used}
    return PromptRow(record.index, record.where, prompt, columns)


class _Unreadable(MalformedRow):
    """A line that holds no row at all."""

    def __init__(self, fault: str):
        Exception.__init__(self, fault)


def _prompt(row: Mapping[str, Any]) -> tuple[str | Messages, str | None]:
    """The prompt, and the column that it is the whole of."""
    name = next((each for each in _FIELDS if each in row), None)
    if name is None:
        if {"chosen", "rejected"} <= set(row):
            return _shared_prompt(row), None
        raise _Unreadable(f"has the fields {', '.join(row) or '(none)'}; accepted: {ACCEPTED}")
    value = row[name]
    if isinstance(value, str):
        if not value.strip():
            raise MalformedRow(name, "is empty", "a text with something in it, or messages")
        return value, name
    messages = checked_messages(value, name, answer=False)
    if messages[-1]["role"] == "assistant":
        if name != "messages":
            raise MalformedRow(
                name, "ends with an assistant message", "messages that end with the user's"
            )
        messages = split_last_answer(messages)[0]
    return messages, name


def _shared_prompt(row: Mapping[str, Any]) -> str | Messages:
    answers = []
    for name in ("chosen", "rejected"):
        value = row[name]
        answers.append(value if isinstance(value, str) else checked_messages(value, name))
    if isinstance(answers[0], str) is not isinstance(answers[1], str):
        raise MalformedRow("rejected", "is not what chosen is", "both text, or both messages")
    prompt: str | Messages = split_common_prompt(*answers)[0]
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise MalformedRow("chosen", "shares no beginning with rejected", "a prompt column")
    return prompt


def _as_message(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _arrow_records(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        yield Record(number, f"{name}, row {number}", dict(row))
