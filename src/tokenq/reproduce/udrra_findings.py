"""What `udrra` expected and what its results say: each expectation with its numbers."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenq.mdp.targets import APPROXIMATIONS
from tokenq.reproduce.bandit_problems import TAUS
from tokenq.reproduce.experiment import Results

Cell = dict[str, Any]


def find(results: Results, name: str, tau: float, coverage: str, labels: str) -> Cell | None:
    """The cell of a row, None where it was not measured."""
    for cell in results["rows"].get(name, {"cells": []})["cells"]:
        if (cell["tau"], cell["coverage"], cell["labels"]) == (tau, coverage, labels):
            found: Cell = cell
            return found
    return None


def small(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def findings(results: Results) -> str:
    """Each expectation with the numbers that decide it, and whether it held."""
    lines = [
        _finding(*finding)
        for claim in (
            _same_target,
            _labels,
            _missing,
            _faster,
            _temperature,
            _coverage,
            _rate,
            _data,
        )
        for finding in claim(results)
    ]
    return "\n".join(lines)


Finding = tuple[str, bool, str]


def _finding(claim: str, holds: bool, numbers: str) -> str:
    return f"- {claim}: **{'holds' if holds else 'does not hold'}**. {numbers}"


def _covered(results: Results, name: str, labels: str = "sampled") -> list[Cell]:
    """The cells of a row in which every answer is in some pair."""
    found = (
        find(results, name, tau, coverage, labels)
        for tau in TAUS
        for coverage in ("uniform", "skewed")
    )
    return [cell for cell in found if cell]


def _same_target(results: Results) -> list[Finding]:
    worst = {
        name: max(cell["kl"]["mean"] for cell in _covered(results, name))
        for name in (*APPROXIMATIONS, "dpo")
        if _covered(results, name)
    }
    numbers = ", ".join(f"{name} {small(value)}" for name, value in worst.items())
    return [
        (
            "All levels of reward access, and DPO with sampled labels, share the Boltzmann target",
            max(worst.values()) < 1e-2,
            f"Largest mean KL at the end over temperatures and covered pairs: {numbers}.",
        )
    ]


def _labels(results: Results) -> list[Finding]:
    certain = find(results, "dpo", 1.0, "uniform", "deterministic")
    noisy = find(results, "dpo", 1.0, "uniform", "noisy")
    if certain is None or noisy is None:
        return []
    return [
        (
            "DPO overshoots with deterministic labels",
            certain["reward_above_target"] > 0.05,
            f"Temperature 1: KL {small(certain['kl']['mean'])}, expected reward "
            f"{certain['reward_above_target']:+.2f} against the target's; it has no finite limit.",
        ),
        (
            "DPO falls short with flipped labels",
            noisy["reward_above_target"] < 0,
            f"KL {small(noisy['kl']['mean'])}, reward {noisy['reward_above_target']:+.2f}.",
        ),
    ]


def _missing(results: Results) -> list[Finding]:
    found = {
        name: find(results, name, 1.0, "missing", "sampled") for name in ("RA", "RDA", "PRA", "dpo")
    }
    ends = {name: cell["kl"]["mean"] for name, cell in found.items() if cell}
    numbers = ", ".join(f"{name} {small(value)}" for name, value in ends.items())
    pairwise = [value for name, value in ends.items() if name != "RA"]
    return [
        (
            "Leaving the best answer out of the pairs biases the limit",
            min(pairwise) > 1e-2,
            f"KL at temperature 1: {numbers}. RA is the exception: it is told log Z, and the one "
            "missing probability is what the others leave.",
        )
    ]


def _mean_iterations(results: Results, name: str, tau: float, coverage: str) -> float | None:
    cell = find(results, name, tau, coverage, "sampled")
    return None if cell is None or cell["iterations"] is None else cell["iterations"]["mean"]


def _faster(results: Results) -> list[Finding]:
    ratios, untuned = [], []
    for tau in TAUS:
        rda, pra = (_mean_iterations(results, name, tau, "skewed") for name in ("RDA", "PRA"))
        if rda and pra:
            ratios.append(pra / rda)
    for rda, pra in zip(results["one_step"]["RDA"], results["one_step"]["PRA"], strict=True):
        if rda and pra:
            untuned.append(pra["mean"] / rda["mean"])
    return [
        (
            "RDA is faster than PRA",
            bool(ratios) and min(ratios) > 1,
            f"Iterations of PRA over RDA on skewed pairs: {_range(ratios)} with tuned steps; on "
            f"uniform pairs with one step for all {_range(untuned)}, most of which is the size "
            "of the step.",
        )
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else "not reached"


def _temperature(results: Results) -> list[Finding]:
    out: list[Finding] = []
    fixed = [e["mean"] for e in results["one_step"]["PRA"] if e]
    out.append(
        (
            "A lower temperature slows descent, one step size for all",
            fixed == sorted(fixed, reverse=True),
            "PRA, from the lowest temperature up: " + ", ".join(f"{x:.0f}" for x in fixed) + ".",
        )
    )
    tuned = {
        name: [_mean_iterations(results, name, tau, "uniform") for tau in TAUS]
        for name in ("RDA", "PRA", "BDA")
    }
    numbers = "; ".join(
        f"{name} " + ", ".join("not reached" if x is None else f"{x:.0f}" for x in values)
        for name, values in tuned.items()
    )
    slower = [v for v in tuned["PRA"] if v is not None]
    out.append(
        (
            "It does so with a tuned step as well, for RDA and PRA",
            len(slower) > 1 and slower[0] > 2 * slower[-1],
            f"{numbers}. The Hessian of RDA and PRA is tau^2 times a matrix without tau, and the "
            "best step takes the factor back; that of BDA is the target's own, which gets rarer "
            "answers as the temperature falls.",
        )
    )
    return out


def _coverage(results: Results) -> list[Finding]:
    ratios = []
    for name, tau in itertools.product(("RDA", "PRA"), TAUS):
        even, skewed = (_mean_iterations(results, name, tau, c) for c in ("uniform", "skewed"))
        if even and skewed:
            ratios.append(skewed / even)
    return [
        (
            "Uneven coverage slows descent",
            bool(ratios) and min(ratios) > 1,
            f"Iterations on skewed over uniform pairs, RDA and PRA: {_range(ratios)}.",
        )
    ]


def _rate(results: Results) -> list[Finding]:
    ratios = [
        measured / theory
        for row in results["rows"].values()
        for cell in row["cells"]
        for measured, theory in zip(cell["decades_measured"], cell["decades_theory"], strict=True)
        if theory > 0
    ]
    if not ratios:
        return []
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    return [
        (
            "The Hessian's extreme eigenvalues give the rate",
            0.9 < middle < 1.1,
            f"Measured over predicted, {len(ratios)} runs of all rows: median {middle:.2f}, "
            f"10 to 90 % {low:.2f} to {high:.2f}.",
        )
    ]


def _data(results: Results) -> list[Finding]:
    kls = [
        (n, e["mean"])
        for n, e in zip(results["samples"]["sizes"], results["samples"]["kl"], strict=True)
        if e
    ]
    out: list[Finding] = []
    if len(kls) > 1:
        slope = float(np.polyfit(np.log([n for n, _ in kls]), np.log([k for _, k in kls]), 1)[0])
        out.append(
            (
                "DPO on N sampled labels is off by about 1/N",
                -1.3 < slope < -0.7,
                f"Slope of log KL against log N: {slope:.2f}.",
            )
        )
    few, many = results["networks"]["small"], results["networks"]["large"]
    arms = ("PRA, good answers rare", "PRA", "PRA, pairs from the policy")
    out.append(
        (
            "The origin of pairs matters to a model that cannot hold the target, and only to it",
            few[arms[0]]["mean"] > 1.2 * few[arms[2]]["mean"] and many[arms[0]]["mean"] < 1e-2,
            "KL of PRA with good answers rare, uniform pairs, pairs from the policy: "
            + "; ".join(
                f"{size} network " + ", ".join(small(of[arm]["mean"]) for arm in arms)
                for size, of in (("small", few), ("large", many))
            )
            + ". This is the distribution shift between offline DPO and PRA.",
        )
    )
    return out
