"""What was expected of the three uses, and whether it holds."""

from collections.abc import Mapping
from typing import Any

from tokenq.reproduce.credit_uses.locating import BY_COIN, PLAIN, SURPRISAL
from tokenq.reproduce.credit_uses.ranking import BEST, PER_TOKEN, RANDOM
from tokenq.reproduce.findings import Finding, judged
from tokenq.reproduce.statistics import Estimate


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Each expectation as a difference that should be above 0; intervals as in the tables."""
    return [
        *_of_ranking(results["rank"]),
        *_of_cleaning(results["clean"]),
        *_of_locating(results["locate"]),
    ]


def _of_ranking(ranking: Mapping[str, Any]) -> list[Finding]:
    size = max(ranking, key=int)
    less = ranking[size]["reward less"]
    expected = {
        RANDOM: "rank: the first by implicit reward is better than a random one",
        "policy_logp": "rank: better than the first by the policy's likelihood",
        "reference_logp": "rank: better than the first by the reference's likelihood",
        "shorter": "rank: better than the shortest",
        PER_TOKEN: "rank: the sum is better than the mean over tokens",
        BEST: "rank: as good as the best of the group, or better",
    }
    return [
        judged(claim, f"mean rating, groups of {size}: reward less {name}", _plain(less[name]))
        for name, claim in expected.items()
    ]


def _of_cleaning(cleaning: Mapping[str, Any]) -> list[Finding]:
    found = []
    for rate, own in cleaning.items():
        for claim, each in own.get("differences", {}).items():
            measured = f"{each['measured']}, {rate} % exchanged"
            found.append(judged(f"clean: {claim}", measured, _plain(each["value"])))
    return found


def _of_locating(locating: Mapping[str, Any]) -> list[Finding]:
    found = []
    for rate, own in locating["rates"].items():
        for kind in ("truthful", "paraphrase", "consistent"):
            measured = own[PLAIN]["measures"][f"flagged {kind}"]
            found.append(
                judged(
                    f"locate: at most {100 * float(rate):g} % of {kind} summaries are flagged",
                    "stated rate less realised, plain credit",
                    _turned(measured, float(rate)),
                )
            )
        less = own[PLAIN]["less"]
        at = f"locate: at {100 * float(rate):g} %"
        found += [
            judged(
                f"{at}, more errors are met than by surprisal",
                "share of wrong summaries, plain credit less surprisal",
                _plain(less[SURPRISAL]["touched"]),
            ),
            judged(
                f"{at}, more errors are met than with labels by coin",
                "share of wrong summaries, plain credit less credit by coin labels",
                _plain(less[BY_COIN]["touched"]),
            ),
            judged(
                f"{at}, fewer reworded summaries are flagged than by surprisal",
                "share of reworded summaries, surprisal less plain credit",
                _turned(less[SURPRISAL]["flagged paraphrase"]),
            ),
        ]
    return found


def _plain(value: Mapping[str, Any]) -> Estimate:
    return {
        "mean": value["value"],
        "low": value["low"],
        "high": value["high"],
        "n": len(value["by_seed"]),
    }


def _turned(value: Mapping[str, Any], bound: float = 0.0) -> Estimate:
    """`bound` less the value."""
    known = value["low"] is not None
    return {
        "mean": bound - value["value"],
        "low": bound - value["high"] if known else None,
        "high": bound - value["low"] if known else None,
        "n": len(value["by_seed"]),
    }
