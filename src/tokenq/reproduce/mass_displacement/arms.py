"""What is compared on the data set: which pairs are trained on, and with which objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from tokenq.objectives import OBJECTIVES
from tokenq.reproduce.mass_displacement.answers import Pair

Keep = Literal["all", "ches", "balanced", "random", "distinct", "near"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    loss:      name in `OBJECTIVES`
    arguments: hyper-parameters other than the objective's own defaults, which are its paper's
    nll:       weight of -log pi(y+) per token, added to the loss
    keep:      the pairs trained on: all, the half with the lowest CHES of means, the same among
               those whose right answer is yes and among the others (balanced), a random half,
               those that are no near-duplicates, or those that are (which only who made the data
               can know)
    """

    loss: str = "dpo"
    arguments: dict[str, Any] = field(default_factory=dict)
    nll: float = 0.0
    keep: Keep = "all"

    def objective(self) -> Any:
        """The objective with its hyper-parameters."""
        return OBJECTIVES[self.loss](**self.arguments)


FILTERS = {
    "DPO": Arm(),
    "DPO, CHES-filtered": Arm(keep="ches"),
    "DPO, CHES-filtered, balanced": Arm(keep="balanced"),
    "DPO, randomly filtered": Arm(keep="random"),
    "DPO, no near-duplicates": Arm(keep="distinct"),
    "DPO, near-duplicates only": Arm(keep="near"),
}
"""DPO on all pairs or on half of them, for as many steps."""

OBJECTIVE_ARMS = {
    "DPO": FILTERS["DPO"],
    "DPO + NLL": Arm(nll=1.0),
    "DPOP": Arm("dpop"),
    "DPOP, lambda 5": Arm("dpop", {"beta": 0.1, "dpop_lambda": 5.0}),
    "cDPO": Arm(arguments={"label_smoothing": 0.1}),
    "IPO": Arm("ipo"),
    "KTO": Arm("kto"),
    "TDPO": Arm("tdpo"),
    "SimPO": Arm("simpo"),
    "CPO": Arm("cpo"),
    "ORPO": Arm("orpo"),
    "SFT": Arm("sft"),
}
"""All pairs; SFT sees the chosen answers only, as a control without a margin."""

ARMS = {**FILTERS, **OBJECTIVE_ARMS}
WRITING = ("DPO", "DPO, CHES-filtered", "DPO + NLL", "DPOP")
"""Arms whose policies are also asked to write, at the end."""


def kept(arm: Arm, pairs: Sequence[Pair], ches: Sequence[float], seed: int) -> list[int]:
    """Numbers of the pairs that an arm trains on.

    ches: of each pair, normalised by length
    """
    numbers = list(range(len(pairs)))
    half = len(pairs) // 2
    if arm.keep == "ches":
        return _lowest(numbers, ches)
    if arm.keep == "balanced":
        sides = ([i for i in numbers if pairs[i].right == right] for right in ("yes", "no"))
        return sorted(i for side in sides for i in _lowest(side, ches))
    if arm.keep == "random":
        return sorted(Random(f"kept {seed}").sample(numbers, half))
    if arm.keep in ("distinct", "near"):
        return [i for i in numbers if (pairs[i].kind == "near") == (arm.keep == "near")]
    return numbers


def _lowest(numbers: Sequence[int], ches: Sequence[float]) -> list[int]:
    return sorted(sorted(numbers, key=lambda i: ches[i])[: len(numbers) // 2])
