"""What a search maximises: the policy's likelihood, its log-ratio to the reference, or a mixture.

With pi* the optimal policy of a reward r under the tie beta to pi_ref, the two differ (eqs. 10-13
of "From r to Q*", arXiv 2404.12358): beta * sum log pi* is, up to a number of the prompt alone,
r + beta * log pi_ref, so likelihood search keeps to the reference; beta * sum log (pi*/pi_ref) is
the reward itself, up to such a number, with nothing that keeps the text fluent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.branches import REFERENCE

NAMES = ("likelihood", "log_ratio")
ACCEPTED = "likelihood, log_ratio, or a number: how much of log pi_ref is taken off (0 to 1)"


@dataclass(frozen=True)
class Score:
    """The sum over tokens of `searched - reference * log pi_ref`, in nats.

    searched:  log-probability under the distribution that is searched (the policy's)
    reference: 0 is the likelihood, 1 the log-ratio
    """

    reference: float = 0.0

    @classmethod
    def of(cls, given: "Score | str | float") -> "Score":
        """Read a score by name or as a number. Raises UserError for anything else."""
        if isinstance(given, Score):
            return given
        named = {"likelihood": 0.0, "log_ratio": 1.0}
        try:
            weight = named[given] if given in named else float(given)
        except (TypeError, ValueError):
            raise UserError(f"score is {given!r}; accepted: {ACCEPTED}") from None
        if not 0 <= weight <= 1:
            raise UserError(f"score is {given}; accepted: {ACCEPTED}")
        return cls(weight)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be read along."""
        return self.reference != 0

    def __call__(self, searched: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """Score tokens one by one.

        searched: log-probabilities under what is searched, any shape; -inf stays -inf
        logps:    those of the models, of the same shape
        """
        if not self.needs_reference:
            return searched
        gains = searched - self.reference * logps[REFERENCE]
        # A token that both models exclude would be nan, which sorts before every number.
        return gains.masked_fill(searched == -torch.inf, -torch.inf)
