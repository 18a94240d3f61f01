"""What a row may look like: kinds of rows, how a kind is told from its columns, and the checks.

A row is checked and brought to its kind's columns here; where rows come from is `loading`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenq.data.prefix import common_prefix_length
from tokenq.errors import UserError

Kind = Literal["preference", "sft", "unpaired", "ranked"]
Message = dict[str, Any]
Messages = list[Message]

ACCEPTED_COLUMNS = (
    "prompt+chosen+rejected (or chosen+rejected that begin alike), prompt+completion, "
    "prompt+completion+label, prompt+completions (best first, or with scores or ranks), "
    "prompt+responses (in no order, unless with scores or ranks), or messages"
)
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "sft": ("prompt", "completion"),
    "unpaired": ("prompt", "completion", "label"),
    "ranked": ("prompt", "completions", "ranks"),
}
# Columns that are handed to the chat template, as TRL names them.
TEMPLATE_COLUMNS: dict[str, type] = {"tools": list, "chat_template_kwargs": dict}
_ANSWER_MARK = "\n\nAssistant:"  # the dialogue mark of the HH data sets


class MalformedRow(Exception):
    """One row that cannot be used: ``field``, what is wrong with it, and what is accepted."""

    def __init__(self, field: str, problem: str, accepted: str):
        super().__init__(f"field '{field}' {problem}; accepted: {accepted}")
        self.field = field


@dataclass(frozen=True)
class RowFormat:
    """How the rows of one data set are read.

    ``message_prompts``, ``message_answers``: message lists rather than plain text, in every row.
    ``fields``: the columns of the source that the kind reads.
    """

    kind: Kind
    message_prompts: bool
    message_answers: bool
    fields: tuple[str, ...]

    @classmethod
    def detect(cls, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> "RowFormat":
        """Tell the format from the column names and from the first row that shows its answers.

        Preference columns win over all others, and `messages` is looked at last: published
        preference data often carries the other columns as extras. `responses` are completions
        without an order: all of the same rank, unless there are scores or ranks.

        Raises:
            UserError: no known set of columns is there.
        """
        names = set(columns)
        fields = _fields(names)
        answer = fields[-1] if fields[-1] in ("rejected", "completion", "messages") else fields[1]
        for row in rows:
            shown = _first_answer(row.get(answer), answer)
            prompt = row.get("prompt", "")
            if isinstance(shown, str | list) and isinstance(prompt, str | list):
                return cls(_kind(fields), isinstance(prompt, list), isinstance(shown, list), fields)
        return cls(_kind(fields), False, False, fields)

    @property
    def conversational(self) -> bool:
        """Whether the normalised rows hold messages, which a chat template renders."""
        return self.message_prompts or self.message_answers

    def normalise(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The kind's columns of one row (:data:`COLUMNS`), the prompt always explicit.

        Text answers keep a text or message prompt; message answers get a message prompt.

        Raises:
            MalformedRow: the row cannot be used.
        """
        for name, accepted in TEMPLATE_COLUMNS.items():
            _check_json(row.get(name), name, accepted)
        return {
            "preference": self._preference,
            "sft": self._sft,
            "unpaired": self._unpaired,
            "ranked": self._ranked,
        }[self.kind](row)

    def _preference(self, row: Mapping[str, Any]) -> dict[str, Any]:
        chosen = self._answer(row.get("chosen"), "chosen")
        rejected = self._answer(row.get("rejected"), "rejected")
        if "prompt" not in self.fields:
            prompt, answers = split_common_prompt(chosen, rejected)
        else:
            prompt, answers = self._with_prompt(row, [chosen, rejected], "chosen")
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            _require_answer_turns(answer, name)
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}

    def _sft(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.fields == ("messages",):
            turns, answer = split_last_answer(checked_messages(row.get("messages"), "messages"))
            return {"prompt": turns, "completion": answer}
        prompt, [completion] = self._with_prompt(
            row, [self._answer(row.get("completion"), "completion")], "completion"
        )
        _require_answer_turns(completion, "completion")
        return {"prompt": prompt, "completion": completion}

    def _unpaired(self, row: Mapping[str, Any]) -> dict[str, Any]:
        label = row.get("label")
        if label not in (True, False):
            raise MalformedRow("label", f"is {_shown(label)}", "true or false (1 or 0)")
        return {**self._sft(row), "label": bool(label)}

    def _ranked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        field = self.fields[1]
        completions = row.get(field)
        if not isinstance(completions, list) or len(completions) < 2:
            raise MalformedRow(field, f"is {_shown(completions)}", "a list of 2 or more answers")
        answers = [self._answer(each, f"{field}[{i}]") for i, each in enumerate(completions)]
        prompt, answers = self._with_prompt(row, answers, field)
        for i, answer in enumerate(answers):
            _require_answer_turns(answer, f"{field}[{i}]")
        ranks = list(range(len(answers))) if field == "completions" else [0] * len(answers)
        if "scores" in self.fields:
            ranks = _dense_ranks([-s for s in _numbers(row, "scores", len(answers))])
        elif "ranks" in self.fields:
            ranks = _dense_ranks(_numbers(row, "ranks", len(answers)))
        order = sorted(range(len(answers)), key=ranks.__getitem__)
        return {
            "prompt": prompt,
            "completions": [answers[i] for i in order],
            "ranks": [ranks[i] for i in order],
        }

    def _answer(self, value: Any, field: str) -> str | Messages:
        if self.message_answers:
            return checked_messages(value, field)
        return _answer_text(value, field)

    def _with_prompt(
        self, row: Mapping[str, Any], answers: list[Any], field: str
    ) -> tuple[str | Messages, list[Any]]:
        prompt = row.get("prompt")
        if self.message_prompts:
            prompt = checked_messages(prompt, "prompt", answer=False)
            if prompt[-1]["role"] == "assistant":
                raise MalformedRow(
                    "prompt",
                    "ends with an assistant message",
                    "a list that ends with a user message",
                )
            if not self.message_answers:
                return prompt, [[{"role": "assistant", "content": each}] for each in answers]
        else:
            prompt = _text(prompt, "prompt", "a string, or messages in every row")
            if not self.message_answers:
                return prompt, answers
            if all(each[0]["role"] != "assistant" for each in answers):
                # The answers repeat the whole conversation: it holds the prompt's turns.
                return _shared_turns(answers, field)
            prompt = [{"role": "user", "content": prompt}]
        repeated = all(
            each[: len(prompt)] == prompt and len(each) > len(prompt) for each in answers
        )
        return prompt, [each[len(prompt) :] for each in answers] if repeated else answers


def split_common_prompt(chosen: Any, rejected: Any) -> tuple[Any, list[Any]]:
    """Make an implicit prompt explicit: the beginning that both answers share.

    Messages: the shared turns before the first assistant turn that differs. Text: up to the last
    ``"\\n\\nAssistant:"`` of the shared beginning (HH dialogues), else the shared beginning cut
    back to the end of a word, whose following blank starts the answers. Two equal texts without
    that mark have no recognisable prompt: it is empty (and preparation drops the row as identical).

    Raises:
        MalformedRow: nothing would be left of an answer, or no turn is shared.
    """
    if isinstance(chosen, list):
        return _shared_turns([chosen, rejected], "chosen")
    shared = chosen[: common_prefix_length(chosen, rejected)]
    mark = shared.rfind(_ANSWER_MARK)
    if mark >= 0:
        cut = mark + len(_ANSWER_MARK)
    elif chosen == rejected:
        cut = 0
    else:
        cut = len(shared)
        while cut and not (_splits_at(chosen, cut) and _splits_at(rejected, cut)):
            cut -= 1
    answers = [chosen[cut:], rejected[cut:]]
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer.strip():
            raise MalformedRow(
                name,
                "is empty after the prompt that both sides share",
                "an answer, or a prompt column",
            )
    return chosen[:cut], answers


def split_last_answer(messages: Messages) -> tuple[Messages, Messages]:
    """Prompt and answer of a conversation: the last assistant turn is the answer.

    Earlier assistant turns belong to the prompt; turns after the last assistant turn are left out.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[-1] == 0:
        problem = "starts with the answer" if turns else "has no assistant message"
        raise MalformedRow("messages", problem, "a user message followed by an assistant message")
    answer = messages[turns[-1]]
    if not _has_content(answer):
        raise MalformedRow("messages", "ends with an empty assistant message", "a non-empty answer")
    return messages[: turns[-1]], [answer]


def checked_messages(value: Any, field: str, answer: bool = True) -> Messages:
    """``value`` as a list of messages without null entries, each with a role and a content string.

    ``content`` may be missing where ``tool_calls`` are given. ``answer``: the last message must
    say something.

    Raises:
        MalformedRow: anything else, naming the message (``chosen[2].content``).
    """
    accepted = "a list of messages {role: string, content: string}"
    if not isinstance(value, list) or not value:
        raise MalformedRow(field, f"is {_shown(value)}", accepted)
    messages = []
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise MalformedRow(f"{field}[{i}]", f"is {_shown(item)}", accepted)
        # Arrow fills the keys that only other messages have with null.
        message = {key: part for key, part in item.items() if part is not None}
        role = _text(
            message.get("role"), f"{field}[{i}].role", "a string such as user or assistant"
        )
        if not role:
            raise MalformedRow(
                f"{field}[{i}].role", "is empty", "a string such as user or assistant"
            )
        if "content" in message or not message.get("tool_calls"):
            _text(message.get("content"), f"{field}[{i}].content", "a string")
        messages.append(message)
    if answer and not _has_content(messages[-1]):
        raise MalformedRow(
            f"{field}[{len(messages) - 1}].content", "is empty", "a non-empty answer"
        )
    return messages


def _fields(names: set[str]) -> tuple[str, ...]:
    prompt = ("prompt",) if "prompt" in names else ()
    if {"chosen", "rejected"} <= names:
        return (*prompt, "chosen", "rejected")
    if {"prompt", "completions"} <= names:
        if "labels" in names:
            raise UserError(
                "columns completions+labels (labelled steps) are not read; " + _accepted()
            )
        return ("prompt", "completions", *_order(names, "completions"))
    if {"prompt", "completion"} <= names:
        return ("prompt", "completion", *(("label",) if "label" in names else ()))
    if {"prompt", "responses"} <= names:
        return ("prompt", "responses", *_order(names, "responses"))
    if "messages" in names:
        return ("messages",)
    raise UserError(
        f"columns {', '.join(sorted(names)) or '(none)'} are no known kind of row; {_accepted()}"
    )


def _order(names: set[str], answers: str) -> tuple[str, ...]:
    """The column that orders the answers of a row, if there is one."""
    order = tuple(sorted({"scores", "ranks"} & names))
    if len(order) == 2:
        raise UserError(
            f"columns scores and ranks are both there; keep the one that orders {answers}"
        )
    return order


def _kind(fields: tuple[str, ...]) -> Kind:
    if "chosen" in fields:
        return "preference"
    if {"completions", "responses"} & set(fields):
        return "ranked"
    return "unpaired" if "label" in fields else "sft"


def _accepted() -> str:
    return f"accepted: {ACCEPTED_COLUMNS}"


def _first_answer(value: Any, field: str) -> Any:
    if field not in ("completions", "responses"):
        return value
    return value[0] if isinstance(value, list) and value else None


def _shared_turns(answers: list[Messages], field: str) -> tuple[Messages, list[Messages]]:
    longest = min(len(each) for each in answers) - 1
    shared = 0
    while shared < longest and all(each[shared] == answers[0][shared] for each in answers):
        shared += 1
    # The answers begin with an assistant turn; a shared one before it is context.
    while shared and any(each[shared]["role"] != "assistant" for each in answers):
        shared -= 1
    if not shared:
        raise MalformedRow(
            field,
            "shares no prompt with the other side",
            "the same turns up to an assistant message",
        )
    return answers[0][:shared], [each[shared:] for each in answers]


def _splits_at(text: str, cut: int) -> bool:
    """Whether ``text[:cut]`` ends with a word (or a line) and the answer starts at ``cut``."""
    if cut == len(text):
        return False
    return text[cut - 1] == "\n" or (text[cut].isspace() and not text[cut - 1].isspace())


def _require_answer_turns(answer: Any, field: str) -> None:
    if isinstance(answer, list):
        for place, message in (("starts", answer[0]), ("ends", answer[-1])):
            if message["role"] != "assistant":
                raise MalformedRow(
                    field,
                    f"{place} with a message of role {message['role']!r}",
                    "an assistant message",
                )


def _has_content(message: Message) -> bool:
    return bool(message.get("content", "").strip() or message.get("tool_calls"))


def _text(value: Any, field: str, accepted: str) -> str:
    if not isinstance(value, str):
        raise MalformedRow(field, f"is {_shown(value)}", accepted)
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise MalformedRow(field, "holds half of a surrogate pair", "valid Unicode text")
    return value


def _answer_text(value: Any, field: str) -> str:
    text = _text(value, field, "a non-empty string, or messages in every row")
    if not text.strip():
        raise MalformedRow(field, "is empty", "a non-empty string")
    return text


def _check_json(value: Any, field: str, accepted: type) -> None:
    """``value`` is ``accepted``, or JSON text of it, or missing."""
    kind = "a list" if accepted is list else "an object with named values"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise MalformedRow(field, f"is not valid JSON ({error.msg})", kind) from None
    if value is not None and not isinstance(value, accepted):
        raise MalformedRow(field, f"is {_shown(value)}", kind)


def _numbers(row: Mapping[str, Any], field: str, count: int) -> list[float]:
    values = row.get(field)
    accepted = f"a list of {count} numbers, one for each completion"
    if not isinstance(values, list) or len(values) != count:
        raise MalformedRow(field, f"is {_shown(values)}", accepted)
    for i, value in enumerate(values):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise MalformedRow(f"{field}[{i}]", f"is {_shown(value)}", "a finite number")
    return values


def _dense_ranks(values: list[float]) -> list[int]:
    """0 for the smallest value, 1 for the next larger one...; equal values share a rank."""
    place = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [place[value] for value in values]


def _shown(value: Any) -> str:
    if value is None:
        return "missing or null"
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
