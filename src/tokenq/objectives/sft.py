"""Supervised fine-tuning: the likelihood of the response, nothing else."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenq.objectives.base import NOTHING, Metrics, Need
from tokenq.objectives.batch import ResponseLogps


@dataclass(frozen=True)
class SFT:
    """Mean negative log-likelihood over all response tokens of the batch, in nats per token.

    `-(1/N) sum_t log pi(a_t|s_t)` with N the number of unmasked steps: every token counts the same,
    whichever response it stands in. On preference pairs it is applied to the chosen side.
    """

    kind: ClassVar[Literal["sft"]] = "sft"
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, batch: ResponseLogps) -> tuple[Tensor, Metrics]:
        nll = -batch.log_probs.sum() / self.weight(batch).clamp_min(1)
        return nll, {"nll": nll.detach()}

    def weight(self, batch: ResponseLogps) -> Tensor:
        """Number of response tokens."""
        return batch.lengths.sum()
