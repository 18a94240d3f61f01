"""How rewards of whole texts withstand a change of the surface, measured from tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenq.credit.localisation import Bootstrap, Estimate, Marked
from tokenq.reproduce.localisation.measures import share
from tokenq.reproduce.localisation.surface import CHANGES, CHOSEN, REJECTED
from tokenq.reproduce.localisation.tables import Table


def surface_measures(
    tables: Mapping[str, Sequence[Table]], signals: Mapping[str, str], resamples: int
) -> dict[str, Any]:
    """Of each arm, how rewards of whole texts withstand a change of the surface.

    tables:  of each arm, one a seed
    signals: of each arm, the signal whose sum with its sign turned is the text's reward

    accuracy: share of pairs whose better text, changed or not, has the higher reward; of the pairs
              whose better text a change changes
    less unchanged: what that is above the share of the same pairs as they are
    shift:    change of the better text's reward, and its size, both as a multiple of the mean size
              of the difference between the two texts of a pair
    """
    items = next(iter(tables.values()))[0]["items"]
    bootstrap = Bootstrap((item["group"] for item in items), resamples=resamples)
    return {
        arm: _of_arm([_rewards(table, signals[arm]) for table in own], bootstrap)
        for arm, own in tables.items()
        if arm in signals
    }


_Rewards = dict[str, dict[str, float]]
"""Of each group, the reward of each kind of text."""


def _rewards(table: Table, signal: str) -> _Rewards:
    found: _Rewards = {}
    for item in table["items"]:
        found.setdefault(item["group"], {})[item["kind"]] = -sum(item["signals"][signal])
    return found


def _of_arm(seeds: Sequence[_Rewards], bootstrap: Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": {}, "less unchanged": {}, "shift": {}}
    for kind in (CHOSEN, *CHANGES):
        wins = [_wins(rewards, kind, kind) for rewards in seeds]
        if not all(wins):
            continue
        accuracy: Estimate = bootstrap(wins, share)
        found["accuracy"][kind] = accuracy.to_dict()
        if kind != CHOSEN:
            unchanged = bootstrap([_wins(rewards, CHOSEN, kind) for rewards in seeds], share)
            found["less unchanged"][kind] = accuracy.minus(unchanged).to_dict()
    for kind in (kind for kind in CHANGES if kind in found["accuracy"]):
        shifts = [_shifts(rewards, kind) for rewards in seeds]
        found["shift"][kind] = {
            "mean": float(np.mean([each.mean() for each in shifts])),
            "size": float(np.mean([np.abs(each).mean() for each in shifts])),
        }
    return found


def _wins(rewards: _Rewards, kind: str, where: str) -> list[Marked]:
    """1 for each pair whose text of this kind is above the worse one, of pairs that have `where`;
    ties half."""
    return [
        Marked([(np.sign(own[kind] - own[REJECTED]) + 1) / 2], [False], group)
        for group, own in rewards.items()
        if where in own
    ]


def _shifts(rewards: _Rewards, kind: str) -> np.ndarray:
    """[pairs] change of the better text's reward over the mean size of a margin."""
    margins = [abs(own[CHOSEN] - own[REJECTED]) for own in rewards.values()]
    changes = [own[kind] - own[CHOSEN] for own in rewards.values() if kind in own]
    scale = float(np.mean(margins))
    return np.array(changes) / scale if scale else np.zeros(len(changes))
