"""What a trainer's own log lines show. They are means over batches: no test stands behind these."""

import math
from bisect import insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenq.monitor.findings import advice
from tokenq.monitor.findings.finding import Evidence, Finding
from tokenq.monitor.findings.looks import Array, interval
from tokenq.monitor.findings.wording import percent
from tokenq.monitor.readings import History

FEW = 5
"""Lines that a mean is taken over where one line would be a matter of its batch."""
SPIKE, SPIKES = 10.0, 2
"""Times the median of the lines before; how many of them."""
SEPARABLE = 0.98
START_OFFSET = 1.0
"""Implicit reward (beta times nats) of both answers in the first line."""
START_STEPS = 20
SATURATED = 10.0
"""Margin (beta times nats) at which the loss's gradient is below 5e-5 of what it was."""
LEAST_RISE = 0.05
"""Of the loss."""
NEGATIVE = 0.05
"""Beta times nats below which a mean chosen reward counts as negative."""
_WATCHED = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen")


def not_finite(history: History) -> Finding | None:
    """A loss, gradient or log-probability is not a number any more."""
    steps = [
        line["step"]
        for line in history.logs
        if any(_is_number(line.get(name)) and not math.isfinite(line[name]) for name in _WATCHED)
    ]
    steps += [r.step for r in history.readings if not np.isfinite(r.pairs.logps).all()]
    if not steps:
        return None
    since = min(steps)
    return Finding(
        "not_finite",
        "alarm",
        since,
        "Values are not finite",
        f"From step {since} on a loss, a gradient or a log-probability is nan or infinite "
        f"({len(steps)} times).",
        "One such value in a gradient spoils every parameter it reaches; nothing that follows is "
        "worth its time.",
        [
            "Go back to the last checkpoint before it; train in bfloat16 or float32, not float16.",
            advice.LOWER_RATE,
            "Look for rows with an empty answer, or with no token left after cutting.",
        ],
        ["loss", "grad_norm"],
    )


def gradient_spikes(history: History) -> Finding | None:
    """Gradient norms far above those before them."""
    steps, norms = _series(history, "grad_norm")
    spikes = _spikes(norms)
    if len(spikes) < SPIKES:
        return None
    highest = float(norms[spikes].max())
    return Finding(
        "gradient_spikes",
        "warning",
        int(steps[spikes[0]]),
        "The gradient norm spikes",
        f"{len(spikes)} of {len(norms)} lines have a gradient norm over {SPIKE:.0f} times the "
        f"median of those before; the highest is {highest:.3g}, the median {np.median(norms):.3g}.",
        "A step in such a direction moves the policy far from its reference at once. Rewards are "
        "sums over tokens: long answers, and ones that have become very unlikely, have large ones.",
        [advice.LOWER_RATE, "Set `max_grad_norm` to about the median.", advice.LENGTH],
        ["grad_norm"],
    )


def _spikes(norms: Array) -> list[int]:
    """Numbers of the values far above the median of those before them."""
    earlier: list[float] = []
    found = []
    for number, norm in enumerate(norms.tolist()):
        if number >= FEW:
            middle = (earlier[(number - 1) // 2] + earlier[number // 2]) / 2
            if norm > SPIKE * middle:
                found.append(number)
        insort(earlier, norm)
    return found


def separable_pairs(history: History) -> Finding | None:
    """Accuracy is 1 from the first lines on."""
    steps, accuracies = _series(history, "rewards/accuracies")
    if len(steps) < FEW or steps[0] > START_STEPS or accuracies[:FEW].min() < SEPARABLE:
        return None
    return Finding(
        "separable_pairs",
        "warning",
        int(steps[0]),
        "Pairs are told apart at once",
        f"Reward accuracy is {percent(float(accuracies[:FEW].mean()))} from the first line (step "
        f"{steps[0]}) on.",
        "Before training the implicit reward is 0 and its accuracy chance. Where it is 1 at once "
        "something simple sets the answers apart: an end token that one side lacks, a template, a "
        "length, another source. That is then what is learned.",
        [
            "Look at some pairs as token ids: their ends, first tokens and lengths.",
            "Check that both answers went through the same template and cutting.",
        ],
        ["rewards/accuracies"],
    )


def logged_start_gap(history: History) -> Finding | None:
    """Rewards are far from 0 in the first lines already, and stay where they were."""
    if history.setup is not None:
        return None
    steps, chosen = _series(history, "rewards/chosen")
    _, rejected = _series(history, "rewards/rejected")
    if len(steps) < FEW or len(rejected) != len(chosen) or steps[0] > START_STEPS:
        return None
    moved = [abs(side[:FEW].max() - side[:FEW].min()) for side in (chosen, rejected)]
    offsets = [abs(side[0]) for side in (chosen, rejected)]
    if min(offsets) < START_OFFSET or any(m > o for m, o in zip(moved, offsets, strict=True)):
        return None
    return Finding(
        "logged_start_gap",
        "alarm",
        int(steps[0]),
        "Rewards do not start at 0",
        f"At step {steps[0]} the mean rewards are {chosen[0]:.2f} (chosen) and {rejected[0]:.2f} "
        f"(rejected), and move by no more than {max(moved):.2f} over {FEW} lines.",
        "The implicit reward is 0 where policy and reference are the same, as they should be "
        "before training. A constant part says that they are two models, or read texts "
        "differently.",
        [
            "Take the model that training starts from as the reference.",
            advice.CHECK_REFERENCE,
        ],
        ["rewards/chosen", "rewards/rejected"],
    )


def logged_negative_chosen(history: History) -> Finding | None:
    """Chosen rewards are negative, and there is nothing but logs to judge it by."""
    if history.setup is not None:
        return None
    steps, chosen = _series(history, "rewards/chosen")
    since = _since(steps, chosen, lambda mean: mean < -NEGATIVE)
    if since is None:
        return None
    now = chosen[-FEW:]
    return Finding(
        "logged_negative_chosen",
        "note",
        since,
        "Chosen rewards are negative: logs cannot tell whether that is harmful",
        f"Over the last {len(now)} lines the chosen reward is {now.mean():.3f} on average.",
        "In expectation over the reference's own responses the implicit reward is -beta KL(ref || "
        "pi), so it must be negative there (eq. 16 of 2404.12358); beyond that it is displacement "
        "(2410.08847). The two look alike in a tracker.",
        [advice.PROBE],
        ["rewards/chosen"],
        Evidence("mean of the last lines", "beta x nats", interval(now), None),
    )


def logged_both_fall(history: History) -> Finding | None:
    """Both rewards fall while the margin grows, by the logs."""
    if history.setup is not None:
        return None
    steps, chosen = _series(history, "rewards/chosen")
    _, rejected = _series(history, "rewards/rejected")
    if len(chosen) != len(rejected):
        return None
    since = _since(steps, np.maximum(chosen, rejected), lambda mean: mean < -NEGATIVE)
    margins = chosen - rejected
    if since is None or margins[-FEW:].mean() <= max(NEGATIVE, margins[:FEW].mean()):
        return None
    return Finding(
        "logged_both_fall",
        "note",
        since,
        "Both answers become less likely while the margin grows",
        f"Over the last {FEW} lines the rewards are {chosen[-FEW:].mean():.3f} (chosen) and "
        f"{rejected[-FEW:].mean():.3f} (rejected).",
        "The loss sees the difference alone, and a small probability is pushed down with less "
        "effort than a large one is pushed up (2404.04626).",
        [advice.PROBE, advice.SFT_TERM, advice.DPOP],
        ["rewards/chosen", "rewards/rejected", "rewards/margins"],
        Evidence("margin, mean of the last lines", "beta x nats", interval(margins[-FEW:]), None),
    )


def saturated_margin(history: History) -> Finding | None:
    """Margins so large that the loss has no gradient left."""
    steps, margins = _series(history, "rewards/margins")
    since = _since(steps, margins, lambda mean: mean >= SATURATED)
    if since is None:
        return None
    now = float(margins[-FEW:].mean())
    return Finding(
        "saturated_margin",
        "warning",
        since,
        "Margins are so large that the loss is flat",
        f"Over the last {FEW} lines the reward margin is {now:.1f}: the gradient is "
        f"{1 / (1 + math.exp(now)):.1g} of a pair's weight.",
        "The sigmoid loss is flat at such margins: what is left of training is noise and weight "
        "decay, far from the reference.",
        [advice.EARLIER, advice.MORE_BETA, advice.LOWER_RATE],
        ["rewards/margins", "loss"],
        Evidence("margin, mean of the last lines", "beta x nats", interval(margins[-FEW:]), None),
    )


def loss_rises(history: History) -> Finding | None:
    """The training loss is well above its best."""
    steps, losses = _series(history, "loss")
    if len(losses) < 3 * FEW:
        return None
    means = np.convolve(losses, np.ones(FEW) / FEW, mode="valid")
    best = int(np.argmin(means[:-FEW]))
    spread = float(losses[best : best + FEW].std(ddof=1)) + float(losses[-FEW:].std(ddof=1))
    risen = means[-1] - means[best]
    if risen < max(LEAST_RISE, 2 * spread / FEW**0.5):
        return None
    above = means >= means[best] + LEAST_RISE
    first = int(np.flatnonzero(~above)[-1]) + FEW
    return Finding(
        "loss_rises",
        "warning",
        int(steps[min(first, len(steps) - 1)]),
        "The training loss rises",
        f"Over the last {FEW} lines it is {means[-1]:.3f}, after {means[best]:.3f} around step "
        f"{steps[best]}.",
        "The loss of pairs that training sees falls while it works; rising, the steps are too "
        "large or the data have changed. A DPOP loss may rise at first.",
        [advice.LOWER_RATE, advice.EARLIER],
        ["loss"],
        Evidence(
            "rise of the loss since its best", "nats", interval(losses[-FEW:] - means[best]), None
        ),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _series(history: History, name: str) -> tuple[Sequence[int], Array]:
    """Steps and values of the lines that have this metric as a finite number."""
    found = [
        (int(line["step"]), float(line[name]))
        for line in history.logs
        if _is_number(line.get(name)) and math.isfinite(line[name])
    ]
    return [step for step, _ in found], np.array([value for _, value in found])


def _since(steps: Sequence[int], values: Array, holds: Callable[[float], bool]) -> int | None:
    """Step from which on the mean over the last few lines has held without a break."""
    if len(values) < 2 * FEW:
        return None
    means = np.convolve(values, np.ones(FEW) / FEW, mode="valid")
    first = len(means)
    while first and holds(float(means[first - 1])):
        first -= 1
    return None if first == len(means) else int(steps[first + FEW - 1])
