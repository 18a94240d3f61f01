"""Direct preference optimisation as token-level inverse Q-learning."""

from dataclasses import dataclass

from torch import Tensor

from tokenq.objectives.base import require_label_smoothing, smoothed_sigmoid
from tokenq.objectives.pairwise import DivergencePairwise


@dataclass(frozen=True)
class DPO(DivergencePairwise):
    """Sigmoid preference loss over summed per-step implicit rewards.

    With the implicit reward (equal to the optimal advantage) of a step
    `r_t = beta * (log pi(a_t|s_t) - log pi_ref(a_t|s_t))`, the loss of a pair is

        -log sigmoid(sum_t r_t(chosen) - sum_t r_t(rejected))

    eq. 9 of "From r to Q*" (arXiv 2404.12358), the same as eq. 7 of DPO (arXiv 2305.18290) since
    the log-probability of a response is the sum over its tokens. With `label_smoothing` e the
    labels are taken to be flipped with probability e (conservative DPO, E. Mitchell's note of
    2023): `-(1-e) log sigmoid(m) - e log sigmoid(-m)`. TRL's "sigmoid" has no label smoothing.

    label_smoothing: share of labels taken to be flipped, in [0, 0.5)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_label_smoothing(self.label_smoothing)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss [B] of pairs whose responses have these scores [B]."""
        return smoothed_sigmoid(self.beta * (chosen - rejected), self.label_smoothing)
