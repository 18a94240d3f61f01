"""Verdicts and the choice of a setting by the other seeds."""

import pytest

from tokenq.reproduce.findings import finding, findings_table, held_out_best


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.11, 0.12], "holds"),
        ([-0.1, -0.11, -0.12], "does not hold"),
        ([0.1, -0.1, 0.2], "undecided"),
        ([5.0], "undecided"),  # one seed decides nothing
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    assert finding("a claim", "a - b", differences)["verdict"] == verdict


def test_the_table_has_a_row_a_finding() -> None:
    table = findings_table([finding("up", "b - a", [1.0, 2.0]), finding("down", "a - b", [0.5])])
    assert table.count("\n") == 3
    assert "| up | b - a | 1.500 [" in table
    assert "| down | a - b | 0.500 | undecided |" in table


def test_a_seed_has_no_say_in_its_own_setting() -> None:
    """Setting 2 shines on seed 0 only, so seed 0 must not get it."""
    scores = {1.0: [0.5, 0.6, 0.6], 2.0: [0.9, 0.5, 0.5]}
    assert held_out_best(scores) == [1.0, 2.0, 2.0]
    assert held_out_best({1.0: [0.5], 2.0: [0.9]}) == [2.0]
