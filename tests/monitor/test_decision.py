"""Negative chosen rewards, expected or harmful: on policies that are known exactly."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from histories import made_history
from tabular_probe import Pair, tabular_reading, tabular_setup

from tokenq.mdp import PrefixTree, TokenMDP
from tokenq.monitor.decision import Decision, decide
from tokenq.monitor.findings import advice
from tokenq.monitor.readings import Array, History, Reading, SetName, Setup

TREE = PrefixTree(vocabulary=4, horizon=3, eos=3, prompts=2)
BETA = 0.5


def drawn(policy: Array, rng: np.random.Generator, prompt: int) -> int:
    law = np.exp(TREE.totals(policy)[prompt])
    return int(rng.choice(len(law), p=law / law.sum()))


def drawn_pairs(
    chosen: Array, rejected: Array, rng: np.random.Generator, count: int, source: SetName
) -> list[Pair]:
    """Answers of two policies, in turn to both prompts; none equal."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        prompt = len(pairs) % TREE.prompts
        ours, theirs = drawn(chosen, rng, prompt), drawn(rejected, rng, prompt)
        if ours != theirs:
            pairs.append((source, prompt, ours, theirs))
    return pairs


def normalised(logits: Array) -> Array:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def optimum(seed: int, strength: float = 1.0) -> tuple[Array, Array]:
    """log pi* of a random reward under beta KL, and log pi_ref."""
    mdp = TokenMDP.random(TREE, np.random.default_rng(seed), reward_scale=strength)
    return mdp.solve(BETA).log_policy, mdp.ref_logps


def history(
    policy: Array,
    reference: Array,
    pairs: list[Pair],
    *,
    seed: int = 0,
    author: Array | None = None,
    start: Array | None = None,
) -> History:
    """A run that ends in `policy`; author: of the responses, if it is not the reference."""
    rng = np.random.default_rng(1000 + seed)
    wrote = reference if author is None else author
    responses = [(row, drawn(wrote, rng, pair[1])) for row, pair in enumerate(pairs)]
    samples = [(row, drawn(policy, rng, pair[1])) for row, pair in enumerate(pairs)]
    setup = tabular_setup(TREE, reference, pairs, responses, BETA)
    first = reference if start is None else start
    readings = [
        tabular_reading(TREE, reference, each, pairs, responses, samples, step)
        for step, each in ((0, first), (50, policy))
    ]
    level = np.zeros(len(pairs))
    setup = replace(setup, baseline=replace(setup.baseline, ref_likeness=level))
    readings = [_with_likeness(reading, level) for reading in readings]
    return History(setup, readings, [])


def _with_likeness(reading: Reading, likeness: Array) -> Reading:
    assert reading.samples is not None
    return replace(reading, samples=replace(reading.samples, likeness=likeness))


def healthy(count: int = 120, seed: int = 1, source: SetName = "held_out") -> History:
    """The exact optimum; the reference wrote the chosen answers (SFT first), its opposite the
    rejected ones."""
    policy, reference = optimum(seed)
    opposite = normalised(2 * reference - policy)
    rng = np.random.default_rng(seed)
    pairs = drawn_pairs(reference, opposite, rng, count, source)
    return history(policy, reference, pairs, seed=seed)


def lowered(reference: Array, pairs: list[Pair], chosen: float, rejected: float) -> Array:
    """The reference with other logits of the answers' tokens in the answers' states."""
    logits = reference.copy()
    for side, amount in ((2, chosen), (3, rejected)):
        for prompt, number in {(pair[1], pair[side]) for pair in pairs}:
            mask = TREE.paths.mask[number]
            states, tokens = (
                TREE.paths.states[prompt, number][mask],
                TREE.paths.tokens[number][mask],
            )
            logits[states, tokens] -= amount
    return normalised(logits)


def displaced(count: int = 60, one: int = 24, other: int = 20) -> History:
    """Both answers of a prompt lose, the rejected one more; the mass goes elsewhere.

    Answer 24 is as likely under the reference as what it writes; 12 it would not write.
    """
    _, reference = optimum(3)
    pairs: list[Pair] = [("held_out", row % 2, one, other) for row in range(count)]
    rng = np.random.default_rng(0)
    pairs += drawn_pairs(reference, reference, rng, count, "train")
    return history(lowered(reference, pairs[:1] + pairs[1:2], 3.0, 6.0), reference, pairs)


def reason(decision: Decision, test: str) -> Any:
    return next(each for each in decision.reasons if each.test == test)


def changed(given: History, **fields: Array) -> History:
    """The history with other values in the last reading's forks."""
    last = given.readings[-1]
    readings = [*given.readings[:-1], replace(last, forks=replace(last.forks, **fields))]
    return replace(given, readings=readings)


def test_the_optimum_of_what_the_reference_wrote_is_expected() -> None:
    decision = decide(healthy())
    assert decision.verdict == "expected"
    assert decision.step == 50
    assert decision.answer.startswith("Expected: at step 50 chosen answers have lost")
    assert not decision.change
    assert reason(decision, "chosen reward").value < 0
    assert reason(decision, "KL identity").sign == "expected"
    assert reason(decision, "beyond the identity").sign == "expected"
    assert reason(decision, "start").sign == "fact"
    assert reason(decision, "margin").sign == "expected"


def test_a_policy_that_goes_astray_is_not_expected() -> None:
    """It obeys the identity like any other, and buys nothing for its decline."""
    _, reference = optimum(1)
    rng = np.random.default_rng(1)
    policy = normalised(reference + 2 * rng.standard_normal(reference.shape))
    pairs = drawn_pairs(reference, reference, rng, 120, "held_out")
    decision = decide(history(policy, reference, pairs))
    assert reason(decision, "beyond the identity").sign == "expected"
    assert reason(decision, "margin").sign == "open"
    assert decision.verdict == "undecided"


def test_optima_are_hardly_ever_called_harmful() -> None:
    found = [decide(healthy(40, seed)).verdict for seed in range(12)]
    assert "harmful" not in found
    assert found.count("expected") >= len(found) - 2


def test_displacement_is_harmful() -> None:
    decision = decide(displaced())
    assert decision.verdict == "harmful"
    beyond = reason(decision, "beyond the identity")
    assert beyond.sign == "harmful"
    assert beyond.interval.high < 0
    assert beyond.value < -1
    assert decision.change[0] == advice.SFT_TERM
    assert "lose more than the KL identity asks for" in decision.answer
    assert reason(decision, "KL identity").sign == "expected"


def test_optima_lower_answers_that_the_reference_would_not_have_written() -> None:
    """Any policy is the optimum of the reward beta log(pi / pi_ref); this one prefers every chosen
    answer to its rejected one, and what the reference writes itself to both."""
    given = displaced(one=12)
    decision = decide(given)
    beyond = reason(decision, "beyond the identity")
    assert beyond.interval.high < -1
    assert beyond.sign == "open"
    assert "the reference would not have written them" in beyond.says
    assert reason(decision, "margin").sign == "expected"
    assert decision.verdict == "undecided"
    assert advice.SFT_FIRST in decision.change
    assert not any(each.startswith("Probe") for each in decision.change)
    count = len(given.readings[-1].forks.toward)
    toward = changed(given, toward=np.full(count, -0.1))
    assert decide(toward).verdict == "harmful"


def test_mass_that_moves_to_the_rejected_side_is_harmful() -> None:
    given = healthy()
    last = given.readings[-1]
    count = len(last.forks.toward)
    fallen = last.forks.logps.copy()
    assert given.setup is not None
    fallen[0] = given.setup.baseline.ref_fork[0] - 0.5
    steady = changed(given, logps=fallen, toward=np.full(count, 0.1))
    assert reason(decide(steady), "mass by meaning").sign == "fact"
    moved = changed(given, logps=fallen, toward=np.full(count, -0.1))
    decision = decide(moved)
    assert decision.verdict == "harmful"
    assert "mass moves to what the rejected answers say" in decision.answer
    faint = changed(given, logps=fallen, toward=np.full(count, -0.001))
    assert reason(decide(faint), "mass by meaning").sign == "fact"


def test_mass_that_goes_to_neither_answer_is_open() -> None:
    given = healthy()
    assert given.setup is not None
    before = given.setup.baseline.ref_fork
    fallen = before + np.array([[-0.5], [-1.0]])
    other = -(np.exp(fallen) - np.exp(before)).sum(0)
    decision = decide(changed(given, logps=fallen, other=other))
    assert reason(decision, "mass to neither answer").sign == "open"
    assert decision.verdict == "undecided"
    assert "mass to neither answer" in decision.answer
    assert "samples" in decision.change[0]


def test_a_policy_that_ranks_worse_than_its_reference_is_harmful() -> None:
    """The best of two answers of the reference lose against the worse one."""
    _, reference = optimum(5)
    totals = TREE.totals(reference)
    rng = np.random.default_rng(5)
    found = drawn_pairs(reference, reference, rng, 120, "held_out")
    pairs: list[Pair] = [
        (source, p, *sorted((a, b), key=lambda n: -totals[p, n]))  # type: ignore[misc]
        for source, p, a, b in found
    ]
    flat = normalised(-0.5 * reference)
    decision = decide(history(flat, reference, pairs))
    ranking = reason(decision, "ranking by the policy itself")
    assert ranking.sign == "harmful"
    assert ranking.value < -0.5
    assert decision.verdict == "harmful"


def test_samples_that_leave_the_chosen_side_are_harmful() -> None:
    given = healthy()
    rng = np.random.default_rng(0)
    count = len(given.readings[-1].forks.toward)
    for shift, sign in ((-0.3, "harmful"), (0.3, "expected"), (-0.01, "fact")):
        likeness = shift + 0.1 * rng.standard_normal(count)
        readings = [given.readings[0], _with_likeness(given.readings[1], likeness)]
        decision = decide(replace(given, readings=readings))
        assert reason(decision, "samples by meaning").sign == sign
        assert (decision.verdict == "harmful") == (sign == "harmful")


def test_responses_that_the_reference_did_not_write_decide_nothing() -> None:
    policy, reference = optimum(2, strength=2.0)
    rng = np.random.default_rng(2)
    pairs = drawn_pairs(reference, reference, rng, 120, "held_out")
    decision = decide(history(policy, reference, pairs, author=policy))
    assert reason(decision, "KL identity").sign == "open"
    assert decision.verdict == "undecided"
    assert list(decision.change) == [advice.CHECK_REFERENCE]


def test_a_run_that_did_not_start_from_its_reference_decides_nothing() -> None:
    policy, reference = optimum(1)
    rng = np.random.default_rng(1)
    pairs = drawn_pairs(reference, reference, rng, 60, "held_out")
    decision = decide(history(policy, reference, pairs, start=policy))
    assert reason(decision, "start").sign == "open"
    assert decision.verdict == "undecided"
    assert list(decision.change) == [advice.CHECK_REFERENCE]


def test_rewards_above_0_need_no_decision() -> None:
    _, reference = optimum(4)
    pairs: list[Pair] = [("held_out", row % 2, 12, 20) for row in range(20)]
    decision = decide(history(lowered(reference, pairs, -2.0, 2.0), reference, pairs))
    assert decision.verdict == "not negative"
    assert "above 0" in decision.answer
    before = decide(replace(healthy(), readings=healthy().readings[:1]))
    assert before.verdict == "not negative"
    assert before.step == 0


def test_a_loss_that_few_pairs_cannot_show_is_not_denied() -> None:
    made = healthy(6, seed=12)
    last = made.readings[-1]
    logps = last.pairs.logps.copy()
    logps[0, 2] = made.setup.baseline.ref_logps[0, 2] if made.setup else 0.0
    logps[0, 2, 0] -= 60.0
    widely = replace(last, pairs=replace(last.pairs, logps=logps))
    decision = decide(replace(made, readings=[*made.readings[:-1], widely]))
    assert decision.verdict == "undecided"
    assert "too few pairs" in decision.answer
    assert decision.change == ["Read more held-out pairs."]


def test_few_pairs_leave_it_open_and_say_how_many_would_do() -> None:
    decision = decide(healthy(6, seed=12))
    assert decision.verdict == "undecided"
    assert reason(decision, "beyond the identity").sign == "open"
    assert any(each.startswith("Probe more pairs: some") for each in decision.change)


def test_training_pairs_stand_in_where_none_are_held_out() -> None:
    decision = decide(healthy(source="train"))
    assert decision.verdict == "expected"
    assert "training chosen answers" in reason(decision, "chosen reward").says


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("kind", "verdicts"),
    [
        ("healthy", {"not negative"}),
        ("expected_decline", {"expected", "undecided"}),
        ("displacement", {"harmful"}),
        ("wrong_reference", {"undecided", "not negative"}),
    ],
)
def test_made_runs(kind: str, verdicts: set[str], seed: int) -> None:
    assert decide(made_history(kind, seed)).verdict in verdicts


def logs(chosen: list[float], margin: float = 1.0, prefix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "step": 10 * (at + 1),
            f"{prefix}rewards/chosen": value,
            f"{prefix}rewards/rejected": value - margin,
        }
        for at, value in enumerate(chosen)
    ]


def test_logs_alone_cannot_tell_harm() -> None:
    decision = decide(History(None, [], logs([0.0, -0.5, -1.0, -1.1, -1.2])))
    assert decision.verdict == "undecided"
    assert decision.step == 50
    assert decision.change == [advice.PROBE]
    assert "rejected answers fall faster" in reason(decision, "rewards/margins").says
    behind = decide(History(None, [], logs([-1.0] * 5, margin=-0.1)))
    assert "do not even keep ahead" in reason(behind, "rewards/margins").says


def test_logs_can_tell_that_rewards_are_not_negative() -> None:
    assert decide(History(None, [], logs([0.1, 0.2, 0.3]))).verdict == "not negative"
    assert decide(History(None, [], logs([-0.3, 0.2, -0.1, 0.3]))).verdict == "not negative"
    assert decide(History(None, [], logs([-0.3]))).verdict == "undecided"


def test_evaluations_count_before_training_batches() -> None:
    lines = [*logs([-1.0, -1.0, -1.0]), *logs([0.5, 0.6], prefix="eval_")]
    decision = decide(History(None, [], lines))
    assert decision.verdict == "not negative"
    assert decision.reasons[0].test == "eval_rewards/chosen"


def test_nothing_is_known() -> None:
    for lines in ([], [{"step": 7, "loss": 1.0}]):
        decision = decide(History(None, [], lines))
        assert decision.verdict == "undecided"
        assert "nothing can be said" in decision.answer
        assert decision.step == (7 if lines else 0)


def test_a_probe_without_pairs_says_so() -> None:
    given = healthy(4)
    assert given.setup is not None
    empty = tabular_setup(TREE, optimum(1)[1], [], [], BETA)
    reading = tabular_reading(TREE, optimum(1)[1], optimum(1)[0], [], [])
    stored = Setup.from_dict(empty.to_dict()), Reading.from_dict(reading.to_dict())
    for setup, each in ((empty, reading), stored):
        decision = decide(History(setup, [each], []))
        assert decision.verdict == "undecided"
        assert "no pairs" in decision.answer
