"""What a finding is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenq.monitor.identity import Interval

Severity = Literal["note", "warning", "alarm"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "alarm")
"""note: worth knowing, nothing to do; warning: likely to hurt if it goes on; alarm: the run goes
wrong."""


@dataclass(frozen=True)
class Evidence:
    """The number that a finding rests on.

    quantity: what was estimated, in words
    unit:     such as "nats", "beta x nats", "share"
    interval: estimate over the probe's rows
    error:    probability of such a finding in a run without the effect, over all probes so far;
              None where no test is behind it (logs without rows)
    """

    quantity: str
    unit: str
    interval: Interval
    error: float | None


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows.

    name:     of the rule, such as "displacement"
    since:    optimiser step from which on it has held without a break
    title:    one line
    what:     what happened, with its numbers
    why:      what theory says of it, with its source
    change:   what to do, the first thing first; empty for a note that asks for nothing
    measures: names of the measures that show it, see `monitor.measures`
    evidence: how sure
    """

    name: str
    severity: Severity
    since: int
    title: str
    what: str
    why: str
    change: Sequence[str]
    measures: Sequence[str]
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        evidence = self.evidence
        return {
            "name": self.name,
            "severity": self.severity,
            "since": self.since,
            "title": self.title,
            "what": self.what,
            "why": self.why,
            "change": list(self.change),
            "measures": list(self.measures),
            "evidence": evidence
            and {
                "quantity": evidence.quantity,
                "unit": evidence.unit,
                "error": evidence.error,
                **vars(evidence.interval),
            },
        }
