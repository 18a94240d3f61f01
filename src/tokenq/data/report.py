"""What preparation did to the rows: counts and lengths, to print and to save."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenq.storage import write_text

DROP_REASONS = {
    "prompt_too_long": "the prompt leaves no room for a response token",
    "identical": "the responses of the row are equal (after truncation)",
    "tied": "all responses of the row share one rank",
    "empty_response": "the response is empty once rendered",
    "no_prompt_token": "the prompt has no token and the tokenizer no BOS",
    "template_error": "the chat template refuses the conversation",
    "steps_unknown": "the chat template rewrites a response whose steps were to be numbered",
}


@dataclass
class PreparationReport:
    """Counts of rows, and the token lengths of those kept.

    ``rows`` = ``kept`` + all of ``dropped``. For a streaming data set the counts grow as rows are
    consumed, in the process that consumes them.
    """

    rejected: int = 0
    """Rows set aside as malformed when they were loaded; not among ``rows``."""
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    """Kept rows with at least one response cut short (its EOS is gone)."""
    prompt_truncated: int = 0
    """Kept rows whose prompt lost its beginning."""
    boundary_shifted: int = 0
    """Kept rows whose prompt, tokenised alone, is no prefix of prompt and response."""
    response_altered: int = 0
    """Kept rows whose chat template changes a response's text (beyond blanks at its ends)."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason (:data:`DROP_REASONS`) to number of rows."""
    examples: dict[str, list[int]] = field(default_factory=dict)
    """Reason to the first row numbers it dropped."""
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    """Tokens of a prompt to number of prompts."""
    response_lengths: Counter[int] = field(default_factory=Counter)
    """Tokens of a response (EOS included) to number of responses."""

    @property
    def identical(self) -> int:
        """Rows dropped because their responses are equal."""
        return self.dropped.get("identical", 0)

    def drop(self, reason: str, row: int) -> None:
        """Count one dropped row."""
        self.rows += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < 5:
            examples.append(row)

    def keep(
        self, prompt_length: int, response_lengths: Iterable[int], marks: Iterable[str]
    ) -> None:
        """Count one kept row; ``marks`` are names of the counts it adds to."""
        self.rows += 1
        self.kept += 1
        for mark in marks:
            setattr(self, mark, getattr(self, mark) + 1)
        self.prompt_lengths[prompt_length] += 1
        self.response_lengths.update(response_lengths)

    def to_dict(self) -> dict[str, Any]:
        """All counts, and for both lengths (tokens): mean, median, p95, max."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "rejected": self.rejected,
            "truncated": self.truncated,
            "prompt_truncated": self.prompt_truncated,
            "identical": self.identical,
            "boundary_shifted": self.boundary_shifted,
            "response_altered": self.response_altered,
            "dropped": dict(self.dropped),
            "dropped_examples": {reason: list(rows) for reason, rows in self.examples.items()},
            "prompt_tokens": _summary(self.prompt_lengths),
            "response_tokens": _summary(self.response_lengths),
        }

    def render(self) -> str:
        """The report as a plain text table, one count a line."""
        lines = [
            ("rows", self.rows, "read and well-formed"),
            ("kept", self.kept, ""),
            ("malformed", self.rejected, "set aside when loading"),
            ("truncated", self.truncated, "a response was cut to max_length"),
            ("prompt truncated", self.prompt_truncated, "the beginning was cut"),
            ("boundary shifted", self.boundary_shifted, "tokens merge across prompt and response"),
            ("response altered", self.response_altered, "by the chat template"),
        ]
        for reason, count in sorted(self.dropped.items()):
            rows = ", ".join(map(str, self.examples[reason]))
            lines.append(
                (f"dropped: {reason}", count, f"{DROP_REASONS[reason]}; first rows: {rows}")
            )
        text = [f"{name:<24}{count:>9}  {note}".rstrip() for name, count, note in lines]
        for name, lengths in (("prompt", self.prompt_lengths), ("response", self.response_lengths)):
            numbers = "  ".join(f"{key} {value:g}" for key, value in _summary(lengths).items())
            text.append(f"{name + ' tokens':<24}           {numbers}")
        return "\n".join(text)

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")


def _summary(lengths: Counter[int]) -> dict[str, float]:
    total = lengths.total()
    if not total:
        return {}
    return {
        "mean": round(sum(length * count for length, count in lengths.items()) / total, 1),
        "median": _quantile(lengths, 0.5),
        "p95": _quantile(lengths, 0.95),
        "max": max(lengths),
    }


def _quantile(lengths: Counter[int], fraction: float) -> int:
    """Smallest length that at least ``fraction`` of the texts do not exceed."""
    needed = fraction * lengths.total()
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= needed:
            return length
    raise ValueError("no lengths")
