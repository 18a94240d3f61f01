"""How numbers are said."""

from tokenq.monitor.findings.finding import Evidence
from tokenq.monitor.findings.looks import Held
from tokenq.monitor.identity import Interval


def said(interval: Interval, sign: float = 1.0, digits: int = 2) -> str:
    """Estimate and 95 % interval; `sign` -1 turns both round."""
    text = f"{sign * interval.mean:.{digits}f}"
    if interval.low is None or interval.high is None:
        return text
    ends = sorted((sign * interval.low, sign * interval.high))
    return f"{text} (95 %: {ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def turned(interval: Interval) -> Interval:
    """The interval of the negative quantity."""
    if interval.low is None or interval.high is None:
        return Interval(-interval.mean, None, None)
    return Interval(-interval.mean, -interval.high, -interval.low)


def percent(share: float) -> str:
    """Of a share in [0, 1]."""
    return f"{100 * share:.0f} %"


def evidence(found: Held, quantity: str, unit: str, *, falls: bool = False) -> Evidence:
    """What a finding rests on; `falls`: the rows were turned round to look for a fall."""
    shown = turned(found.interval) if falls else found.interval
    return Evidence(quantity, unit, shown, min(found.error, 1.0))
