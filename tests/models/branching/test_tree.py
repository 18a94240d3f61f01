"""The tree of tokens against a dictionary of sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.models.branching.tree import TokenTree


def test_a_tree_worked_by_hand() -> None:
    tree = TokenTree([[7, 8], [9]])
    first = tree.add(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3]))
    second = tree.add(first[[1, 1]], torch.tensor([4, 5]))
    assert tree.roots.tolist() == [0, 1]
    assert [tree.sequence(node) for node in second] == [[7, 8, 2, 4], [7, 8, 2, 5]]
    assert tree.response(int(first[2])) == [3]
    assert tree.response(0) == []
    assert tree.depth(second).tolist() == [2, 2]
    assert tree.prompt(first).tolist() == [0, 0, 1]
    assert tree.parent(second).tolist() == [int(first[1])] * 2
    assert tree.paths(torch.stack([first[2], second[0]])).tolist() == [
        [int(first[2]), -1],
        [int(first[1]), int(second[0])],
    ]
    assert tree.used == 5


def test_what_is_not_retained_gives_its_slot_back() -> None:
    tree = TokenTree([[7], [8], [9]])
    nodes = tree.add(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3]))
    leaf = tree.add(nodes[[1]], torch.tensor([4]))
    tree.retain(leaf)
    assert tree.used == 2
    assert tree.active.tolist() == [False, True, False]
    new = tree.add(torch.tensor([1, 1]), torch.tensor([5, 6]))
    assert set(new.tolist()) == {int(nodes[0]), int(nodes[2])}
    assert tree.sequence(int(leaf)) == [8, 2, 4]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        TokenTree([[1], []])


@settings(deadline=None)
@given(data=st.data(), prompts=st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1))
def test_any_growth_keeps_every_sequence(data: st.DataObject, prompts: list[list[int]]) -> None:
    tree = TokenTree(prompts)
    roots = len(prompts)
    known = dict(enumerate(prompts))
    for _ in range(data.draw(st.integers(1, 8))):
        parents = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=40))
        tokens = list(range(len(parents)))
        nodes = tree.add(torch.tensor(parents), torch.tensor(tokens)).tolist()
        assert not set(nodes) & set(known), "a living node's number was given out again"
        assert len(set(nodes)) == len(nodes)
        grown = zip(nodes, parents, tokens, strict=True)
        known |= {node: [*known[parent], token] for node, parent, token in grown}
        if data.draw(st.booleans()):
            kept = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=5))
            tree.retain(torch.tensor(kept))
            ways = {way for way in tree.paths(torch.tensor(kept)).flatten().tolist() if way >= 0}
            known = {n: ids for n, ids in known.items() if n < roots or n in ways or n in kept}
            prompts_kept = set(tree.prompt(torch.tensor(kept)).tolist())
            assert set(tree.active.nonzero().flatten().tolist()) == prompts_kept
        assert tree.used == len(known) - roots
        assert {node: tree.sequence(node) for node in known} == known
        for node, ids in known.items():
            steps = [step for step in tree.paths(torch.tensor([node]))[0].tolist() if step >= 0]
            assert [known[step] for step in steps] == [
                ids[: len(ids) - back] for back in reversed(range(len(steps)))
            ]
