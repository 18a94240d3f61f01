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
    from tokenq.judges.comparisons import Answer as Answer
    from tokenq.judges.comparisons import ComparingJudge as ComparingJudge
    from tokenq.judges.comparisons import Comparison as Comparison
    from tokenq.judges.comparisons import Prompt as Prompt
    from tokenq.judges.comparisons import ScoringJudge as ScoringJudge
    from tokenq.judges.comparisons import Verdict as Verdict
    from tokenq.judges.comparisons import prompt_key as prompt_key
    from tokenq.judges.endpoint import Endpoint as Endpoint
    from tokenq.judges.endpoint import read_choice as read_choice
    from tokenq.judges.figure import reliability_figure as reliability_figure
    from tokenq.judges.gold import Contains as Contains
    from tokenq.judges.gold import ExactMatch as ExactMatch
    from tokenq.judges.gold import Matches as Matches
    from tokenq.judges.gold import NumberMatch as NumberMatch
    from tokenq.judges.gold import length as length
    from tokenq.judges.gold import lexicon_valence as lexicon_valence
    from tokenq.judges.implicit_reward import ImplicitReward as ImplicitReward
    from tokenq.judges.journal import VerdictJournal as VerdictJournal
    from tokenq.judges.judging import judge_comparisons as judge_comparisons
    from tokenq.judges.length_control import LengthControl as LengthControl
    from tokenq.judges.length_control import length_controlled as length_controlled
    from tokenq.judges.pair_accuracy import PairReport as PairReport
    from tokenq.judges.pair_accuracy import PairScore as PairScore
    from tokenq.judges.pair_accuracy import ResponseScore as ResponseScore
    from tokenq.judges.pair_accuracy import judge_pairs as judge_pairs
    from tokenq.judges.responses import Responses as Responses
    from tokenq.judges.responses import pair_up as pair_up
    from tokenq.judges.responses import read_responses as read_responses
    from tokenq.judges.reward_model import RewardModel as RewardModel
    from tokenq.judges.running import run_judges as run_judges
    from tokenq.judges.scoring import score_pairs as score_pairs
    from tokenq.judges.specs import Resources as Resources
    from tokenq.judges.specs import parse_judge as parse_judge
    from tokenq.judges.summary import JudgeReport as JudgeReport
    from tokenq.judges.summary import summarise as summarise
    from tokenq.judges.wins import Agreement as Agreement
    from tokenq.judges.wins import WinRate as WinRate
    from tokenq.judges.wins import agreement as agreement
    from tokenq.judges.wins import win_rate as win_rate

_HOMES = {
    "Accuracy": "accuracy",
    "Agreement": "wins",
    "Answer": "comparisons",
    "Calibration": "calibration",
    "ComparingJudge": "comparisons",
    "Comparison": "comparisons",
    "Contains": "gold",
    "Endpoint": "endpoint",
    "ExactMatch": "gold",
    "ImplicitReward": "implicit_reward",
    "JudgeReport": "summary",
    "LengthControl": "length_control",
    "Matches": "gold",
    "NumberMatch": "gold",
    "PairReport": "pair_accuracy",
    "PairScore": "pair_accuracy",
    "Prompt": "comparisons",
    "Resources": "specs",
    "ResponseScore": "pair_accuracy",
    "Responses": "responses",
    "RewardModel": "reward_model",
    "ScoringJudge": "comparisons",
    "Verdict": "comparisons",
    "VerdictJournal": "journal",
    "WinRate": "wins",
    "agreement": "wins",
    "calibrate": "calibration",
    "count_wins": "accuracy",
    "judge_comparisons": "judging",
    "judge_pairs": "pair_accuracy",
    "length": "gold",
    "length_controlled": "length_control",
    "lexicon_valence": "gold",
    "pair_up": "responses",
    "parse_judge": "specs",
    "prompt_key": "comparisons",
    "read_choice": "endpoint",
    "read_responses": "responses",
    "reliability_figure": "figure",
    "run_judges": "running",
    "score_pairs": "scoring",
    "summarise": "summary",
    "win_rate": "wins",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
