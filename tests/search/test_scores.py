"""What a search maximises."""

from typing import Any

import pytest
import torch

from tokenq.errors import UserError
from tokenq.search import Score

SEARCHED = torch.tensor([-1.0, -2.0, -torch.inf, -torch.inf, -0.5])
REFERENCE = {"reference": torch.tensor([-3.0, -0.5, -1.0, -torch.inf, -torch.inf])}


@pytest.mark.parametrize(
    ("given", "weight"),
    [("likelihood", 0.0), ("log_ratio", 1.0), (0.25, 0.25), ("0.25", 0.25), (1, 1.0)],
)
def test_scores_have_names_or_are_numbers(given: Any, weight: float) -> None:
    score = Score.of(given)
    assert score == Score(weight)
    assert Score.of(score) is score
    assert score.needs_reference == (weight != 0)


@pytest.mark.parametrize("given", ["ratio", "", None, [1], -0.1, 1.01, float("nan"), "nan"])
def test_other_scores_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"score is .*; accepted: likelihood, log_ratio, or a num"):
        Score.of(given)


def test_a_token_scores_its_log_probability_less_a_share_of_the_references() -> None:
    assert Score(0.0)(SEARCHED, {}) is SEARCHED
    torch.testing.assert_close(Score(1.0)(SEARCHED, REFERENCE)[:2], torch.tensor([2.0, -1.5]))
    torch.testing.assert_close(Score(0.5)(SEARCHED, REFERENCE)[:2], torch.tensor([0.5, -1.75]))


def test_an_excluded_token_stays_excluded_whatever_the_reference_says() -> None:
    gains = Score(1.0)(SEARCHED, REFERENCE)
    assert gains[2] == gains[3] == -torch.inf
    assert gains[4] == torch.inf
    assert not gains.isnan().any()
