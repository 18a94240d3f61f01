"""Numbers for the sections of an answer, token by token: the model's turns, or reasoning steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import datasets

from tokenq.data.encoding import ResponseEncoder, TokenisedText
from tokenq.data.steps import compile_step_pattern, step_numbers, step_starts
from tokenq.data.templates import Rendering, TemplateRefusal
from tokenq.data.turns import UnclearTurns, turn_segments
from tokenq.errors import UserError

SegmentMode = Literal["auto", "turns", "steps", "none"]


class UnclearSteps(Exception):
    """An answer that the template rewrote, so that its characters cannot be found in the ids."""


@dataclass(frozen=True)
class Segmentation:
    """``unit``: what is numbered. ``step_pattern``: see :func:`compile_step_pattern`."""

    unit: Literal["turns", "steps"]
    step_pattern: str

    @classmethod
    def choose(
        cls, mode: SegmentMode, step_pattern: str, dataset: Any, columns: Sequence[str]
    ) -> "Segmentation | None":
        """What ``mode`` asks for; None for no numbers at all.

        "auto" numbers turns where an answer in ``columns`` of the ``dataset`` has several of the
        model's; of a stream, wherever answers are messages, since later rows are not known.

        Raises:
            UserError: the mode or the pattern is unknown.
        """
        compile_step_pattern(step_pattern)
        if mode not in get_args(SegmentMode):
            accepted = ", ".join(get_args(SegmentMode))
            raise UserError(f"segments is {mode!r}; accepted: {accepted}")
        if mode == "none" or (mode == "auto" and not _has_turns(dataset, columns)):
            return None
        return cls("steps" if mode == "steps" else "turns", step_pattern)

    def numbers(
        self,
        encoder: ResponseEncoder,
        row: Mapping[str, Any],
        answer: Any,
        options: Mapping[str, Any],
        rendering: Rendering,
        tokens: TokenisedText,
    ) -> list[int]:
        """A number for each of ``tokens.ids``; those of the prompt, in front, mean nothing.

        Raises:
            UnclearSteps: the template rewrites this answer.
            UserError: the template does not allow to tell turns, or steps are asked for in an
                answer of several turns; the message names the row.
        """
        if self.unit == "steps":
            return self._step_numbers(encoder, row, answer, rendering, tokens)
        if isinstance(answer, str):
            return [0] * len(tokens.ids)
        prompt = row["prompt"]
        try:
            return turn_segments(encoder, prompt, answer, options, rendering, tokens)
        except (UnclearTurns, TemplateRefusal) as error:
            raise UserError(
                f"row {row['row']}: the chat template does not tell the model's turns from the "
                f"others': {error}; accepted: a template that ends each turn with a special token "
                "and writes it in the same way whatever follows (TRL has such *_training "
                "templates), or segments='none' to train on the others' turns too"
            ) from None

    def _step_numbers(
        self,
        encoder: ResponseEncoder,
        row: Mapping[str, Any],
        answer: Any,
        rendering: Rendering,
        tokens: TokenisedText,
    ) -> list[int]:
        if not isinstance(answer, str):
            if len(answer) > 1:
                raise UserError(
                    f"row {row['row']}: steps are numbered in answers of one turn, and this one "
                    f"has {len(answer)} messages; accepted: segments='turns'"
                )
            answer = answer[0].get("content", "")
        if rendering.span is None:
            raise UnclearSteps
        offsets = encoder.offsets(rendering, tokens, len(answer))
        starts = step_starts(answer, compile_step_pattern(self.step_pattern))
        return step_numbers(offsets, starts)


def _has_turns(dataset: Any, columns: Sequence[str]) -> bool:
    first = next(iter(dataset), None)
    if first is None or not any(_messages(first[name]) for name in columns):
        return False
    if isinstance(dataset, datasets.IterableDataset):
        return True
    return any(
        len(answer) > 1
        for row in dataset.select_columns(list(columns))
        for name in columns
        for answer in _messages(row[name])
    )


def _messages(value: Any) -> list[Any]:
    """The message answers that a cell holds: one, the many of a ranked row, or none (text)."""
    if not isinstance(value, list):
        return []
    return [value] if isinstance(value[0], Mapping) else [v for v in value if isinstance(v, list)]
