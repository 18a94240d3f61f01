"""What forwards say of a batch's answers, token by token, and the forms objectives take it in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenq.models.forward import pad_rows
from tokenq.models.packing import Pack
from tokenq.objectives import (
    LabelledLogps,
    PairLogps,
    RankedLogps,
    ResponseLogps,
    StepFeatures,
)
from tokenq.objectives.batch import Batch as ObjectiveBatch
from tokenq.training.batches import MISMATCHED, Batch, Place

DIFFERENTIABLE = ("logps", "kl", "logits")
"""What the policy's gradient flows through; the other values are data."""

_TYPES = {"edits": torch.bool, "segments": torch.int64, "rewards": torch.float32}


@dataclass(frozen=True)
class Scores:
    """Values of every token of every answer: lists of [T_i] tensors in the order of `Batch.flat`.

    logps:     log-probabilities under the policy, nats
    ref_logps: the same under the reference, or None where there is none
    features:  by name, see `tokenq.objectives.StepFeatures`; answers to another prompt have none
    """

    batch: Batch
    logps: list[Tensor]
    ref_logps: list[Tensor] | None = None
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def responses(self, places: Sequence[Place]) -> ResponseLogps:
        """Return the answers at `places` as [B, T]; one that a row lacks is fully masked."""
        index = {place: i for i, place in enumerate(self.batch.places())}
        where = [index.get(place) for place in places]
        logps, mask = _padded(self.logps, where)
        reference = None if self.ref_logps is None else _padded(self.ref_logps, where)[0]
        own = all(number != MISMATCHED for _, number in places)
        features = {
            name: _padded(values, where)[0] for name, values in self.features.items() if own
        }
        if "segments" in features:
            mask = mask & (features["segments"] >= 0)
        return ResponseLogps(logps, mask, reference, StepFeatures(**features))

    def side(self, number: int) -> ResponseLogps:
        """Return answer `number` of every row."""
        return self.responses([(row, number) for row in range(len(self.batch))])


def _padded(rows: Sequence[Tensor], where: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    taken = [rows[0][:0] if i is None else rows[i] for i in where]
    return pad_rows(torch.cat(taken), [len(row) for row in taken])


def in_flat_order(values: Tensor, pack: Pack) -> list[Tensor]:
    """Return the rows [T_i] of a [N] tensor in pack order, in the order of the batch."""
    pieces = dict(zip(pack.rows, values.split(list(pack.lengths)), strict=True))
    return [pieces[row] for row in range(len(pieces))]


def data_features(batch: Batch, device: torch.device | str) -> dict[str, list[Tensor]]:
    """Return the features that the rows brought, as tensors in the order of `Batch.flat`."""
    places = [(row, number) for row, number in batch.places() if number != MISMATCHED]
    return {
        name: [
            torch.tensor(values[row][number], dtype=_TYPES[name], device=device)
            for row, number in places
        ]
        for name, values in batch.features.items()
    }


def blank_scores(batch: Batch) -> Scores:
    """Zeros in place of what forwards would say, on CPU: enough to know an objective's weight."""
    _, responses = batch.flat()
    zeros = [torch.zeros(len(ids)) for ids in responses]
    return Scores(batch, zeros, zeros, data_features(batch, "cpu"))


# ---- The forms that objectives take, by the kind of the objective and that of the rows ----


def _pair(scores: Scores) -> PairLogps:
    chosen, rejected = scores.side(0), scores.side(1)
    return PairLogps(
        chosen.logps,
        rejected.logps,
        _reference(chosen),
        _reference(rejected),
        chosen.mask,
        rejected.mask,
        chosen.features,
        rejected.features,
    )


def _reference(side: ResponseLogps) -> Tensor:
    return torch.zeros_like(side.logps) if side.ref_logps is None else side.ref_logps


def _first(scores: Scores) -> ResponseLogps:
    return scores.side(0)


def _ranked(scores: Scores) -> RankedLogps:
    batch = scores.batch
    ranks = batch.ranks or ((0, 1),) * len(batch)
    width = batch.width
    places = [(row, number) for row in range(len(batch)) for number in range(width)]
    padded = [[*row, *[-1] * (width - len(row))] for row in ranks]
    device = scores.logps[0].device
    return RankedLogps(scores.responses(places), torch.tensor(padded, device=device))


def _all_pairs(scores: Scores) -> PairLogps:
    return _ranked(scores).pairs()


def _labelled(scores: Scores) -> LabelledLogps:
    batch = scores.batch
    rows = range(len(batch))
    if batch.kind == "preference":
        places = [(row, number) for number in (0, 1) for row in rows]
        labels = [1.0] * len(batch) + [0.0] * len(batch)
    else:
        places, labels = [(row, 0) for row in rows], list(batch.labels)
    responses = scores.responses(places)
    mismatched = scores.side(MISMATCHED) if batch.mismatched else None
    return LabelledLogps(responses, torch.tensor(labels, device=responses.logps.device), mismatched)


VIEWS: dict[tuple[str, str], Callable[[Scores], ObjectiveBatch]] = {
    ("preference", "preference"): _pair,
    ("preference", "ranked"): _all_pairs,
    ("ranked", "ranked"): _ranked,
    ("ranked", "preference"): _ranked,
    ("unpaired", "unpaired"): _labelled,
    ("unpaired", "preference"): _labelled,
    ("sft", "sft"): _first,
    ("sft", "preference"): _first,
    ("sft", "ranked"): _first,
}
"""(kind of the objective, kind of the rows) -> what the objective is called with.

SFT takes the chosen or the best answer. A pair objective takes all pairs of a ranked list, whose
answers are still encoded once.
"""


def accepted_rows(objective_kind: str) -> tuple[str, ...]:
    """Kinds of rows that an objective of a kind can learn from."""
    return tuple(rows for kind, rows in VIEWS if kind == objective_kind)
