"""From prompts to results, whatever the search."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tokenq.mdp.arrays import log_softmax
from tokenq.mdp.tree import PrefixTree
from tokenq.search import Decoding, Progress, SearchResults, Target
from tokenq.search.running import Batch, Found, run
from tokenq.search.tabular import TabularModel

TREE = PrefixTree(3, 2, prompts=5)
DRAWS = np.random.default_rng(0).standard_normal((TREE.states, 3))
MODEL = TabularModel(TREE, log_softmax(DRAWS))
PROMPTS = [[3], [0], [3], [1], [4], [3]]


def firsts(batch: Batch) -> list[list[Found]]:
    """The likeliest first token of each prompt, reported as progress."""
    frontier = batch.branches.open()
    tokens = frontier.searched.argmax(-1)
    nodes = batch.branches.place(frontier.moves(torch.arange(len(frontier)), tokens))
    found = []
    for prompt, node in enumerate(nodes.tolist()):
        path = batch.branches.path(node)
        score = float(path.searched.sum())
        batch.tell(prompt, 1, path.token_ids, score)
        found.append([Found(path, score, "length", {"row": float(prompt)})])
    return found


def expected(prompt: int) -> int:
    return int(MODEL.log_policy[TREE.state(prompt)].argmax())


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_results_stand_in_the_order_of_the_prompts(batch_size: int) -> None:
    sizes = []

    def search(batch: Batch) -> list[list[Found]]:
        sizes.append(len(batch.prompts))
        return firsts(batch)

    results = run(Target.of(MODEL), PROMPTS, Decoding(batch_size=batch_size), search)
    assert isinstance(results, SearchResults)
    assert [row[0].prompt_ids for row in results] == PROMPTS
    assert [row[0].token_ids for row in results] == [[expected(p)] for (p,) in PROMPTS]
    assert max(sizes) <= batch_size
    assert sum(sizes) == len(PROMPTS)


def test_prompts_of_like_length_are_searched_together() -> None:
    seen: list[list[int]] = []

    class Echo:
        """Reads any prompt; every token is as likely."""

        vocabulary = 4
        eos_token_ids = ()

        def open(self, tree: Any) -> torch.Tensor:
            seen.append([len(prompt) for prompt in tree.prompts])
            return torch.full((len(tree.prompts), 4), 0.25).log()

        def close(self) -> None:
            pass

        read = retain = open

    lengths = [5, 1, 4, 2, 3, 6]
    run(Target.of(Echo()), [[1] * n for n in lengths], Decoding(batch_size=2), firsts)
    assert seen == [[1, 2], [3, 4], [5, 6]]


def test_progress_names_the_prompt_by_its_place_among_all() -> None:
    seen: list[Progress] = []
    run(Target.of(MODEL), PROMPTS, Decoding(batch_size=2, on_step=seen.append), firsts)
    assert sorted(each.prompt for each in seen) == list(range(len(PROMPTS)))
    for each in seen:
        assert each.token_ids == [expected(PROMPTS[each.prompt][0])]
        assert (each.step, each.text) == (1, None)


def drawn(prompts: Sequence[list[int]], seed: int, batch_size: int) -> list[float]:
    numbers: dict[int, float] = {}

    def search(batch: Batch) -> list[list[Found]]:
        for number, generator in zip(batch.numbers, batch.generators(seed), strict=True):
            numbers[number] = float(generator.random())
        return [[] for _ in batch.prompts]

    run(Target.of(MODEL), prompts, Decoding(batch_size=batch_size), search)
    return [numbers[number] for number in range(len(prompts))]


def test_random_numbers_depend_on_seed_and_prompt_only() -> None:
    first = drawn(PROMPTS, 0, 16)
    assert len(set(first)) == len(PROMPTS)  # copies of a prompt among them
    for batch_size in (1, 2, 4):
        assert drawn(PROMPTS, 0, batch_size) == first
    assert not set(drawn(PROMPTS, 1, 16)) & set(first)
    by_prompt = dict(zip(map(tuple, [[0], [1], [4]]), (first[1], first[3], first[4]), strict=True))
    others = [[4], [1], [0]]
    assert drawn(others, 0, 2) == [by_prompt[tuple(prompt)] for prompt in others]


def test_models_let_go_of_their_caches_even_when_a_search_fails() -> None:
    closed = []

    class Closing(TabularModel):
        def close(self) -> None:
            closed.append(True)

    def search(batch: Batch) -> list[list[Found]]:
        raise RuntimeError("stopped")

    model = Closing(TREE, log_softmax(DRAWS))
    with pytest.raises(RuntimeError, match="stopped"):
        run(Target.of(model), [[0]], Decoding(), search)
    assert closed == [True]


def test_gradients_are_off_while_searching() -> None:
    def search(batch: Batch) -> list[list[Found]]:
        assert not torch.is_grad_enabled()
        return firsts(batch)

    with torch.enable_grad():
        run(Target.of(MODEL), [[0]], Decoding(), search)
        assert torch.is_grad_enabled()


def test_guidance_is_what_is_searched() -> None:
    class Upside:
        """The least likely token becomes the likeliest."""

        models = ("policy",)

        def __call__(self, branches: Any, nodes: Any, logps: Any) -> torch.Tensor:
            return torch.log_softmax(-logps["policy"], -1)

    results = run(Target.of(MODEL), PROMPTS, Decoding(guidance=Upside()), firsts)
    for (prompt,), row in zip(PROMPTS, results, strict=True):
        laws = MODEL.log_policy[TREE.state(prompt)]
        worst = int(laws.argmin())
        assert row[0].token_ids == [worst]
        assert float(row[0].model_logps["policy"][0]) == pytest.approx(float(laws[worst]))
        assert row[0].logps[0] > row[0].model_logps["policy"][0]


def test_details_come_through() -> None:
    results = run(Target.of(MODEL), [[1], [2]], Decoding(), firsts)
    assert [row[0].details for row in results] == [{"row": 0.0}, {"row": 1.0}]
