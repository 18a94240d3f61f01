"""What is measured in a probe: every measure's definition, unit, source and cost, and its value.

    MEASURES["likelihood/excess_decline"].definition
    measured(setup, reading)["likelihood/excess_decline"]     # mean and 95 % interval
    rows(setup, reading)["likelihood/excess_decline"]         # what it is the mean of

All are functions of the rows that a probe keeps, so a measure can be added to runs long ended.
"""

from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import pairs as pairs
from tokenq.monitor.measures import responses as responses
from tokenq.monitor.measures.registry import MEASURES, Measure, Rows, View, difference, per_token
from tokenq.monitor.readings import HELD_OUT, TRAINED, Reading, SetName, Setup

__all__ = [
    "MEASURES",
    "Measure",
    "Rows",
    "difference",
    "measured",
    "metrics",
    "per_token",
    "rows",
]


def rows(setup: Setup, reading: Reading) -> dict[str, Rows]:
    """The rows behind every measure that the reading has, by its name in :data:`MEASURES`.

    Rows of one measure stand in the same order in every reading of a run, those of samples
    excepted, which are new each time; :func:`difference` pairs all of them by prompt.
    """
    views: dict[SetName, View] = {s: View(setup, reading, s) for s in (HELD_OUT, TRAINED)}
    found = {name: each.of(views[each.source_set]) for name, each in MEASURES.items()}
    return {name: each for name, each in found.items() if each and len(each.means[0])}


def measured(setup: Setup, reading: Reading) -> dict[str, Interval]:
    """Every measure that the reading has, with its interval; what is missing is absent."""
    intervals = {name: each.interval() for name, each in rows(setup, reading).items()}
    return {name: each for name, each in intervals.items() if each is not None}


def metrics(setup: Setup, reading: Reading) -> dict[str, float]:
    """The means alone: what trackers are sent."""
    return {name: each.mean for name, each in measured(setup, reading).items()}
