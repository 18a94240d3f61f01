"""Models in step along a tree: what they say, what is remembered of it, and what guides them."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from families import VOCABULARY, DoubleThroughout, tiny_model
from plain_reading import plain_logps
from small_pairs import random_model
from torch import Tensor

from tokenq.errors import UserError
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.branches import POLICY, REFERENCE, Branches
from tokenq.models.branching.cached import step_model
from tokenq.search.tabular import tabular_models

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [5, 6, 7]]


@pytest.fixture
def models():  # type: ignore[no-untyped-def]
    policy, reference = (random_model("llama", VOCABULARY, seed) for seed in (1, 2))
    return {POLICY: policy.double(), REFERENCE: reference.double()}


@pytest.fixture(autouse=True)
def double():  # type: ignore[no-untyped-def]
    with DoubleThroughout():
        yield


def opened(models, guidance=None, prompts=PROMPTS):  # type: ignore[no-untyped-def]
    return Branches({name: step_model(m) for name, m in models.items()}, prompts, guidance)


def test_a_path_tells_what_every_model_said(models) -> None:  # type: ignore[no-untyped-def]
    with opened(models) as branches:
        frontier = branches.open()
        rows, response = torch.tensor([1]), [20, 21, 22, 23]
        for token in response:
            frontier = branches.extend(frontier.moves(rows, torch.tensor([token])))
            rows = torch.tensor([0])
        node = int(frontier.nodes[0])
        path = branches.path(node)
        totals = {name: branches.total(frontier.nodes, name) for name in models}
    assert path.token_ids == response
    assert branches.evaluations == 3 + 4
    told = {name: [] for name in models}  # type: ignore[var-annotated]
    divergence = []
    for length, token in enumerate(response):
        ours, theirs = (plain_logps(m, PROMPTS[1] + response[:length]) for m in models.values())
        divergence.append((ours.exp() * (ours - theirs)).sum())
        told[POLICY].append(ours[token])
        told[REFERENCE].append(theirs[token])
    for name, rows_ in told.items():
        torch.testing.assert_close(path.logps[name], torch.stack(rows_), rtol=0, atol=1e-9)
        torch.testing.assert_close(totals[name][0], torch.stack(rows_).sum(), rtol=0, atol=1e-9)
    torch.testing.assert_close(path.searched, path.logps[POLICY], rtol=0, atol=0)
    assert path.kl is not None
    torch.testing.assert_close(path.kl, torch.stack(divergence), rtol=0, atol=1e-9)


def test_nodes_may_be_read_in_any_order_and_later(models) -> None:  # type: ignore[no-untyped-def]
    with opened(models) as branches:
        frontier = branches.open()
        placed = branches.place(frontier.moves(torch.tensor([2, 0, 1, 0]), torch.arange(30, 34)))
        late = branches.read(placed[[3]])
        early = branches.read(placed[[2, 1, 0]])
        for frontier in (late, early):
            assert torch.equal(frontier.prompts, branches.tree.prompt(frontier.nodes))
            for name, model in models.items():
                for node, row in zip(frontier.nodes, frontier.logps[name], strict=True):
                    want = plain_logps(model, branches.tree.sequence(int(node)))
                    torch.testing.assert_close(row, want, rtol=0, atol=1e-9)


def test_the_order_of_prompts_changes_nothing(models) -> None:  # type: ignore[no-untyped-def]
    order = [2, 1, 0]
    found = []
    for places in ([0, 1, 2], order):
        with opened(models, prompts=[PROMPTS[i] for i in places]) as branches:
            first = branches.open()
            tokens = torch.tensor([40, 41, 42])[places]
            second = branches.extend(first.moves(torch.arange(3), tokens))
            found.append((first.searched, second.searched))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one[order], other, rtol=0, atol=1e-12)


def test_guidance_is_what_is_searched_and_the_policy_is_still_told(models) -> None:  # type: ignore[no-untyped-def]
    class LogRatio:
        models = (POLICY, REFERENCE)

        def __call__(
            self, branches: Branches, nodes: Tensor, logps: Mapping[str, Tensor]
        ) -> Tensor:
            return torch.log_softmax(logps[POLICY] - logps[REFERENCE], -1)

    with opened(models, LogRatio()) as branches:
        frontier = branches.open()
        want = torch.log_softmax(frontier.logps[POLICY] - frontier.logps[REFERENCE], -1)
        assert torch.equal(frontier.searched, want)
        moves = frontier.moves(torch.tensor([0]), torch.tensor([30]))
        node = int(branches.place(moves)[0])
        path = branches.path(node)
    torch.testing.assert_close(path.searched[0], want[0, 30])
    torch.testing.assert_close(path.logps[POLICY][0], frontier.logps[POLICY][0, 30])


def test_after_retaining_what_is_kept_is_still_told(models) -> None:  # type: ignore[no-untyped-def]
    with opened(models) as branches:
        frontier = branches.open()
        frontier = branches.extend(frontier.moves(torch.tensor([0, 1, 1]), torch.tensor([3, 4, 5])))
        kept = frontier.nodes[[1]]
        before = branches.path(int(kept[0]))
        moves = frontier.moves(torch.tensor([1, 1]), torch.tensor([6, 7]))
        branches.retain(kept)
        new = branches.extend(moves)
        after = branches.path(int(new.nodes[1]))
        for name, model in models.items():
            assert after.logps[name][0] == before.logps[name][0]
            want = plain_logps(model, [*PROMPTS[1], 4, 7])
            torch.testing.assert_close(new.logps[name][1], want, rtol=0, atol=1e-9)


def test_the_end_of_a_block_lets_go_of_the_caches(models) -> None:  # type: ignore[no-untyped-def]
    with opened(models) as branches:
        branches.open()
    assert all(not model._layers for model in branches.models.values())  # type: ignore[attr-defined]


def test_models_of_other_vocabularies_are_refused(models) -> None:  # type: ignore[no-untyped-def]
    models[REFERENCE] = random_model("llama", VOCABULARY + 3, 0)
    with pytest.raises(UserError, match=r"policy 97, reference 100"):
        opened(models)


def test_a_family_that_reads_anew_walks_the_same_tree() -> None:
    model = tiny_model("llama")
    from tokenq.models.branching.rereading import RereadingModel

    found = []
    for reader in (step_model(model), RereadingModel(model)):
        with Branches({POLICY: reader}, PROMPTS) as branches:
            frontier = branches.open()
            moves = frontier.moves(torch.tensor([0, 2, 2]), torch.tensor([3, 4, 5]))
            found.append((frontier.searched, branches.extend(moves).searched))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_token_that_the_reference_excludes_makes_the_divergence_infinite() -> None:
    tree = PrefixTree(3, 2)
    laws = {POLICY: [0.5, 0.5, 0.0], REFERENCE: [1.0, 0.0, 0.0]}
    with np.errstate(divide="ignore"):
        tables = {name: np.log(np.tile(law, (tree.states, 1))) for name, law in laws.items()}
    for policy, reference, expected in (
        (POLICY, REFERENCE, np.inf),
        (REFERENCE, POLICY, np.log(2)),
    ):
        models = tabular_models(tree, policy=tables[policy], reference=tables[reference])
        with Branches(models, [[0]]) as branches:
            frontier = branches.open()
            nodes = branches.place(frontier.moves(torch.tensor([0]), torch.tensor([0])))
            kl = branches.path(int(nodes[0])).kl
        assert kl is not None
        assert kl.tolist() == pytest.approx([expected])
