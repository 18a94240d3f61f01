"""Objectives: pure functions of per-step log-probabilities, one family a file.

Imports torch only. To add one: a file with a dataclass, a line in `OBJECTIVES`, its test.
"""

from tokenq.objectives.base import Metrics, Objective
from tokenq.objectives.batch import (
    LabelledLogps,
    PairLogps,
    RankedLogps,
    ResponseLogps,
    StepFeatures,
)
from tokenq.objectives.dpo import DPO
from tokenq.objectives.sft import SFT

OBJECTIVES: dict[str, type] = {"dpo": DPO, "sigmoid": DPO, "sft": SFT}
"""Names accepted as `loss_type`. `sigmoid` is the name that TRL gives to DPO."""

__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "LabelledLogps",
    "Metrics",
    "Objective",
    "PairLogps",
    "RankedLogps",
    "ResponseLogps",
    "StepFeatures",
]
