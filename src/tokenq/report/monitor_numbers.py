"""Numbers of the monitor as people read them, on the page and in the terminal alike."""

from tokenq.monitor.identity import Interval


def amount(value: float) -> str:
    """Three digits with a true minus sign; what is nothing but rounding is 0."""
    if abs(value) < 1e-7:
        return "0"
    usual = 1e-4 <= abs(value) < 1e5
    text = f"{value:.{_decimals(value)}f}" if usual else f"{value:.1e}"
    return text.replace("-", "−")


def bounded(interval: Interval) -> str:
    """The estimate with the ends of its interval, where it has some."""
    if interval.low is None or interval.high is None:
        return amount(interval.mean)
    return f"{amount(interval.mean)} [{amount(interval.low)}, {amount(interval.high)}]"


def share(value: float) -> str:
    """A probability or a change of one, as a percentage."""
    size = abs(100 * value)
    digits = 0 if size >= 99.95 else 1 if size >= 1 else 2
    return f"{100 * value:.{digits}f}".replace("-", "−") + " %"


def chance(probability: float) -> str:
    """A probability of error, as one is quoted."""
    return "below 0.001" if probability < 0.001 else f"{probability:.2g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _decimals(value: float) -> int:
    size = abs(value)
    return next((n for n, least in enumerate((100, 10, 0.995, 1e-3)) if size >= least), 5)


def opening(text: str) -> str:
    """The text as a sentence begins: its first letter large, all others as they are."""
    return text[:1].upper() + text[1:]
