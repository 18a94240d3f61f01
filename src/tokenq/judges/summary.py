"""What the verdicts of one judge say: win rates, what order did, what was not readable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenq.judges.accuracy import wilson_interval
from tokenq.judges.comparisons import Comparison, Verdict
from tokenq.judges.length_control import LengthControl, length_controlled
from tokenq.judges.wins import WinRate, win_rate


@dataclass(frozen=True)
class Share:
    """A share of `count` with Wilson's interval at 95 %."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Position:
    """What the order did to a comparing judge.

    first:        how often the response shown first was preferred, over all readable answers; 0.5
                  without a taste for a place, since the order is drawn at random
    inconsistent: share of comparisons that the two orders decided differently (they count as
                  ties); None where each was asked in one order only
    """

    first: Share
    inconsistent: float | None


@dataclass(frozen=True)
class Scores:
    """Mean scores of a scoring judge; `difference` ours less theirs, `difference_sd` its spread."""

    ours: float
    theirs: float
    difference: float
    difference_sd: float


@dataclass(frozen=True)
class JudgeReport:
    """What one judge says of a set of comparisons.

    win_rate, length_controlled: of the readable verdicts; None where there are none, or where
                lengths tell nothing apart (:func:`length_controlled`)
    unreadable: comparisons whose answer told no choice
    """

    win_rate: WinRate | None
    length_controlled: LengthControl | None
    unreadable: int
    position: Position | None
    scores: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def summarise(
    comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], *, seed: int = 0
) -> JudgeReport:
    """Read the verdicts of one judge; `seed` of the bootstrap. Raises ValueError for none."""
    if not verdicts:
        raise ValueError("no verdicts")
    told = [
        (verdict.preference, float(each.length_difference), each.key)
        for each, verdict in zip(comparisons, verdicts, strict=True)
        if verdict.preference is not None
    ]
    rate, control = None, None
    if told:
        preferences, differences, prompts = zip(*told, strict=True)
        rate = win_rate(preferences, prompts, seed=seed)
        control = length_controlled(preferences, differences, prompts, seed=seed)
    return JudgeReport(
        win_rate=rate,
        length_controlled=control,
        unreadable=len(verdicts) - len(told),
        position=_position(verdicts),
        scores=_scores(verdicts),
    )


def _position(verdicts: Sequence[Verdict]) -> Position | None:
    choices = [
        each.answer.choice
        for verdict in verdicts
        for each in verdict.asked
        if each.answer.choice is not None
    ]
    if not choices:
        return None
    share = (choices.count("first") + 0.5 * choices.count("tie")) / len(choices)
    first = Share(share, *wilson_interval(share, len(choices)), len(choices))
    twice = [each for each in verdicts if len(each.asked) == 2 and each.preference is not None]
    inconsistent = float(np.mean([each.inconsistent for each in twice])) if twice else None
    return Position(first, inconsistent)


def _scores(verdicts: Sequence[Verdict]) -> Scores | None:
    scores = [each.scores for each in verdicts if each.scores is not None]
    if not scores:
        return None
    ours, theirs = np.array(scores).T
    return Scores(
        float(ours.mean()),
        float(theirs.mean()),
        float((ours - theirs).mean()),
        float((ours - theirs).std()),
    )
