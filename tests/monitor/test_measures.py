"""Every measure on tabular policies, against expectations worked out another way."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from tabular_probe import (
    Pair,
    along,
    at_states,
    divergences,
    entropies,
    moved,
    table,
    tabular_reading,
    tabular_setup,
)

from tokenq.mdp import PrefixTree
from tokenq.monitor.measures import MEASURES, Rows, difference, measured, metrics, per_token, rows
from tokenq.monitor.readings import Array, Reading, Setup

TREE = PrefixTree(vocabulary=3, horizon=3, eos=2, prompts=2)
BETA = 0.5
RNG = np.random.default_rng(7)
REFERENCE = table(TREE, RNG)
POLICY = moved(REFERENCE, RNG, 0.8)
COUNT = TREE.responses
ALL = [(prompt, number) for prompt in range(TREE.prompts) for number in range(COUNT)]


def law(policy: Array) -> Array:
    """[P, R] probability of every response."""
    return np.exp(TREE.totals(policy))


def held_out(answers: list[tuple[int, int, int]]) -> list[Pair]:
    return [("held_out", *answer) for answer in answers]


EVERY = held_out([(prompt, number, (number + 3) % COUNT) for prompt, number in ALL])
"""Each response to each prompt is the chosen one once."""
OWN = list(enumerate(number for _, number in ALL))
"""To the prompt of each pair its chosen answer as the only response: all responses once."""


def probe(
    pairs: list[Pair] = EVERY,
    responses: list[tuple[int, int]] = OWN,
    samples: list[tuple[int, int]] | tuple = (),
    policy: Array = POLICY,
    **options: object,
) -> tuple[Setup, Reading]:
    return (
        tabular_setup(TREE, REFERENCE, pairs, responses, BETA, apart=False),
        tabular_reading(TREE, REFERENCE, policy, pairs, responses, samples, **options),  # type: ignore[arg-type]
    )


def values(name: str, *args: object, **options: object) -> Array:
    return rows(*probe(*args, **options))[f"likelihood/{name}"].values  # type: ignore[arg-type]


def means(*args: object, **options: object) -> dict[str, float]:
    found = metrics(*probe(*args, **options))  # type: ignore[arg-type]
    return {name.removeprefix("likelihood/"): value for name, value in found.items()}


def total(policy: Array, prompt: int, number: int) -> float:
    return float(along(TREE, policy, prompt, number).sum())


def expectation(each: Array, policy: Array) -> Array:
    """[P] over all responses that `policy` may write, of a value by row of `ALL`."""
    return (law(policy) * each.reshape(TREE.prompts, COUNT)).sum(1)


def sequence_kl(one: Array, other: Array) -> Array:
    """[P] from the probabilities of whole responses."""
    p, q = law(one), law(other)
    return (p * np.log(p / q)).sum(1)


# Likelihood


def test_rewards_and_margins_are_those_of_whole_answers() -> None:
    found = means()
    ours = [total(POLICY, p, w) - total(REFERENCE, p, w) for _, p, w, _ in EVERY]
    theirs = [total(POLICY, p, lost) - total(REFERENCE, p, lost) for _, p, _, lost in EVERY]
    assert found["chosen_reward"] == pytest.approx(BETA * np.mean(ours))
    assert found["rejected_reward"] == pytest.approx(BETA * np.mean(theirs))
    assert found["margin"] == pytest.approx(BETA * np.mean(np.subtract(ours, theirs)))
    assert found["chosen_logps"] == pytest.approx(np.log(law(POLICY)).mean())
    rejected = [np.log(law(POLICY)[p, lost]) for _, p, _, lost in EVERY]
    assert found["rejected_logps"] == pytest.approx(np.mean(rejected))


def test_parts_of_a_reward_by_hand() -> None:
    """Answers a b EOS and a a b of one prompt part at their second token."""
    chosen = next(n for n in range(COUNT) if TREE.response(n) == (0, 1, 2))
    rejected = next(n for n in range(COUNT) if TREE.response(n) == (0, 0, 1))
    found = means(held_out([(0, chosen, rejected)] * 2), [])
    ratio = BETA * (POLICY - REFERENCE)
    ours, theirs = along(TREE, ratio, 0, chosen), along(TREE, ratio, 0, rejected)
    for word, value in zip(("shared", "first", "end"), ours, strict=True):
        assert found[f"chosen_reward_{word}"] == pytest.approx(value), word
    for word, value in zip(("shared", "first", "later"), theirs, strict=True):
        assert found[f"rejected_reward_{word}"] == pytest.approx(value), word
    assert not {"chosen_reward_later", "rejected_reward_end"} & set(found)


def test_parts_add_up_to_the_reward() -> None:
    found = means()
    for side in ("chosen", "rejected"):
        parts = [v for name, v in found.items() if name.startswith(f"{side}_reward_")]
        assert sum(parts) == pytest.approx(found[f"{side}_reward"], abs=1e-12)


def test_entropy_and_peak_are_means_over_states() -> None:
    found = means()
    for side, place in (("chosen", 2), ("rejected", 3)):
        answers = [(pair[1], pair[place]) for pair in EVERY]
        by_answer = [at_states(TREE, entropies(POLICY), *each).mean() for each in answers]
        assert found[f"entropy_{side}"] == pytest.approx(np.mean(by_answer))
        rise = POLICY.max(-1) - REFERENCE.max(-1)
        peaks = [at_states(TREE, rise, *each).mean() for each in answers]
        assert found[f"peak_{side}"] == pytest.approx(np.mean(peaks))
    states = [at_states(TREE, entropies(POLICY), *each).mean() for each in ALL]
    assert found["entropy_responses"] == pytest.approx(np.mean(states))
    sharper = POLICY * 3
    sharper -= np.log(np.exp(sharper).sum(-1, keepdims=True))
    assert means(policy=sharper)["peak_chosen"] > found["peak_chosen"]


# The identity


def test_the_expected_reward_is_minus_beta_kl() -> None:
    expected = -BETA * sequence_kl(REFERENCE, POLICY)
    for name in ("expected_reward", "minus_beta_kl"):
        assert expectation(values(name), REFERENCE) == pytest.approx(expected, abs=1e-12), name
    assert expectation(values("identity_gap"), REFERENCE) == pytest.approx(0, abs=1e-12)
    kl = expectation(values("kl_ref_policy"), REFERENCE)
    assert kl == pytest.approx(sequence_kl(REFERENCE, POLICY), abs=1e-12)


def test_the_identity_does_not_hold_for_responses_of_the_policy() -> None:
    assert np.all(expectation(values("identity_gap"), POLICY) > 0.1)


def test_kl_from_samples_is_that_of_whole_responses() -> None:
    found = values("kl_policy_ref", samples=OWN)
    assert expectation(found, POLICY) == pytest.approx(sequence_kl(POLICY, REFERENCE), abs=1e-12)


def test_reverse_kl_without_samples_is_over_the_reference_s_states() -> None:
    found = expectation(values("kl_reverse_states"), REFERENCE)
    backward = divergences(POLICY, REFERENCE)
    reached = np.exp(TREE.prefix_sums(REFERENCE))
    by_prompt = [
        sum(
            (reached * backward)[TREE.state(prompt, prefix)]
            for prefix in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
        )
        for prompt in range(TREE.prompts)
    ]
    assert found == pytest.approx(by_prompt, abs=1e-12)


def test_entropy_of_the_reference_is_that_of_its_responses() -> None:
    drawn = [(row, number) for row, (_, number) in enumerate(ALL)]
    weights = law(REFERENCE).ravel()
    setup, reading = probe(responses=drawn)
    assert (weights * setup.baseline.response_entropy).sum() == pytest.approx(
        -(law(REFERENCE) * np.log(law(REFERENCE))).sum(), abs=1e-12
    )
    sums, tokens = setup.baseline.response_entropy, setup.baseline.response_tokens
    found = rows(setup, reading)["likelihood/ref_entropy"]
    assert np.mean(found.values) == pytest.approx(sums.sum() / tokens.sum())


# Displacement


def test_beyond_kl_is_nothing_where_the_reference_wrote_the_answers() -> None:
    assert expectation(values("chosen_beyond_kl"), REFERENCE) == pytest.approx(0, abs=1e-12)
    rejected = values("rejected_beyond_kl")[:COUNT]
    assert rejected == pytest.approx(np.roll(values("chosen_beyond_kl")[:COUNT], -3), abs=1e-12)


def test_beyond_kl_of_answers_that_the_policy_wrote() -> None:
    """Their log-ratio is KL(pi || ref), and they pass states by pi's law."""
    reached = np.exp(TREE.prefix_sums(POLICY))
    along_states = np.zeros(TREE.prompts)
    forward = reached * divergences(REFERENCE, POLICY)
    for prompt in range(TREE.prompts):
        for prefix in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]:
            along_states[prompt] += forward[TREE.state(prompt, prefix)]
    expected = BETA * (sequence_kl(POLICY, REFERENCE) + along_states)
    assert expectation(values("chosen_beyond_kl"), POLICY) == pytest.approx(expected, abs=1e-12)


def repeated(policy: Array, count: int = 400) -> Iterator[tuple[int, int]]:
    """Responses as often as `policy` writes them, nearly: a data set without sampling noise."""
    for (prompt, number), weight in zip(ALL, law(policy).ravel(), strict=True):
        for _ in range(round(weight * count)):
            yield prompt, number


def test_excess_decline_by_hand() -> None:
    """Two prompts, the second with two pairs; ratios of sums, not means of ratios."""
    pairs = held_out([(0, 2, 3), (1, 5, 4), (1, 6, 4)])
    responses = [(0, 1), (1, 4), (1, 6)]
    found = means(pairs, responses)["excess_decline"]
    ratio = POLICY - REFERENCE
    ours = [along(TREE, ratio, 0, 2), along(TREE, ratio, 1, 5), along(TREE, ratio, 1, 6)]
    decline = ours[0].sum() + (ours[1].sum() + ours[2].sum()) / 2
    decline /= len(ours[0]) + (len(ours[1]) + len(ours[2])) / 2
    drawn = [along(TREE, ratio, 0, 1), along(TREE, ratio, 1, 4), along(TREE, ratio, 1, 6)]
    sums = drawn[0].sum() + (drawn[1].sum() + drawn[2].sum()) / 2
    tokens = len(drawn[0]) + (len(drawn[1]) + len(drawn[2])) / 2
    assert found == pytest.approx(BETA * (decline - sums / tokens), abs=1e-12)
    unasked = means(pairs, responses[:1])["excess_decline"]
    alone = ours[0].mean() - drawn[0].mean()
    assert unasked == pytest.approx(BETA * alone, abs=1e-12)


def test_nothing_is_in_excess_where_the_reference_wrote_the_answers() -> None:
    """Chosen answers and responses in the reference's proportions, in another order each."""
    drawn, rng = list(repeated(REFERENCE)), np.random.default_rng(5)
    left = {p: list(rng.permutation([n for q, n in drawn if q == p])) for p in range(TREE.prompts)}
    responses = [(row, int(left[prompt].pop())) for row, (prompt, _) in enumerate(drawn)]
    found = means(held_out([(prompt, number, 0) for prompt, number in drawn]), responses)
    assert found["excess_decline"] == pytest.approx(0, abs=1e-12)
    assert found["chosen_reward"] == pytest.approx(found["expected_reward"], abs=1e-12)
    assert found["chosen_reward"] < -0.05
    assert abs(found["sft_gap"]) < 2e-3
    assert abs(found["sft_surprise"]) < 2e-3
    assert abs(found["chosen_beyond_kl"]) < 2e-3


def test_forks_are_changes_of_probability_and_add_up() -> None:
    chosen = next(n for n in range(COUNT) if TREE.response(n) == (0, 1, 2))
    rejected = next(n for n in range(COUNT) if TREE.response(n) == (0, 0, 1))
    begins = next(n for n in range(COUNT) if TREE.response(n) == (0, 2))
    found = means(held_out([(0, chosen, rejected), (0, begins, rejected)]), [])
    state = TREE.state(0, (0,))
    change = np.exp(POLICY[state]) - np.exp(REFERENCE[state])
    assert found["fork_chosen"] == pytest.approx((change[1] + change[2]) / 2)
    assert found["fork_rejected"] == pytest.approx(change[0])
    assert found["fork_other"] == pytest.approx((change[2] + change[1]) / 2)
    setup, reading = probe(held_out([(0, chosen, rejected), (0, begins, rejected)]), [])
    forks = replace(reading.forks, toward=np.array([0.25, -0.75]))
    assert metrics(setup, replace(reading, forks=forks))["likelihood/fork_toward"] == -0.25
    every = means()
    sides = every["fork_chosen"] + every["fork_rejected"]
    assert sides + every["fork_other"] == pytest.approx(0, abs=1e-12)


def test_pairs_that_never_part_have_no_fork() -> None:
    found = means(held_out([(0, 3, 3), (1, 4, 4)]), [])
    assert not {"fork_chosen", "fork_rejected"} & set(found)
    one = values("fork_chosen", held_out([(0, 3, 3), (1, 4, 2)]), [])
    assert np.isnan(one).tolist() == [True, False]


# Accuracies


def test_accuracies_count_pairs() -> None:
    found = means()
    logps, ref_logps = TREE.totals(POLICY), TREE.totals(REFERENCE)
    lengths = [len(TREE.response(number)) for number in range(COUNT)]
    right, ranked, per_length, before = [], [], [], []
    for _, p, ours, theirs in EVERY:
        ratio = logps[p] - ref_logps[p]
        right.append(ratio[ours] > ratio[theirs])
        ranked.append(logps[p, ours] > logps[p, theirs])
        per_length.append(logps[p, ours] / lengths[ours] > logps[p, theirs] / lengths[theirs])
        before.append(ref_logps[p, ours] > ref_logps[p, theirs])
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["ranking_accuracy"] == pytest.approx(np.mean(ranked))
    assert found["ranking_accuracy_per_token"] == pytest.approx(np.mean(per_length))
    assert found["ref_ranking_accuracy"] == pytest.approx(np.mean(before))
    assert not np.array_equal(values("accuracy"), values("ranking_accuracy"))
    assert not np.array_equal(values("ranking_accuracy"), values("ranking_accuracy_per_token"))


def test_nothing_learned_is_half_right() -> None:
    found = means(policy=REFERENCE)
    assert found["accuracy"] == 0.5
    assert found["ranking_accuracy"] == found["ref_ranking_accuracy"]


# Calibration


def test_a_policy_is_not_overconfident_of_what_it_writes_itself() -> None:
    setup, reading = probe()
    tokens = setup.baseline.tokens[0].sum(0)
    gaps = tokens * (reading.pairs.collision[0] - reading.pairs.taken[0])
    assert expectation(gaps, POLICY) == pytest.approx(0, abs=1e-12)
    before = tokens * (setup.baseline.ref_collision[0] - setup.baseline.ref_taken[0])
    assert expectation(before, REFERENCE) == pytest.approx(0, abs=1e-12)
    found = means()
    assert found["overconfidence_tokens"] == pytest.approx(gaps.sum() / tokens.sum())
    assert found["ref_overconfidence_tokens"] == pytest.approx(before.sum() / tokens.sum())


def test_a_sharpened_policy_is_overconfident() -> None:
    sharper = REFERENCE * 2
    sharper -= np.log(np.exp(sharper).sum(-1, keepdims=True))
    pairs = held_out([(prompt, number, 0) for prompt, number in repeated(REFERENCE, 200)])
    found = means(pairs, [], policy=sharper)
    assert found["overconfidence_tokens"] > 0.05
    assert abs(found["ref_overconfidence_tokens"]) < 5e-3


def test_preferences_by_the_law_of_the_margins_are_calibrated() -> None:
    """Over both orders of each pair, weighted as Bradley-Terry draws them: exactly 0."""
    answers = [(p, a, b) for p in range(TREE.prompts) for a in range(COUNT) for b in range(a)]
    one = values("overconfidence_pairs", held_out(answers), [])
    other = values("overconfidence_pairs", held_out([(p, b, a) for p, a, b in answers]), [])
    ratio = TREE.totals(POLICY - REFERENCE)
    margins = BETA * np.array([ratio[p, a] - ratio[p, b] for p, a, b in answers])
    assert expit(margins) * one + expit(-margins) * other == pytest.approx(0, abs=1e-12)
    assert np.mean(one + other) > 0.01


# Gradients and similarity


def test_gradients_by_hand() -> None:
    gradients = np.array([[4.0, 1.0, 9.0], [9.0, 4.0, 0.0], [3.0, -1.0, 0.0]])
    gradients[2, 1] = 1.5
    found = means(EVERY[:3], [], gradients=gradients)
    assert found["gradient_cosine"] == pytest.approx((3 / 6 + 1.5 / 2 + 0) / 3)
    assert found["chosen_change"] == pytest.approx(1 / 3)
    assert not {"gradient_cosine", "chosen_change"} & set(means(EVERY[:3], []))


def test_ches_is_the_baseline_s() -> None:
    found = means(EVERY[:3], [])
    assert found["ches"] == pytest.approx(-2.0)
    assert found["ches_normalised"] == pytest.approx(-1.1)


# The reference


def test_sft_gap_and_surprise_are_divergences_from_the_author() -> None:
    """Of answers that another author wrote: KL(author || ref), whole responses."""
    author = moved(REFERENCE, np.random.default_rng(11), 1.0)
    setup, _ = probe()
    tokens = setup.baseline.tokens[0].sum(0)
    surprise = -setup.baseline.ref_logps[0].sum(0) - tokens * setup.baseline.ref_entropy[0]
    assert expectation(surprise, REFERENCE) == pytest.approx(0, abs=1e-12)
    found = means()
    assert found["sft_surprise"] == pytest.approx(surprise.sum() / tokens.sum())
    cross = -(law(author) * np.log(law(REFERENCE))).sum(1)
    assert expectation(-setup.baseline.ref_logps[0].sum(0), author) == pytest.approx(cross)
    entropy = setup.baseline.response_entropy
    assert expectation(entropy, REFERENCE) == pytest.approx(
        -(law(REFERENCE) * np.log(law(REFERENCE))).sum(1), abs=1e-12
    )
    nats = -setup.baseline.ref_logps[0].sum() / tokens.sum()
    assert found["sft_gap"] == pytest.approx(nats - entropy.sum() / tokens.sum())


def test_start_gap_is_of_the_first_reading_alone() -> None:
    assert "start_gap" not in means(step=1)
    assert means(step=0, policy=REFERENCE)["start_gap"] == 0
    gaps = [
        np.mean([abs(total(POLICY, p, n) - total(REFERENCE, p, n)) for n in both])
        for _, p, *both in EVERY
    ]
    assert means(step=0)["start_gap"] == pytest.approx(np.mean(gaps))


# Samples


def test_drift_is_of_samples_and_of_the_reference_s_responses() -> None:
    samples, responses = [(0, 2), (0, 3), (1, 5)], [(0, 1), (1, 0)]
    found = means(held_out([(0, 1, 2), (1, 3, 4)]), responses, samples)
    lengths = [len(TREE.response(number)) for number in (2, 3, 5)]
    assert found["sample_tokens"] == pytest.approx(((lengths[0] + lengths[1]) / 2 + lengths[2]) / 2)
    assert found["sample_repetition"] == pytest.approx(0.02 * (2.5 + 5) / 2)
    assert found["sample_likeness"] == pytest.approx(0.2 * (2.5 + 5) / 2)
    ended = [TREE.response(number)[-1] == TREE.eos for number in (2, 3, 5)]
    assert found["sample_ended"] == pytest.approx(((ended[0] + ended[1]) / 2 + ended[2]) / 2)
    own = [len(TREE.response(number)) for number in (1, 0)]
    assert found["ref_tokens"] == pytest.approx(np.mean(own))
    assert found["ref_likeness"] == pytest.approx(0.1 * 0.5)
    assert found["ref_repetition"] == pytest.approx(0.01 * 0.5)
    assert found["ref_ended"] == pytest.approx(
        np.mean([TREE.response(number)[-1] == TREE.eos for number in (1, 0)])
    )


# Rows, intervals, what is missing


def test_intervals_are_over_prompts() -> None:
    each = Rows(np.array([1.0, 3.0, 10.0, np.nan]), np.array([4, 4, 7, 9]))
    found = each.interval()
    assert found is not None
    assert found.mean == 6.0
    low, high = stats.t.interval(0.95, 1, loc=6.0, scale=4.0)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    wider = each.interval(0.99)
    assert wider is not None
    assert wider.high is not None
    assert wider.high > high
    single = Rows(np.array([1.0]), np.array([0])).interval()
    assert single is not None
    assert single.low is None
    assert Rows(np.array([np.nan]), np.array([0])).interval() is None


def test_pairs_of_one_prompt_are_averaged_first() -> None:
    """Their answers are not independent, so a prompt's second pair adds no degree of freedom."""
    pairs = held_out([(0, 1, 2), (1, 5, 4), (1, 6, 3)])
    found = measured(*probe(pairs, [(0, 3), (1, 2), (2, 7)], [(1, 0), (2, 5)]))
    ratio = TREE.totals(POLICY - REFERENCE)
    each = BETA * np.array([ratio[0, 1], (ratio[1, 5] + ratio[1, 6]) / 2])
    low, high = stats.t.interval(0.95, 1, loc=each.mean(), scale=stats.sem(each))
    reward = found["likelihood/chosen_reward"]
    assert (reward.mean, reward.low, reward.high) == pytest.approx((each.mean(), low, high))
    own = BETA * np.array([ratio[0, 3], (ratio[1, 2] + ratio[1, 7]) / 2])
    low, high = stats.t.interval(0.95, 1, loc=own.mean(), scale=stats.sem(own))
    reward = found["likelihood/expected_reward"]
    assert (reward.mean, reward.low, reward.high) == pytest.approx((own.mean(), low, high))
    assert found["likelihood/sample_tokens"].low is None


def test_a_ratio_has_the_interval_of_the_delta_method() -> None:
    """Covers the ratio of means as often as it says, lengths and sums being correlated."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        tokens = rng.integers(1, 20, 40).astype(float)
        sums = tokens * 0.3 + rng.standard_normal(40) * np.sqrt(tokens) + 0.5
        found = per_token(sums, tokens, np.arange(40)).interval()
        assert found is not None
        assert found.mean == pytest.approx(sums.sum() / tokens.sum())
        covered.append(found.holds(0.3 + 0.5 / 10))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_differences_are_paired_by_prompt() -> None:
    one = Rows(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]))
    other = Rows(np.array([1.0, 1.0, np.nan]), np.array([2, 3, 0]))
    found = difference(one, other)
    assert (found.values.tolist(), found.clusters.tolist()) == ([4.0], [2])
    assert difference(one, Rows(np.array([]), np.array([], dtype=np.int64))).interval() is None


def test_missing_data_leaves_measures_out() -> None:
    pairs: list[Pair] = [("train", 0, 1, 2), ("train", 1, 3, 4)]
    found = measured(*probe(pairs, []))
    assert found
    assert all(name.startswith("likelihood/train_") for name in found)
    with_responses = measured(*probe(pairs, [(0, 3), (1, 2)], [(0, 1), (1, 1)]))
    names = {name.removeprefix("likelihood/") for name in with_responses}
    assert {"expected_reward", "train_excess_decline", "train_sft_gap", "kl_policy_ref"} <= names
    assert "excess_decline" not in names
    for interval in with_responses.values():
        assert all(math.isfinite(x) for x in (interval.mean, interval.low, interval.high) if x)


def test_training_pairs_are_measured_apart() -> None:
    both: list[Pair] = [*EVERY[:4], *[("train", *pair[1:]) for pair in EVERY[4:9]]]
    found, first = means(both, []), means(EVERY[:4], [])
    second = means([("train", *pair[1:]) for pair in EVERY[4:9]], [])
    for name, value in first.items():
        assert found[name] == pytest.approx(value), name
    for name, value in second.items():
        if "ches" not in name:
            assert found[name] == pytest.approx(value), name


def test_a_reading_that_was_stored_gives_the_same_measures() -> None:
    setup, reading = probe(samples=[(0, 1), (3, 4)])
    stored = Setup.from_dict(setup.to_dict()), Reading.from_dict(reading.to_dict())
    assert metrics(*stored) == metrics(setup, reading)


def test_every_measure_is_there_and_says_what_it_is() -> None:
    gradients = np.ones((3, 2 * len(EVERY)))
    trained = [("train", *pair[1:]) for pair in EVERY]
    responses = [*OWN, *((len(EVERY) + row, number) for row, number in OWN)]
    found = measured(*probe([*EVERY, *trained], responses, [(0, 1)], step=0, gradients=gradients))
    assert set(found) == set(MEASURES)
    for name, each in MEASURES.items():
        assert name == each.name
        assert each.definition.endswith(".")
        assert all((each.unit, each.source, each.cost, each.group)), name
