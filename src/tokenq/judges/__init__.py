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
    from tokenq.judges.length_control import LengthControl as LengthControl
    from tokenq.judges.length_control import length_controlled as length_controlled
    from tokenq.judges.pair_accuracy import PairReport as PairReport
    from tokenq.judges.pair_accuracy import PairScore as PairScore
    from tokenq.judges.pair_accuracy import ResponseScore as ResponseScore
    from tokenq.judges.pair_accuracy import judge_pairs as judge_pairs
    from tokenq.judges.scoring import score_pairs as score_pairs
    from tokenq.judges.wins import Agreement as Agreement
    from tokenq.judges.wins import WinRate as WinRate
    from tokenq.judges.wins import agreement as agreement
    from tokenq.judges.wins import win_rate as win_rate

_HOMES = {
    "Accuracy": "accuracy",
    "Agreement": "wins",
    "Calibration": "calibration",
    "LengthControl": "length_control",
    "PairReport": "pair_accuracy",
    "PairScore": "pair_accuracy",
    "ResponseScore": "pair_accuracy",
    "WinRate": "wins",
    "agreement": "wins",
    "calibrate": "calibration",
    "count_wins": "accuracy",
    "judge_pairs": "pair_accuracy",
    "length_controlled": "length_control",
    "reliability_figure": "figure",
    "score_pairs": "scoring",
    "win_rate": "wins",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
