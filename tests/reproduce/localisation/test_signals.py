"""Signals by hand: all are higher where a token is more suspicious."""

import math

import pytest

from tokenq.credit.estimators import ESTIMATORS
from tokenq.reproduce.localisation.arms import DPO, CreditArm
from tokenq.reproduce.localisation.signals import arm_signals, start_signals

ITEM = {"text": "is dull", "offsets": [[0, 2], [2, 5], [5, 7], [7, 7]]}
START = {
    "logps": [[-1.0, -2.0, -0.5, -0.1]],
    "entropy": [[1.0, 1.5, 0.5, 0.2]],
    "logps without prompt": [[-3.0, -1.0, -0.5, -0.2]],
    "gradient x input": [[0.5, -1.0, 0.25, 0.0]],
}
FACTS = {
    "logps": [[-1.5, -4.0, -1.0, -0.1]],
    "entropy": [[1.1, 1.4, 0.5, 0.2]],
    "divergence": [[0.1, 0.5, 0.0, 0.0]],
    "policy_divergence": [[0.2, 0.4, 0.0, 0.0]],
    "ratio_variance": [[0.25, 1.0, 0.04, 0.0]],
}


def test_controls_of_the_start() -> None:
    [found] = start_signals(START, [ITEM], [[{"role": "user", "content": "What IS it?"}]])
    assert found["surprisal"] == [1.0, 2.0, 0.5, 0.1]
    # The prompt makes the first token likelier and the second one less likely.
    assert found["prompt information"] == pytest.approx([-2.0, 1.0, 0.0, -0.1])
    assert found["words' surprisal"] == pytest.approx([1.0, 2.5, 2.5, 0.1])
    # "is" stands in the prompt, "dull", two tokens, does not; the end is no word.
    assert found["not in the prompt"] == [0.0, 1.0, 1.0, 0.0]
    assert found["position"] == [0, 1, 2, 3]
    assert found["length"] == [2, 3, 2, 0]
    assert found["gradient x input"] == [-0.5, 1.0, -0.25, 0.0]


def test_credit_of_an_arm() -> None:
    facts = {**FACTS, "gradient x input": [[0.25, -2.0, 0.25, 0.0]]}
    [found] = arm_signals(DPO, facts, START, [ITEM])
    assert set(ESTIMATORS) <= set(found)
    assert found["plain"] == pytest.approx([0.5, 2.0, 0.5, 0.0])
    assert found["centred"] == pytest.approx([0.4, 1.5, 0.5, 0.0])
    assert found["policy_centred"] == pytest.approx([0.7, 2.4, 0.5, 0.0])
    assert found["standardised"] == pytest.approx([0.8, 1.5, 2.5, 0.0])
    assert found["half_referenced"] == pytest.approx([1.0, 3.0, 0.75, 0.05])
    assert found["words"] == pytest.approx([0.5, 2.5, 2.5, 0.0])
    assert found["surprisal"] == pytest.approx([1.5, 4.0, 1.0, 0.1])
    # Of the log-ratio: the start's part is taken off.
    assert found["gradient x input"] == pytest.approx([0.25, 1.0, 0.0, 0.0])


def test_after_sft_the_reference_is_the_tuned_model() -> None:
    arm = CreditArm("dpo after sft", "dpo", after_sft=True)
    facts = {**FACTS, "ref_logps": [[-0.5, -1.0, -1.0, -0.1]]}
    [found] = arm_signals(arm, facts, START, [ITEM])
    assert found["plain"] == pytest.approx([1.0, 3.0, 0.0, 0.0])
    assert found["from the start"] == pytest.approx([0.5, 2.0, 0.5, 0.0])


def test_q_rm_is_read_by_its_logits_too() -> None:
    [found] = arm_signals(
        CreditArm("q_rm", "q_rm"), {**FACTS, "taken": [[3.0, -1.0, 2.0, 5.0]]}, START, [ITEM]
    )
    assert found["logit"] == [-3.0, 1.0, -2.0, -5.0]


def test_a_reward_model_blames_what_lowers_its_reward() -> None:
    arm = CreditArm("reward model", "reward model", learner="reward model")
    facts = {"prefix difference": [[0.5, -1.0, -0.25, 0.0]]}
    [found] = arm_signals(arm, facts, START, [ITEM])
    assert found["prefix difference"] == [-0.5, 1.0, 0.25, 0.0]
    assert found["prefix difference, words"] == pytest.approx([-0.5, 1.25, 1.25, 0.0])


def test_numbers_are_finite() -> None:
    [found] = arm_signals(DPO, FACTS, START, [ITEM])
    assert all(math.isfinite(value) for row in found.values() for value in row)
