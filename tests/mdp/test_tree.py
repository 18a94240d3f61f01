"""The tree: numbering, paths and sums, by hand and against plain recursion."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.mdp import PrefixTree

TREES = st.builds(
    lambda vocabulary, horizon, eos, prompts: PrefixTree(
        vocabulary, horizon, None if eos is None else eos % vocabulary, prompts
    ),
    st.integers(2, 4),
    st.integers(1, 4),
    st.none() | st.integers(0, 3),
    st.integers(1, 3),
)


def responses_of(tree: PrefixTree) -> list[tuple[int, ...]]:
    """All responses, shorter ones first, then in dictionary order of the tokens."""
    lengths = range(1, tree.horizon + 1)
    products = (itertools.product(range(tree.vocabulary), repeat=length) for length in lengths)
    return [tokens for group in products for tokens in group if ends(tree, tokens)]


def ends(tree: PrefixTree, tokens: tuple[int, ...]) -> bool:
    *before, last = tokens
    return tree.eos not in before and (last == tree.eos or len(tokens) == tree.horizon)


def test_numbering_by_hand() -> None:
    # Two prompts, tokens 0 and 2 go on, 1 is EOS, three steps: levels of 2, 4 and 8 states.
    tree = PrefixTree(vocabulary=3, horizon=3, eos=1, prompts=2)
    assert tree.levels == (slice(0, 2), slice(2, 6), slice(6, 14))
    assert [tree.state(p) for p in (0, 1)] == [0, 1]
    assert [tree.state(p, (t,)) for p in (0, 1) for t in (0, 2)] == [2, 3, 4, 5]
    assert tree.state(1, (2, 0)) == 12
    # EOS at once, after one word, and three tokens after each of the four states of two words
    assert tree.responses == 1 + 2 + 4 * 3
    assert tree.response(0) == (1,)
    assert [tree.response(i) for i in (1, 2, 3, 14)] == [(0, 1), (2, 1), (0, 0, 0), (2, 2, 2)]


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_responses_and_paths_are_all_there(tree: PrefixTree) -> None:
    expected = responses_of(tree)
    assert [tree.response(index) for index in range(tree.responses)] == expected
    paths = tree.paths
    for prompt, (index, tokens) in itertools.product(range(tree.prompts), enumerate(expected)):
        states = [tree.state(prompt, tokens[:step]) for step in range(len(tokens))]
        assert paths.states[prompt, index, : len(tokens)].tolist() == states
        assert paths.mask[index].tolist() == [s < len(tokens) for s in range(tree.horizon)]
        last_state, last_token = (part[..., index] for part in tree.last_steps)
        assert (last_state[prompt], last_token) == (states[-1], tokens[-1])


@settings(max_examples=40, deadline=None)
@given(TREES, st.integers(0, 99))
def test_sums_follow_the_paths(tree: PrefixTree, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(2, tree.states, tree.vocabulary))
    values = rng.normal(size=(2, tree.states))
    following, sums, totals = tree.next_values(values), tree.prefix_sums(steps), tree.totals(steps)
    for prompt, (index, tokens) in itertools.product(
        range(tree.prompts), enumerate(responses_of(tree))
    ):
        total = np.zeros(2)
        for step, token in enumerate(tokens):
            state = tree.state(prompt, tokens[:step])
            np.testing.assert_allclose(sums[:, state], total, atol=1e-14)
            total = total + steps[:, state, token]
            end = step + 1 == len(tokens)
            next_value = 0.0 if end else values[:, tree.state(prompt, tokens[: step + 1])]
            np.testing.assert_array_equal(following[:, state, token], next_value)
        np.testing.assert_allclose(totals[:, prompt, index], total, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": 3, "horizon": 0}, "horizon must be >= 1, got 0"),
        ({"vocabulary": 3, "horizon": 1, "prompts": 0}, "prompts must be >= 1"),
        ({"vocabulary": 3, "horizon": 1, "eos": 3}, "eos must be in 0..2 or None, got 3"),
        ({"vocabulary": 1, "horizon": 1, "eos": 0}, "vocabulary must be >= 2"),
    ],
)
def test_no_tree_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixTree(**arguments)


@pytest.mark.parametrize("tokens", [(0, 0), (1,), (3,)])
def test_a_prefix_that_has_ended_is_no_state(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tokens must be fewer than 2 of"):
        PrefixTree(vocabulary=3, horizon=2, eos=1).state(0, tokens)
