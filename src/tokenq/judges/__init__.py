"""Judges: how well a model tells the better response of a pair, and how much to trust that.

Names are loaded at first use, so that importing this package needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenq.judges.accuracy import Accuracy as Accuracy
    from tokenq.judges.accuracy import count_wins as count_wins
    from tokenq.judges.calibration import Calibration as Calibration
    from tokenq.judges.calibration import calibrate as calibrate
    from tokenq.judges.figure import reliability_figure as reliability_figure
    from tokenq.judges.pair_accuracy import PairReport as PairReport
    from tokenq.judges.pair_accuracy import PairScore as PairScore
    from tokenq.judges.pair_accuracy import ResponseScore as ResponseScore
    from tokenq.judges.pair_accuracy import judge_pairs as judge_pairs
    from tokenq.judges.scoring import score_pairs as score_pairs

_HOMES = {
    "Accuracy": "accuracy",
    "Calibration": "calibration",
    "PairReport": "pair_accuracy",
    "PairScore": "pair_accuracy",
    "ResponseScore": "pair_accuracy",
    "calibrate": "calibration",
    "count_wins": "accuracy",
    "judge_pairs": "pair_accuracy",
    "reliability_figure": "figure",
    "score_pairs": "scoring",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
