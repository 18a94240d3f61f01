"""What one seed of a synthetic experiment is made from."""

import random
from typing import Generic, TypeVar

ScaleT = TypeVar("ScaleT")


class SeededWorld(Generic[ScaleT]):
    """Base of all that the runs of one seed share.

    scale: how large everything is
    seed:  number of the repetition
    """

    def __init__(self, scale: ScaleT, seed: int) -> None:
        self.scale = scale
        self.seed = seed

    def draw(self, purpose: int) -> random.Random:
        """Randomness of its own for each purpose."""
        return random.Random(1000 * self.seed + purpose)
