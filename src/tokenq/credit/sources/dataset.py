"""A data set read by several sources: one JSON line a row, bounded memory, resumable."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tokenq.credit.dataset import named_responses
from tokenq.credit.journal import Journal, read_records
from tokenq.credit.sources.comparison import Comparison, compare
from tokenq.credit.sources.scores import RowError, TokenSource
from tokenq.data.formats import TEMPLATE_COLUMNS, Messages
from tokenq.data.loading import Rows
from tokenq.errors import UserError

_DECIMALS = 6


@dataclass
class Agreement:
    """How alike sources rank the tokens of a response: means over responses.

    Spearman's rho of two sources' blame within each response; responses in which one of them is
    constant do not count for that pair.
    """

    names: list[str]
    responses: int = 0
    skipped: int = 0
    _sums: np.ndarray = field(init=False)
    _counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._sums = np.zeros((len(self.names), len(self.names)))
        self._counts = np.zeros_like(self._sums)

    def add(self, correlations: Sequence[Sequence[float | None]]) -> None:
        """Add one response's rho [S, S], None where there is none."""
        found = np.array(correlations, dtype=np.float64)
        self.responses += 1
        self._sums += np.nan_to_num(found)
        self._counts += ~np.isnan(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `correlations` holds None where no response has a rho."""
        with np.errstate(invalid="ignore"):
            means = (self._sums / self._counts).tolist()
        return {
            "responses": self.responses,
            "skipped": self.skipped,
            "correlations": {
                name: dict(zip(self.names, map(_rounded, row), strict=True))
                for name, row in zip(self.names, means, strict=True)
            },
        }


def compare_dataset(
    sources: Sequence[TokenSource],
    rows: Rows,
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    words: bool = False,
    batch: int = 8,
    skip_bad_rows: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Agreement:
    """Score every response with every source and write `out/sources.jsonl`.

    A line holds `row`, `prompt` and `responses` by name, each with `response`, `offsets` (tokens of
    the first source, or words), `scores` by source, in its unit and direction, and `correlations`,
    Spearman's rho of the sources' blame in this response. A row that cannot be scored has
    `skipped`, the reason, instead. Rows found finished are not scored again.

    settings:    what decides the numbers (models by hash), so that no other run is continued
    batch:       rows scored together
    on_progress: called with the number of rows done since the last call

    Raises UserError for records of another run in `out`, and, unless `skip_bad_rows`, naming the
    row, for one that cannot be scored.
    """
    names = [source.name for source in sources]
    decided = {
        **settings,
        "sources": names,
        "words": words,
        "kind": rows.kind,
        "data_fingerprint": rows.fingerprint,
    }
    path = Path(out) / "sources.jsonl"
    with Journal(path, decided) as journal:
        done = set(journal.done())
        todo = iter(row for row in rows.dataset if row["row"] not in done)
        while not journal.finished and (part := list(islice(todo, batch))):
            journal.append(_records(sources, rows, part, words, skip_bad_rows))
            on_progress(len(part))
        journal.finish()
    agreement = Agreement(names)
    for record in read_records(path):
        if "skipped" in record:
            agreement.skipped += 1
        for side in record.get("responses", {}).values():
            agreement.add(side["correlations"])
    return agreement


def _records(
    sources: Sequence[TokenSource],
    rows: Rows,
    part: list[dict[str, Any]],
    words: bool,
    skip_bad_rows: bool,
) -> list[dict[str, Any]]:
    """Records of consecutive rows, those that cannot be scored among them."""
    skipped: dict[int, str] = {}
    while True:
        kept = [row for row in part if row["row"] not in skipped]
        flat = [
            (row, name, response)
            for row in kept
            for name, response in named_responses(rows.kind, row).items()
        ]
        try:
            _refuse_template_columns(kept)
            found = _compared(sources, flat, words)
            break
        except RowError as error:
            row = flat[error.row][0]["row"] if not isinstance(error, _Template) else error.row
            if not skip_bad_rows:
                raise UserError(f"{rows.source}, row {row}: {error.reason}") from error
            skipped[row] = error.reason
    records: dict[int, dict[str, Any]] = {
        row["row"]: {"row": row["row"], "prompt": row["prompt"], "responses": {}} for row in kept
    }
    for (row, name, _), side in zip(flat, found, strict=True):
        records[row["row"]]["responses"][name] = side
    for number, reason in skipped.items():
        records[number] = {"row": number, "skipped": reason}
    return [records[row["row"]] for row in part]


class _Template(RowError):
    """A row, by its own number, whose chat template takes more than messages."""


def _refuse_template_columns(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        for name in TEMPLATE_COLUMNS:
            if row.get(name):
                raise _Template(
                    row["row"], f"has '{name}'; accepted: rows without template columns"
                )


def _compared(
    sources: Sequence[TokenSource],
    flat: Sequence[tuple[dict[str, Any], str, str | Messages]],
    words: bool,
) -> Iterator[dict[str, Any]]:
    if not flat:
        return iter(())
    prompts = [row["prompt"] for row, _, _ in flat]
    responses = [response for _, _, response in flat]
    table = compare(sources, prompts, responses, words=words, batch=len(flat))
    return (
        {
            "response": row.text,
            "offsets": [list(offset) for offset in row.offsets],
            "scores": {
                name: [round(score, _DECIMALS) for score in scores.tolist()]
                for name, scores in row.scores.items()
            },
            "correlations": [
                [_rounded(rho) for rho in line]
                for line in Comparison(table.units, table.higher, [row]).correlations().tolist()
            ],
        }
        for row in table.rows
    )


def _rounded(rho: float) -> float | None:
    return None if math.isnan(rho) else round(rho, _DECIMALS)
