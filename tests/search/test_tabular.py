"""Exact MDPs as models."""

import numpy as np
import pytest
import torch

from tokenq.mdp.arrays import log_softmax
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.branches import Branches
from tokenq.search.tabular import TabularModel, tabular_models

TREE = PrefixTree(3, 3, eos=1, prompts=2)
LAW = log_softmax(np.random.default_rng(0).standard_normal((TREE.states, 3)))


def test_each_node_reads_the_row_of_its_state_in_float64() -> None:
    with Branches(tabular_models(TREE, policy=LAW, reference=LAW - 1.0), [[1], [0]]) as branches:
        frontier = branches.open()
        np.testing.assert_array_equal(frontier.searched, LAW[[1, 0]])
        assert frontier.searched.dtype == torch.float64
        frontier = branches.extend(frontier.moves(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2])))
        states = [TREE.state(1, (2,)), TREE.state(0, (0,)), TREE.state(0, (2,))]
        np.testing.assert_array_equal(frontier.logps["policy"], LAW[states])
        np.testing.assert_array_equal(frontier.logps["reference"], LAW[states] - 1.0)
        frontier = branches.extend(frontier.moves(torch.tensor([1]), torch.tensor([2])))
        np.testing.assert_array_equal(frontier.searched[0], LAW[TREE.state(0, (0, 2))])


def test_the_end_token_is_that_of_the_mdp() -> None:
    assert TabularModel(TREE, LAW).eos_token_ids == (1,)
    assert TabularModel(PrefixTree(3, 3), np.zeros((13, 3))).eos_token_ids == ()
    assert TabularModel(TREE, LAW).vocabulary == 3


def test_tables_prompts_and_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_policy must be \[14, 3\]"):
        TabularModel(TREE, LAW[:-1])
    model = TabularModel(TREE, LAW)
    for prompt in ([0, 1], [2]):
        with pytest.raises(ValueError, match="prompt"):
            model.state(prompt, ())
    with pytest.raises(ValueError, match="tokens must be fewer than 3"):
        model.state([0], (1,))
