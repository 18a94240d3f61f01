"""What `tokenq reproduce objectives` compares: names, hyper-parameters, and the controls."""

from dataclasses import dataclass, field
from typing import Any

from tokenq.errors import UserError

START = "start"
"""The model before any training."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    name:      as tables call it
    loss_type: name in `OBJECTIVES`
    arguments: hyper-parameters other than the objective's own defaults, which are its paper's
    flipped:   share of training pairs whose two sides are exchanged
    oracle:    the objective takes token rewards from the DPO run of the same seed
    live:      the reference is run in every step, for whole distributions
    """

    name: str
    loss_type: str
    arguments: dict[str, Any] = field(default_factory=dict)
    flipped: float = 0.0
    oracle: bool = False
    live: bool = False


DPO = Arm("dpo", "dpo")

ARMS = (
    DPO,
    Arm("dpo, labels by coin", "dpo", flipped=0.5),
    Arm("sft", "sft"),
    *(
        Arm(name, name)
        for name in (
            "simpo", "orpo", "cpo", "kto", "ipo", "hinge", "sigmoid_norm", "bco_pair", "apo_zero",
            "nca_pair", "exo_pair", "robust", "dpop",
        )
    ),
    Arm("tdpo", "tdpo", live=True),
    Arm("bmc", "bmc"),
    Arm("cpl", "cpl"),
    Arm("wpo", "dpo", {"use_weighting": True}),
    *(
        Arm(name, name)
        for name in (
            "bco", "plackett_luce", "sppo_hard", "apo_down", "discopop", "aot", "alphapo", "lipo",
            "softmax_dpo", "tpo", "q_rm", "implicit_prm",
        )
    ),
    Arm("sepo", "sepo", oracle=True),
    Arm("tgdpo", "tgdpo", oracle=True),
)  # fmt: skip
"""In the order in which they run. Objectives left out: second names (`sigmoid`), the unpaired form
of one that is here, and `dmpo`, which is DPO where answers have one turn."""


def chosen_arms(names: list[str] | None) -> list[Arm]:
    """The arms of these names, all for None. Raises UserError for an unknown one."""
    by_name = {arm.name: arm for arm in ARMS}
    for name in names or ():
        if name not in by_name:
            raise UserError(f"--objectives: {name!r} is unknown; accepted: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(ARMS)
