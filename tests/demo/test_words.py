"""Words and their valence: sums and rank correlations by hand, and planted signals."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from tokenq.demo.words import (
    CONTROLS,
    REWARD,
    SIGNALS,
    Occurrence,
    agreement,
    log_odds,
    occurrences,
    score_words,
    words_of,
)

VALENCE = {"good": 2.0, "bad": -2.0, "fine": 1.0, "awful": -3.0, "superb": 3.0}


def side(text: str, pieces: list[str], rewards: list[float]) -> dict:
    """A response record whose tokens are `pieces` of the text, then an end token."""
    offsets, at = [], 0
    for piece in pieces:
        offsets.append([at, at + len(piece)])
        at += len(piece)
    assert at == len(text)
    return {
        "response": text,
        "offsets": [*offsets, [at, at]],
        "rewards": rewards,
        "logps": [-1.0] * len(rewards),
        "ref_logps": [-2.0] * len(rewards),
    }


def test_words_are_lower_case_and_whole() -> None:
    assert words_of("A well-made film, isn't it? GOOD.") == [
        "a", "well-made", "film", "isn't", "it", "good",
    ]  # fmt: skip


def test_log_odds_by_hand() -> None:
    # Four words in all; "good" twice among 3 chosen words, never among 2 rejected ones.
    found = log_odds(["Good film", "good"], ["bad plot"])
    assert found["good"] == pytest.approx(math.log(3 / 7) - math.log(1 / 6))
    assert found["bad"] == pytest.approx(math.log(1 / 7) - math.log(2 / 6))


def test_a_word_is_the_sum_of_its_tokens() -> None:
    record = side("Superb, not bad.", ["Su", "perb", ",", " not", " bad", "."],
                  [0.2, 0.3, 9.0, 9.0, -0.5, 9.0, 1.0])  # fmt: skip
    first, second = occurrences([record], VALENCE, {"bad": 3}, {"bad": -0.7})
    assert (first.word, second.word) == ("superb", "bad")
    values = dict(zip(SIGNALS, first.signals, strict=True))
    assert values[REWARD] == pytest.approx(0.5)
    assert values["policy log-prob"] == pytest.approx(-2)
    assert values["reference log-prob"] == pytest.approx(-4)
    assert values["response's mean reward"] == pytest.approx(28 / 7)
    assert values["word length"] == 6
    assert values["word frequency (log)"] == 0
    assert values["position in response"] == 0
    assert values["log-odds in training pairs"] == 0
    values = dict(zip(SIGNALS, second.signals, strict=True))
    assert values[REWARD] == pytest.approx(-0.5)
    assert values["word frequency (log)"] == pytest.approx(math.log(4))
    assert values["position in response"] == pytest.approx(12 / 16)
    assert values["log-odds in training pairs"] == -0.7


def planted(count: int, noise: float, seed: int = 0) -> tuple[list[Occurrence], dict[str, float]]:
    """Words in random responses: the reward is the valence plus noise, all else is noise."""
    draw = np.random.default_rng(seed)
    valence = {f"w{i}": float(draw.normal()) for i in range(count)}
    found = []
    for response in range(count):
        for i in draw.integers(count, size=4):
            word = f"w{i}"
            signals = draw.normal(size=len(SIGNALS))
            signals[0] = valence[word] + noise * signals[0]
            found.append(Occurrence(word, response, tuple(signals.tolist())))
    return found, valence


def test_rho_is_scipys_on_the_means_of_each_word() -> None:
    found, valence = planted(60, noise=1.5)
    result = agreement(found, valence)
    scores = score_words(found, valence, trained_on=())
    assert result.words == len(scores)
    assert result.occurrences == len(found) == sum(each.count for each in scores)
    for name in SIGNALS:
        own = [each.signals[name] for each in scores]
        expected = spearmanr(own, [each.valence for each in scores]).statistic
        rho = result.spearman[name].rho
        assert rho is not None
        assert rho == pytest.approx(expected)


def test_a_planted_signal_is_told_from_noise() -> None:
    found, valence = planted(200, noise=1.0)
    result = agreement(found, valence)
    own = result.spearman[REWARD]
    assert own.rho is not None
    for interval in (own.over_words, own.over_responses):
        assert interval is not None
        assert 0.4 < interval[0] < own.rho + 0.05
        assert interval[1] < 1
    assert result.not_beaten == ()
    chance = [result.spearman[name].over_words for name in CONTROLS]
    assert sum(low <= 0 <= high for low, high in filter(None, chance)) >= 6


def test_a_control_that_is_better_is_named() -> None:
    found, valence = planted(80, noise=2.0)
    swapped = [
        Occurrence(
            each.word, each.response, (each.signals[0], -valence[each.word], *each.signals[2:])
        )
        for each in found
    ]
    result = agreement(swapped, valence)
    assert result.not_beaten == (CONTROLS[0],)
    assert result.spearman[CONTROLS[0]].rho == pytest.approx(-1)


def test_words_can_be_left_out_and_flat_signals_have_no_rho() -> None:
    flat = [
        Occurrence(word, i, (VALENCE[word], *([1.0] * len(CONTROLS))))
        for i, word in enumerate(["good", "bad", "fine", "good", "superb", "bad"])
    ]
    everything = agreement(flat, VALENCE)
    assert everything.words == 4
    assert everything.spearman[CONTROLS[0]].rho is None
    assert everything.spearman[CONTROLS[0]].over_words is None
    assert agreement(flat, VALENCE, without=["superb"]).words == 3
    with pytest.raises(ValueError, match="2 words"):
        agreement(flat, VALENCE, min_occurrences=2)
