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
    found: dict[str, Any] = {"accuracy": {}, "shift": {}}
    for kind in (CHOSEN, *CHANGES):
        wins = [
            [
                Marked([(np.sign(own[kind] - own[REJECTED]) + 1) / 2], [False], group)
                for group, own in rewards.items()
                if kind in own
            ]
            for rewards in seeds
        ]
        if not all(wins):
            continue
        accuracy: Estimate = bootstrap(wins, share)
        found["accuracy"][kind] = accuracy.to_dict()
    for kind in (kind for kind in CHANGES if kind in found["accuracy"]):
        shifts = [_shifts(rewards, kind) for rewards in seeds]
        found["shift"][kind] = {
            "mean": float(np.mean([each.mean() for each in shifts])),
            "size": float(np.mean([np.abs(each).mean() for each in shifts])),
        }
    return found


def _shifts(rewards: _Rewards, kind: str) -> np.ndarray:
    """[pairs] change of the better text's reward over the mean size of a margin."""
    margins = [abs(own[CHOSEN] - own[REJECTED]) for own in rewards.values()]
    changes = [own[kind] - own[CHOSEN] for own in rewards.values() if kind in own]
    scale = float(np.mean(margins))
    return np.array(changes) / scale if scale else np.zeros(len(changes))
