"""Objectives: pure functions of per-step log-probabilities, one family a file.

Imports torch only. To add one: a file with a dataclass, a line in `OBJECTIVES`, its test.
"""

from tokenq.objectives.aot import AOT, AOTUnpaired
from tokenq.objectives.apo import APODown, APOZero
from tokenq.objectives.base import Metrics, Objective
from tokenq.objectives.batch import (
    LabelledLogps,
    PairLogps,
    RankedLogps,
    ResponseLogps,
    StepFeatures,
)
from tokenq.objectives.bco import BCO
from tokenq.objectives.bco_pair import BCOPair
from tokenq.objectives.bmc import BMC
from tokenq.objectives.cpl import CPL, CPLPlackettLuce, CPLRanked
from tokenq.objectives.cpo import CPO
from tokenq.objectives.discopop import DiscoPOP
from tokenq.objectives.dmpo import DMPO
from tokenq.objectives.dpo import DPO
from tokenq.objectives.dpop import DPOP
from tokenq.objectives.exo import EXO
from tokenq.objectives.hinge import Hinge
from tokenq.objectives.implicit_prm import ImplicitPRM
from tokenq.objectives.ipo import IPO
from tokenq.objectives.kto import KTO, APOZeroUnpaired
from tokenq.objectives.length_normalised import LengthNormalisedDPO
from tokenq.objectives.lipo import LiPO
from tokenq.objectives.nca import NCA
from tokenq.objectives.orpo import ORPO
from tokenq.objectives.plackett_luce import PlackettLuce
from tokenq.objectives.q_rm import QRM
from tokenq.objectives.robust import RobustDPO
from tokenq.objectives.sepo import SePO
from tokenq.objectives.sft import SFT
from tokenq.objectives.simpo import AlphaPO, SimPO
from tokenq.objectives.softmax_dpo import SoftmaxDPO
from tokenq.objectives.sppo import SPPOHard
from tokenq.objectives.tdpo import TDPO
from tokenq.objectives.tgdpo import TGDPO
from tokenq.objectives.tpo import TPO

OBJECTIVES: dict[str, type] = {
    "dpo": DPO,
    "sigmoid": DPO,
    "sigmoid_norm": LengthNormalisedDPO,
    "robust": RobustDPO,
    "dpop": DPOP,
    "ipo": IPO,
    "hinge": Hinge,
    "exo_pair": EXO,
    "nca_pair": NCA,
    "bco_pair": BCOPair,
    "sppo_hard": SPPOHard,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "aot": AOT,
    "aot_unpaired": AOTUnpaired,
    "discopop": DiscoPOP,
    "sft": SFT,
    "simpo": SimPO,
    "alphapo": AlphaPO,
    "cpo": CPO,
    "orpo": ORPO,
    "kto": KTO,
    "apo_zero_unpaired": APOZeroUnpaired,
    "bco": BCO,
    "plackett_luce": PlackettLuce,
    "softmax_dpo": SoftmaxDPO,
    "lipo": LiPO,
    "tpo": TPO,
    "tdpo": TDPO,
    "tgdpo": TGDPO,
    "sepo": SePO,
    "bmc": BMC,
    "cpl": CPL,
    "cpl_ranked": CPLRanked,
    "cpl_plackett_luce": CPLPlackettLuce,
    "dmpo": DMPO,
    "implicit_prm": ImplicitPRM,
    "q_rm": QRM,
}
"""Names accepted as `loss_type`. `sigmoid` is the name that TRL gives to DPO."""

__all__ = [
    "AOT",
    "BCO",
    "BMC",
    "CPL",
    "CPO",
    "DMPO",
    "DPO",
    "DPOP",
    "EXO",
    "IPO",
    "KTO",
    "NCA",
    "OBJECTIVES",
    "ORPO",
    "QRM",
    "SFT",
    "TDPO",
    "TGDPO",
    "TPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "APOZeroUnpaired",
    "AlphaPO",
    "BCOPair",
    "CPLPlackettLuce",
    "CPLRanked",
    "DiscoPOP",
    "Hinge",
    "ImplicitPRM",
    "LabelledLogps",
    "LengthNormalisedDPO",
    "LiPO",
    "Metrics",
    "Objective",
    "PairLogps",
    "PlackettLuce",
    "RankedLogps",
    "ResponseLogps",
    "RobustDPO",
    "SPPOHard",
    "SePO",
    "SimPO",
    "SoftmaxDPO",
    "StepFeatures",
]
