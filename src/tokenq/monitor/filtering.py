"""Part a preference data set by a measure of its pairs, and say what left."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tokenq.data.edits import edited_tokens
from tokenq.data.loading import Rows, source_columns
from tokenq.data.preparation import Prepared
from tokenq.data.windows import pair_windows
from tokenq.errors import UserError
from tokenq.models.logps import TOKEN_BUDGET
from tokenq.monitor.similarity import PairSimilarity, pair_similarities
from tokenq.storage import atomic_file

MEASURES: dict[str, Callable[[PairSimilarity], float]] = {
    "ches": lambda pair: pair.ches_normalised,
    "ches_sum": lambda pair: pair.ches,
    "gradient": lambda pair: -_gradients(pair).chosen_change,
}
"""What pairs can be parted by: the higher, the more displacement is expected.

ches: centered hidden embedding similarity of means, for answers of different lengths; ches_sum: of
sums, as it was first defined (2410.08847); gradient: how much less likely the head's step along the
margin makes the chosen answer, to first order.
"""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_WINDOW = 4
"""Token budgets of pairs that are measured between two reports of progress."""


@dataclass(frozen=True)
class Measured:
    """One pair: its row in the source, its measures, and the share of its tokens that differ."""

    row: int
    value: float
    similarity: PairSimilarity
    edited: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        pair = self.similarity
        plain: dict[str, Any] = {
            "row": self.row,
            "value": self.value,
            "ches": pair.ches_normalised,
            "ches_sum": pair.ches,
            "chosen_tokens": pair.chosen_tokens,
            "rejected_tokens": pair.rejected_tokens,
            "edited": self.edited,
        }
        if pair.gradients is not None:
            plain["chosen_change"] = pair.gradients.chosen_change
            plain["gradient_cosine"] = pair.gradients.cosine
        return plain


@dataclass(frozen=True)
class Group:
    """Means over some of the pairs; `edited`: share of tokens that the other answer lacks."""

    pairs: int
    value: float
    chosen_tokens: float
    rejected_tokens: float
    edited: float


@dataclass(frozen=True)
class FilterSummary:
    """What a filter did.

    by:        the measure, see :data:`MEASURES`
    threshold: pairs above it left
    quantiles: of the measure over all pairs
    kept, left: the two parts; None where one has no pair
    unmeasured: rows that could not be encoded, kept out of both
    """

    by: str
    threshold: float
    quantiles: dict[str, float]
    kept: Group | None
    left: Group | None
    unmeasured: int

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "by": self.by,
            "threshold": self.threshold,
            "quantiles": self.quantiles,
            "kept": None if self.kept is None else vars(self.kept),
            "left": None if self.left is None else vars(self.left),
            "unmeasured": self.unmeasured,
        }


def check_cut(by: str, keep: float | None, threshold: float | None) -> None:
    """Raise UserError unless the measure is known and one of share and threshold is given."""
    if by not in MEASURES:
        raise UserError(f"by is '{by}'; accepted: {', '.join(MEASURES)}")
    if (keep is None) == (threshold is None):
        raise UserError("accepted: one of keep (a share of the pairs) and threshold")
    if keep is not None and not 0 < keep < 1:
        raise UserError(f"keep is {keep}; accepted: above 0, below 1")
    if threshold is not None and not np.isfinite(threshold):
        raise UserError(f"threshold is {threshold}; accepted: a number")


def measure_pairs(
    model: nn.Module,
    prepared: Prepared,
    by: str,
    *,
    token_budget: int = TOKEN_BUDGET,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[Measured]:
    """Measure every prepared pair, in order. Arguments as in :func:`filter_pairs`."""
    measure, measured = MEASURES[by], []
    for window in pair_windows(prepared.dataset, _WINDOW * token_budget):
        columns = [[row[name] for row in window] for name in ("prompt_ids", *_SIDES)]
        found = pair_similarities(
            model, *columns, gradients=by == "gradient", token_budget=token_budget
        )
        for row, similarity in zip(window, found, strict=True):
            edits = edited_tokens(row["chosen_ids"], row["rejected_ids"])
            tokens = similarity.chosen_tokens + similarity.rejected_tokens
            share = sum(map(sum, edits)) / tokens
            measured.append(Measured(row["row"], measure(similarity), similarity, share))
        on_progress(len(window))
    return measured


def filter_pairs(
    model: nn.Module,
    rows: Rows,
    prepared: Prepared,
    out: str | Path,
    *,
    by: str = "ches",
    keep: float | None = None,
    threshold: float | None = None,
    token_budget: int = TOKEN_BUDGET,
    on_progress: Callable[[int], None] = lambda count: None,
) -> FilterSummary:
    """Part preference pairs by how much displacement they are expected to cause.

    Writes to `out`, in the source's order: `kept.jsonl` and `left.jsonl`, the rows as they were
    (those that left with a field `displacement`), `unmeasured.jsonl`, rows that training would
    leave out as well, and `scores.jsonl`, the measures of all pairs.

    model:     the policy before preference training
    prepared:  these rows, tokenised
    by:        see :data:`MEASURES`
    keep:      share of the pairs to keep, those with the lowest values
    threshold: instead of a share: pairs above this value leave

    Raises UserError for rows that are no pairs, and options out of range.
    """
    check_cut(by, keep, threshold)
    if rows.kind != "preference":
        raise UserError(
            f"{rows.source}: its rows are of kind '{rows.kind}'; accepted: preference pairs"
        )
    measured = measure_pairs(
        model, prepared, by, token_budget=token_budget, on_progress=on_progress
    )
    values = np.array([each.value for each in measured])
    if threshold is None:
        assert keep is not None
        threshold = float(np.quantile(values, keep, method="lower"))
    by_row = {each.row: each for each in measured}
    with ExitStack() as stack:
        files = {}
        for name in ("kept", "left", "unmeasured", "scores"):
            path = stack.enter_context(atomic_file(Path(out) / f"{name}.jsonl"))
            files[name] = stack.enter_context(path.open("w", encoding="utf-8"))
        unmeasured = 0
        for row in rows.dataset:
            found = by_row.get(row["row"])
            name, line = _placed(source_columns(row), found, threshold)
            unmeasured += found is None
            files[name].write(json.dumps(line, ensure_ascii=False) + "\n")
            if found is not None:
                files["scores"].write(json.dumps(found.to_dict()) + "\n")
    return FilterSummary(
        by,
        threshold,
        {str(share): float(np.quantile(values, share)) for share in _QUANTILES},
        _group([each for each in measured if each.value <= threshold]),
        _group([each for each in measured if each.value > threshold]),
        unmeasured,
    )


_SIDES = ("chosen_ids", "rejected_ids")


def _gradients(pair: PairSimilarity) -> Any:
    assert pair.gradients is not None
    return pair.gradients


def _placed(
    row: dict[str, Any], found: Measured | None, threshold: float
) -> tuple[str, dict[str, Any]]:
    """The file that a row goes to, and what of it."""
    if found is None:
        return "unmeasured", row
    if found.value > threshold:
        return "left", {**row, "displacement": found.to_dict()}
    return "kept", row


def _group(pairs: Sequence[Measured]) -> Group | None:
    if not pairs:
        return None
    return Group(
        len(pairs),
        float(np.mean([each.value for each in pairs])),
        float(np.mean([each.similarity.chosen_tokens for each in pairs])),
        float(np.mean([each.similarity.rejected_tokens for each in pairs])),
        float(np.mean([each.edited for each in pairs])),
    )
