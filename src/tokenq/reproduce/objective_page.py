"""The page of `tokenq reproduce objectives`: tables, and what they do and do not show."""

from collections.abc import Sequence
from typing import Any

from scipy import stats

from tokenq.reproduce.objective_arms import DPO, START
from tokenq.reproduce.statistics import Estimate, shown

_COIN = "dpo, labels by coin"
_CLOSE = 0.025
_DISCOPOP = (
    " DiscoPOP's loss rises with the margin where training starts, at margin 0: it has a local "
    "minimum at beta * margin = -0.12, and only pairs above +0.07 are pushed the right way. So "
    "short a run from the reference ends on the wrong side."
)


def page(results: dict[str, Any]) -> str:
    """Markdown; the part between the markers is shown in the documentation too."""
    return "\n\n".join(
        [
            _what_was_done(results),
            "<!-- --8<-- [start:measured] -->",
            _preferences(results),
            _movement(results),
            _reading(results),
            "<!-- --8<-- [end:measured] -->",
            _hyper_parameters(results),
        ]
    )


def _what_was_done(results: dict[str, Any]) -> str:
    known = results["settings"]
    return (
        f"{known['model']}, LoRA (rank {known['lora_r']}) on the linear layers of its last "
        f"{known['layers']} decoder layers, all else frozen. {known['pairs']} training pairs of "
        f"film review sentences of at most {known['max_words']} words, whose mean ratings differ "
        f"by {known['gap']:g} or more, once each, {known['batch_size']} a step, AdamW, peak "
        f"learning rate {known['learning_rate']:g} with cosine decay. For one seed all objectives "
        "see the same pairs in the same order from the same first weights. Measured on "
        f"{known['held_out']} {known['split']} pairs of other sentences, the same for all, whose "
        f"ratings differ by {known['held_out_gap']:g} or more.\n\n"
        "Hyper-parameters are the defaults of tokenq, which are those of the papers; none was "
        "tuned on this data, and the learning rate is one for all. An objective whose paper asks "
        "for another learning rate, longer training or cleaner data may be far from its best here: "
        "the table says what happens in so short a run, not which objective is best."
    )


def _preferences(results: dict[str, Any]) -> str:
    head = (
        "| objective | reward accuracy | less DPO's | log-prob accuracy | a token | "
        "word valence |\n|---|---|---|---|---|---|"
    )
    lines = []
    for name in _best_first(results):
        arm = results["arms"][name]
        less = arm.get("less dpo")
        lines.append(
            _row(
                name,
                shown(arm["measures"]["reward accuracy"]),
                "" if less is None else shown(less["reward accuracy"]),
                shown(arm["measures"]["likelihood accuracy"]),
                _mean(arm["measures"]["likelihood accuracy a token"]),
                shown(arm["measures"]["valence"], 2),
            )
        )
    start = results[START]
    lines.append(
        _row(
            "(before training)",
            "",
            "",
            f"{start['likelihood accuracy']:.3f}",
            f"{start['likelihood accuracy a token']:.3f}",
            f"{start['valence of log-probs']:.2f} (log-prob)",
        )
    )
    for name, value in results["controls"].items():
        lines.append(_row(f"({name})", shown(value), "", "", "", ""))
    note = (
        "Reward accuracy: share of held-out pairs whose chosen answer has the higher "
        "log(pi / start); log-prob accuracy: the same of log pi, and of log pi a token. Word "
        "valence: Spearman's rho between the mean log-ratio of a word in held-out answers and its "
        "human rating. Mean and 95 % Student-t interval over seeds, that is over training pairs, "
        "order and adapters. The held-out pairs are always the same: that others could have been "
        f"drawn adds a standard error of about {_drawn(results):.3f} to each accuracy, and "
        "less to a difference of two objectives."
    )
    return "\n".join([head, *lines]) + f"\n\n{note}"


def _movement(results: dict[str, Any]) -> str:
    head = (
        "| objective | chosen, nats | rejected, nats | end token, nats | KL, nats | "
        "sample length | ended |\n|---|---|---|---|---|---|---|"
    )
    lines = []
    for name in _best_first(results):
        found = results["arms"][name]["measures"]
        lines.append(
            _row(
                name,
                *(shown(found[each], 2) for each in ("chosen", "rejected", "end", "kl")),
                shown(found["length"], 1),
                _mean(found["ended"], 2),
            )
        )
    start = results[START]
    before = (f"{start['length']:.1f}", f"{start['ended']:.2f}")
    lines.append(_row("(before training)", "0", "0", "0", "0", *before))
    known = results["settings"]
    note = (
        "Changes of log-probability from the start, mean over held-out answers. KL: of the trained "
        "model from the start, KL(start \\|\\| trained) of whole answers, summed over the exact "
        f"next-token distributions along {known['samples']} samples of the start (the same for "
        f"all). Length: {known['samples']} answers sampled from the trained model, cut at "
        f"{known['sample_tokens']} tokens; ended: share of them that were not cut."
    )
    return "\n".join([head, *lines]) + f"\n\n{note}"


def _reading(results: dict[str, Any]) -> str:
    arms = results["arms"]
    trained = [name for name in arms if name != _COIN]
    points = []
    if _COIN in arms:
        coin = arms[_COIN]["measures"]["reward accuracy"]
        points.append(
            f"- Control: with labels drawn by a coin DPO orders {shown(coin)} of pairs. Chance is "
            f"0.5 for pairs drawn anew; on these {results['settings']['held_out']} the start's own "
            f"log-probability already orders {results[START]['likelihood accuracy']:.3f}."
        )
    compared = [name for name in trained if "less dpo" in arms[name]]
    if compared:
        above = [name for name in compared if _sign(arms[name]["less dpo"]) > 0]
        below = [name for name in compared if _sign(arms[name]["less dpo"]) < 0]
        points.append(
            f"- Of {len(compared)} objectives, the interval of the paired difference from DPO lies "
            f"above 0 for {_listed(above)} and below 0 for {_listed(below)}. Without a "
            f"correction {0.05 * len(compared):.1f} of them are expected there by chance alone."
        )
        close = [name for name in compared if _furthest(arms[name], arms[DPO.name]) <= _CLOSE]
        points.append(
            f"- Within {_CLOSE} of DPO's reward accuracy on every seed: {_listed(close)}. While "
            "log-ratios are small most losses of a pair push it apart with a constant force, and "
            "AdamW takes the size of that force out; a run of so few steps hardly leaves this "
            "range, so that what tells these objectives apart later does not show here."
        )
    wrong = [n for n in trained if (arms[n]["measures"]["reward accuracy"]["high"] or 1.0) < 0.5]
    if wrong:
        why = _DISCOPOP if "discopop" in wrong else ""
        points.append(f"- Below one half with the whole interval: {_listed(wrong)}.{why}")
    falls = [n for n in trained if arms[n]["measures"]["chosen"]["mean"] < 0]
    points.append(
        f"- The log-probability of held-out chosen answers falls for {len(falls)} of "
        f"{len(trained)}: {_listed(falls)}."
    )
    if len(trained) >= 4:
        kl, accuracy = (
            [arms[name]["measures"][measure]["mean"] for name in trained]
            for measure in ("kl", "reward accuracy")
        )
        rho = float(stats.spearmanr(kl, accuracy).statistic)
        points.append(
            f"- Over objectives, Spearman's rho between KL and reward accuracy is {rho:+.2f}: "
            "with one learning rate for all, a part of the differences is how far each goes."
        )
    return "\n".join(points)


def _hyper_parameters(results: dict[str, Any]) -> str:
    lines = [f"- {name}: `{arm['objective']}`" for name, arm in results["arms"].items()]
    seconds = [
        sum(run[f"cpu_seconds_{part}"] for part in ("training", "measuring"))
        for arm in results["arms"].values()
        for run in arm["runs"]
    ]
    spent = sum(seconds) / len(seconds)
    note = f"{len(seconds)} runs, {spent:.0f} CPU seconds each (one thread)."
    return "\n".join([f"## Hyper-parameters\n\n{note}\n", *lines])


def _best_first(results: dict[str, Any]) -> list[str]:
    arms = results["arms"]
    order = sorted(arms, key=lambda name: -arms[name]["measures"]["reward accuracy"]["mean"])
    return [name for name in order if name == DPO.name] + [n for n in order if n != DPO.name]


def _furthest(arm: dict[str, Any], other: dict[str, Any]) -> float:
    runs = zip(arm["runs"], other["runs"], strict=True)
    return max(abs(ours["reward accuracy"] - dpo["reward accuracy"]) for ours, dpo in runs)


def _drawn(results: dict[str, Any]) -> float:
    """Standard error of a share of 0.65, a typical one, over draws of the held-out pairs."""
    return float((0.65 * 0.35 / results["settings"]["held_out"]) ** 0.5)


def _sign(less: dict[str, Estimate]) -> int:
    found = less["reward accuracy"]
    if found["low"] is None or found["high"] is None:
        return 0
    return (found["low"] > 0) - (found["high"] < 0)


def _mean(value: Estimate, digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
