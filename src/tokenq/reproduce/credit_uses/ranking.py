"""How good the response is that a signal ranks first, by what people say of it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenq.credit.localisation import Bootstrap, Estimate, Marked
from tokenq.credit.ranking import SIGNALS, ResponseSums, ranked_responses
from tokenq.reproduce.credit_uses.film import HeldOutPair, Record
from tokenq.reproduce.localisation.measures import share

REWARD, PER_TOKEN = "implicit_reward", "implicit_reward_per_token"
LONGER, RANDOM, BEST = "longer", "random", "best"
"""What is not among `SIGNALS`: length the other way round; the mean over a group, which a random
pick has on average; the highest rating in the group."""


def ranking(
    pairs: Sequence[HeldOutPair],
    by_seed: Sequence[Sequence[Record]],
    sizes: Sequence[int],
    resamples: int,
) -> dict[str, Any]:
    """Mean human rating of the first by each signal, by size of the group; intervals over groups.

    by_seed: of each seed, the records of the pairs
    sizes:   of groups; each draws its own from the same texts, none twice
    """
    ratings = [r for pair in pairs for r in (pair.chosen_rating, pair.rejected_rating)]
    scored = [_sums(records) for records in by_seed]
    return {str(size): _of_size(size, ratings, scored, resamples) for size in sizes}


def rating_of_first(signal: str, sums: Sequence[ResponseSums], ratings: Sequence[float]) -> float:
    """People's rating of the response of a group that `signal` ranks first."""
    if signal == RANDOM:
        return float(np.mean(ratings))
    if signal == BEST:
        return max(ratings)
    names = [str(place) for place in range(len(sums))]
    if signal == LONGER:
        return ratings[ranked_responses(names, sums, "shorter")[-1].place]
    return ratings[ranked_responses(names, sums, signal)[0].place]


def _of_size(
    size: int, ratings: Sequence[float], scored: Sequence[Sequence[ResponseSums]], resamples: int
) -> dict[str, Any]:
    groups = _groups(len(ratings), size)
    bootstrap = Bootstrap(map(str, range(len(groups))), resamples=resamples)

    def estimate(signal: str) -> Estimate:
        firsts = [
            [
                Marked(
                    [
                        rating_of_first(
                            signal, [sums[at] for at in group], [ratings[at] for at in group]
                        )
                    ],
                    [False],
                    str(number),
                )
                for number, group in enumerate(groups)
            ]
            for sums in scored
        ]
        return bootstrap(firsts, share)

    found = {name: estimate(name) for name in (*SIGNALS, LONGER, RANDOM, BEST)}
    return {
        "groups": len(groups),
        "rating": {name: each.to_dict() for name, each in found.items()},
        "reward less": {
            name: found[REWARD].minus(each).to_dict()
            for name, each in found.items()
            if name != REWARD
        },
    }


def _groups(count: int, size: int) -> list[list[int]]:
    places = list(range(count))
    random.Random(0).shuffle(places)
    return [places[at : at + size] for at in range(0, count - size + 1, size)]


def _sums(records: Sequence[Mapping[str, Any]]) -> list[ResponseSums]:
    """Of the chosen and the rejected response of each record, in this order."""
    return [
        ResponseSums.of_record(record["responses"][name])
        for record in records
        for name in ("chosen", "rejected")
    ]
