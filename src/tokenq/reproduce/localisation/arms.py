"""What is compared: objectives, data sizes and controls, all trained on labels of whole responses.

`Arm` says which loss; here stands what else differs between two runs of one task.
"""

from dataclasses import dataclass, replace
from typing import Literal

from tokenq.errors import UserError
from tokenq.reproduce.objective_arms import Arm

Learner = Literal["policy", "reward model"]


@dataclass(frozen=True)
class CreditArm(Arm):
    """A way to train whose token scores are compared.

    learner:   a policy, whose tokens are scored by log-ratios (or logits), or a reward model with a
               scalar head, whose tokens are scored by prefix differences
    share:     share of the task's training pairs that is seen: the first of them; half, so that one
               arm can have twice as many
    variant:   which training pairs, where a task has several kinds; "" the usual ones
    after_sft: train first on the chosen responses; that model is then start and reference
    """

    learner: Learner = "policy"
    share: float = 0.5
    variant: str = ""
    after_sft: bool = False


DPO = CreditArm("dpo", "dpo")
COIN, SFT, REWARD_MODEL = "dpo, labels by coin", "sft", "reward model"

OBJECTIVE_ARMS = (
    DPO,
    CreditArm(COIN, "dpo", flipped=0.5),
    CreditArm(SFT, "sft"),
    CreditArm("dpo after sft", "dpo", after_sft=True),
    CreditArm("tdpo", "tdpo", live=True),
    CreditArm("bmc", "bmc"),
    CreditArm("cpl, bias 0.5", "cpl", {"contrastive_bias": 0.5}),
    CreditArm("cpl, bias 1", "cpl", {"contrastive_bias": 1.0}),
    CreditArm("sigmoid_norm", "sigmoid_norm"),
    CreditArm("implicit_prm", "implicit_prm"),
    CreditArm("q_rm", "q_rm"),
    CreditArm(REWARD_MODEL, REWARD_MODEL, learner="reward model"),
)
"""CPL's bias is the lambda of its paper."""

SIZE_ARMS = (
    CreditArm("dpo, quarter of the pairs", "dpo", share=0.125),
    CreditArm("dpo, half of the pairs", "dpo", share=0.25),
    CreditArm("dpo, twice the pairs", "dpo", share=1.0),
)
"""As many as all other arms see, times a quarter, a half and two."""

PLANTED_ARMS = (
    CreditArm("dpo, loose pairs", "dpo", variant="loose"),
    CreditArm("dpo, number and antonym", "dpo", share=1.0, variant="number+antonym"),
)
"""Pairs that differ in more than the detail; and two of the kinds of error alone, which leaves the
other two as kinds that training has not seen."""

_FILM_ONLY = ("q_rm", "sigmoid_norm", "cpl, bias 0.5", "cpl, bias 1")
"""Objectives left to the film reviews, as are the sizes: prompts of the other tasks differ from row
to row and are long, so that their runs are dear."""

HUMAN_ARMS = tuple(
    replace(arm, share=1.0) for arm in OBJECTIVE_ARMS if arm.name in (DPO.name, COIN, REWARD_MODEL)
)
SUMMEDITS_ARMS = (
    *HUMAN_ARMS,
    *(replace(arm, share=1.0) for arm in OBJECTIVE_ARMS if arm.name == "implicit_prm"),
    CreditArm("dpo, differing sentence", "dpo", share=1.0, variant="steps"),
)
"""Step-DPO needs answers of several steps that begin alike, which only edited summaries are."""

SURFACE_ARMS = tuple(arm for arm in OBJECTIVE_ARMS if arm.name in (DPO.name, REWARD_MODEL))
"""Of the task `surface`, whose texts have no truth of tokens and which is measured by itself."""

ARMS: dict[str, tuple[CreditArm, ...]] = {
    "film": (*OBJECTIVE_ARMS, *SIZE_ARMS),
    "planted": (
        *(arm for arm in OBJECTIVE_ARMS if arm.name not in _FILM_ONLY),
        *PLANTED_ARMS,
    ),
    "summedits": SUMMEDITS_ARMS,
    "qa": HUMAN_ARMS,
    "surface": SURFACE_ARMS,
}
"""Of each task, in the order in which they run."""


def chosen_arms(task: str, names: list[str] | None) -> list[CreditArm]:
    """The task's arms of these names, all for None; those of other tasks are passed over.

    Raises UserError for a name that no task has.
    """
    known = {arm.name for arms in ARMS.values() for arm in arms}
    for name in names or ():
        if name not in known:
            accepted = ", ".join(map(repr, sorted(known)))
            raise UserError(f"--arms: {name!r} is unknown; accepted: {accepted}")
    return [arm for arm in ARMS[task] if names is None or arm.name in names]
