"""E_ref[implicit reward] = -beta KL(ref || pi): exactly on tabular MDPs, and by samples."""

import numpy as np
import pytest

from tokenq.mdp import PrefixTree, TokenMDP
from tokenq.monitor import kl_identity

TREE = PrefixTree(vocabulary=4, horizon=3, eos=3)
BETA = 0.5


def policies(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """log pi* and log pi_ref [S, A] of a random MDP."""
    mdp = TokenMDP.random(TREE, np.random.default_rng(seed))
    return mdp.solve(BETA).log_policy, mdp.ref_logps


def responses(policy: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of every response: log pi, log pi_ref, and the sum of KL(ref || pi) of its states."""
    divergence = (np.exp(reference) * (reference - policy)).sum(-1)
    along = TREE.totals(np.repeat(divergence[:, None], TREE.vocabulary, axis=1))
    return TREE.totals(policy)[0], TREE.totals(reference)[0], along[0]


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_are_the_same_expectation(seed: int) -> None:
    ours, theirs, divergences = responses(*policies(seed))
    weights = np.exp(theirs)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    whole = (weights * (theirs - ours)).sum()
    assert (weights * (ours - theirs)).sum() == pytest.approx(-whole, abs=1e-12)
    assert (weights * divergences).sum() == pytest.approx(whole, abs=1e-12)


def drawn(seed: int, count: int, law: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(law), size=count, p=law / law.sum())


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    ours, theirs, divergences = responses(*policies(1))
    truth = -BETA * float((np.exp(theirs) * (theirs - ours)).sum())
    found = []
    for seed in range(300):
        rows = drawn(seed, 200, np.exp(theirs))
        found.append(kl_identity((ours - theirs)[rows], divergences[rows], range(len(rows)), BETA))
    for name in ("implicit", "divergence"):
        covered = np.mean([getattr(each, name).holds(truth) for each in found])
        assert 0.91 <= covered <= 0.985, name
    assert 0.91 <= np.mean([each.holds for each in found]) <= 0.985
    spread = {
        n: np.std([getattr(each, n).mean for each in found]) for n in ("implicit", "divergence")
    }
    assert spread["divergence"] < spread["implicit"]


def test_responses_of_the_policy_break_it() -> None:
    """The commonest mistake: samples of the model in training instead of the reference's."""
    ours, theirs, divergences = responses(*policies(1))
    rows = drawn(0, 400, np.exp(ours))
    found = kl_identity((ours - theirs)[rows], divergences[rows], range(len(rows)), BETA)
    assert not found.holds
    assert found.implicit.mean > 0


def test_responses_to_one_prompt_count_together() -> None:
    found = kl_identity([1.0, 3.0, 10.0], [0.0, 0.0, 0.0], [0, 0, 1], 2.0)
    assert (found.prompts, found.responses) == (2, 3)
    assert found.implicit.mean == pytest.approx(2 * (2 + 10) / 2)
    single = kl_identity([1.0, 3.0], [2.0, 2.0], [5, 5], 1.0)
    assert single.implicit.low is None
    assert single.holds


def test_no_responses() -> None:
    with pytest.raises(ValueError, match="no responses"):
        kl_identity([], [], [], 1.0)
