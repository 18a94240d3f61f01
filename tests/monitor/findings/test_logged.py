"""Rules of log lines: what counts as a spike, and which first lines are first."""

import time

import numpy as np
import pytest

from tokenq.monitor.findings.logged import FEW, SPIKE, gradient_spikes, separable_pairs
from tokenq.monitor.readings import History


def history(name: str, values: list[float], every: int = 1) -> History:
    lines = [{"step": every * (n + 1), name: value} for n, value in enumerate(values)]
    return History(None, [], lines)


def test_spikes_are_measured_against_the_median_of_what_came_before() -> None:
    draw = np.random.default_rng(0)
    norms = draw.lognormal(sigma=2.0, size=200).tolist()
    expected = [n for n in range(FEW, 200) if norms[n] > SPIKE * np.median(norms[:n])]
    assert len(expected) > 2

    found = gradient_spikes(history("grad_norm", norms))

    assert found is not None
    assert found.since == expected[0] + 1
    assert found.what.startswith(f"{len(expected)} of 200 lines")


def test_long_logs_take_no_time() -> None:
    norms = np.random.default_rng(0).lognormal(size=20_000).tolist()
    long = history("grad_norm", norms)
    begun = time.process_time()
    gradient_spikes(long)
    assert time.process_time() - begun < 5  # the median of all before each took minutes


@pytest.mark.parametrize(("every", "fires"), [(1, True), (10, True), (20, True), (100, False)])
def test_pairs_are_separable_at_once_only_if_the_first_lines_are_early(
    every: int, fires: bool
) -> None:
    found = separable_pairs(history("rewards/accuracies", [1.0] * 8, every))
    assert (found is not None) == fires
