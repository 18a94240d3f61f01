"""A run in a few lines: what the page and the terminal say before any figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenq.monitor.identity import Interval
from tokenq.monitor.measures import difference, rows
from tokenq.monitor.readings import HELD_OUT, History
from tokenq.monitor.summary import Values, last_step, seconds, values
from tokenq.report.monitor_numbers import duration, share

_ROWS = (
    ("chosen reward", "β·nats", ("likelihood/chosen_reward", "rewards/chosen")),
    ("rejected reward", "β·nats", ("likelihood/rejected_reward", "rewards/rejected")),
    ("reference’s responses", "β·nats", ("likelihood/expected_reward",)),
    ("−β·KL(ref ‖ policy)", "β·nats", ("likelihood/minus_beta_kl",)),
    ("margin", "β·nats", ("likelihood/margin", "rewards/margins")),
    ("accuracy, reward", "share", ("likelihood/accuracy", "rewards/accuracies")),
    ("accuracy, likelihood", "share", ("likelihood/ranking_accuracy",)),
    ("displaced at the fork", "probability", ("likelihood/fork_other",)),
    ("log-prob of top token", "nats", ("likelihood/peak_chosen",)),
    ("entropy, responses", "nats", ("likelihood/entropy_responses",)),
    ("length of samples", "tokens", ("likelihood/sample_tokens",)),
    ("loss", "nats", ("loss",)),
)
"""Label, unit and the measure, or where no probe has been made what logs call it."""

_WIDTH, _HEIGHT = 96.0, 20.0


@dataclass(frozen=True)
class GlanceRow:
    """A measure from its first to its last value.

    change: from first to last, pair by pair where it is known of the same pairs
    course: all means in order
    """

    label: str
    unit: str
    start: Interval
    now: Interval
    change: Interval
    course: Sequence[float]

    @property
    def path(self) -> str:
        """Points of a polyline in a box of 96 by 20."""
        course = self.course if len(self.course) > 1 else [*self.course, *self.course]
        low, high = min(course), max(course)
        scale = (_HEIGHT - 4) / (high - low) if high > low else 0.0
        places = (
            (_WIDTH * i / (len(course) - 1), _HEIGHT - 2 - scale * (value - low))
            for i, value in enumerate(course)
        )
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def glance(history: History, known: Values | None = None) -> list[GlanceRow]:
    """The main measures that the history has; `known`: its `values`, where they are at hand."""
    known = values(history) if known is None else known
    found = []
    for label, unit, names in _ROWS:
        name = next((name for name in names if name in known), None)
        if name is not None:
            (first, start), (last, now) = known[name][0], known[name][-1]
            change = _change(history, name, first, last)
            if change is None:
                change = Interval(now.mean - start.mean, None, None)
            course = [interval.mean for _, interval in known[name]]
            found.append(GlanceRow(label, unit, start, now, change, course))
    return found


def _change(history: History, name: str, first: int, last: int) -> Interval | None:
    read = {reading.step: reading for reading in history.readings}
    if history.setup is None or first not in read or last not in read:
        return None
    now, then = (rows(history.setup, read[step]) for step in (last, first))
    return difference(now[name], then[name]).interval() if name in now and name in then else None


def facts(history: History) -> list[tuple[str, str]]:
    """What stands above all else: the step, and how the run was watched."""
    found = [("Step", f"{last_step(history):,}")]
    if history.setup is None or not history.readings:
        return [*found, ("Log lines", f"{len(history.logs):,}")]
    pairs = history.setup.probe.pairs
    held_out = sum(pair.source == HELD_OUT for pair in pairs)
    found += [
        ("Probes", f"{len(history.readings):,}"),
        ("Pairs", f"{held_out} held out, {len(pairs) - held_out} trained on"),
        ("β", f"{history.setup.beta:g}"),
    ]
    spent, trained = seconds(history)
    if trained:
        found.append(("In the monitor", f"{duration(spent)}, {share(spent / trained)}"))
    return found
