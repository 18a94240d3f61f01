"""One micro-batch through policy and reference: :class:`Scores` and the metrics of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenq.models.head import Extras, TokenLogps
from tokenq.models.packing import Pack
from tokenq.objectives.base import Need
from tokenq.training.batches import MISMATCHED, Batch, join
from tokenq.training.reference import LiveReference, Reference
from tokenq.training.rewards import TokenRewards
from tokenq.training.scores import DIFFERENTIABLE, Scores, data_features, in_flat_order

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name -> mean and number of terms, both 0-dim."""


@dataclass(frozen=True)
class Scorer:
    """Runs what a run's objectives ask for.

    needs:     all that any objective needs
    reference: None where no objective needs one
    rewards:   source of token rewards where an objective needs them and the rows bring none
    """

    needs: frozenset[Need]
    device: torch.device
    reference: Reference | None = None
    rewards: TokenRewards | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Scores, Metrics]:
        """Score all answers of a batch in one packed forward."""
        pack = batch.pack().to(self.device)
        output: TokenLogps = model(packed=pack, extras=self._extras(pack))
        features = data_features(batch, self.device)
        for name, values in (("kl", output.kl), ("collision", output.collision)):
            if values is not None:
                features[name] = in_flat_order(values, pack)
        if "logits" in self.needs:
            features["logits"] = in_flat_order(output.taken, pack)
        if self.rewards is not None:
            features["rewards"] = [row.to(self.device) for row in self.rewards.of(*batch.flat())]
        scores = Scores(
            batch,
            in_flat_order(output.logps, pack),
            self._reference_logps(output, pack, batch),
            features,
        )
        return scores, _token_metrics(output, pack, scores)

    def _extras(self, pack: Pack) -> Extras:
        whole = None
        if "kl" in self.needs:
            assert isinstance(self.reference, LiveReference)  # see `check_form`
            whole = self.reference.predictions(pack)
        return Extras(collision="collision" in self.needs, reference=whole)

    def _reference_logps(self, output: TokenLogps, pack: Pack, batch: Batch) -> list[Tensor] | None:
        if output.ref_logps is not None:
            return in_flat_order(output.ref_logps, pack)
        if self.reference is None:
            return None
        return [row.to(output.logps) for row in self.reference.logps(*batch.flat())]


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all parts as those of one batch, part after part."""
    batch = join([part.batch for part in parts])
    sources: dict[tuple[int, int], tuple[Scores, int]] = {}
    offset = 0
    for part in parts:
        for i, (row, number) in enumerate(part.batch.places()):
            sources[row + offset, number] = (part, i)
        offset += len(part.batch)
    order = [sources[place] for place in batch.places()]
    answers = zip(order, batch.places(), strict=True)
    own = [source for source, (_, number) in answers if number != MISMATCHED]
    return Scores(
        batch,
        [part.logps[i] for part, i in order],
        None
        if parts[0].ref_logps is None
        else [part.ref_logps[i] for part, i in order if part.ref_logps is not None],
        {name: [part.features[name][i] for part, i in own] for name in parts[0].features},
    )


def differentiable(scores: Scores) -> list[Tensor]:
    """Return the tensors of `scores` that the policy's gradient flows through."""
    found = list(scores.logps)
    for name in DIFFERENTIABLE:
        found += scores.features.get(name, [])
    return found


def as_leaves(scores: Scores) -> Scores:
    """Return the same numbers with gradients of their own, cut off from the forward."""

    def leaves(rows: list[Tensor]) -> list[Tensor]:
        return [row.detach().requires_grad_() for row in rows]

    features = {
        name: leaves(rows) if name in DIFFERENTIABLE else rows
        for name, rows in scores.features.items()
    }
    return Scores(scores.batch, leaves(scores.logps), scores.ref_logps, features)


def _token_metrics(output: TokenLogps, pack: Pack, scores: Scores) -> Metrics:
    batch = scores.batch
    places = batch.places()
    own = [i for i, (_, number) in enumerate(places) if number != MISMATCHED]
    first = [i for i in own if places[i][1] == 0]
    segments = scores.features.get("segments")

    def picked(rows: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """The model's own tokens of the chosen answers."""
        if segments is None:
            return [rows[i] for i in chosen]
        return [rows[i][segments[i] >= 0] for i in chosen]

    def mean(values: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        flat = torch.cat(picked(in_flat_order(values, pack), chosen)).to(output.logps.dtype)
        return flat.mean(), flat.new_tensor(len(flat))

    metrics = {
        "entropy": mean(output.entropy, own),
        "mean_token_accuracy": mean(output.correct, first),
    }
    if batch.kind == "preference" and batch.width == 2:
        for number, side in enumerate(("chosen", "rejected")):
            chosen = [i for i in own if places[i][1] == number]
            sums = torch.stack([row.detach().sum() for row in picked(scores.logps, chosen)])
            metrics[f"logps/{side}"] = (sums.mean(), sums.new_tensor(len(sums)))
            metrics[f"logits/{side}"] = mean(output.logits, chosen)
    return metrics
