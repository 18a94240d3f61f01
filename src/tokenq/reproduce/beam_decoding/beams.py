"""Beam searches of several widths at once, over one tree: what two of them read is read once.

Each finds what `tokenq.search.beam_search` finds alone, but a narrow beam's texts are mostly a wide
one's too, so that all widths together cost little more than the widest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenq.models.branching.branches import POLICY, Branches, Frontier, Moves
from tokenq.models.branching.cached import step_model
from tokenq.reproduce.beam_decoding.decoding import Answer, Method


def beams_decoded(
    model: PreTrainedModel,
    starts: Sequence[list[int]],
    methods: Sequence[Method],
    new_tokens: int,
    eos: int,
    prompts_at_once: int,
) -> list[list[Answer]]:
    """For each method the best answer to each start.

    methods: likelihood searches; widths and length penalties may differ
    eos:     the token that ends an answer
    """
    order = sorted(range(len(starts)), key=lambda at: len(starts[at]))
    found: list[list[Answer]] = [[Answer([], False, 0.0)] * len(starts) for _ in methods]
    for begin in range(0, len(order), prompts_at_once):
        numbers = order[begin : begin + prompts_at_once]
        with Branches({POLICY: step_model(model)}, [starts[at] for at in numbers]) as branches:
            searches = [
                _Search(place, method, new_tokens, eos)
                for place in range(len(numbers))
                for method in methods
            ]
            _run(branches, searches)
        for at, search in enumerate(searches):
            place, method = divmod(at, len(methods))
            found[method][numbers[place]] = search.best
    return found


@dataclass(eq=False)
class _Search:
    """The state of one search behind one prompt.

    nodes, sums: of the open beams, best first: their nodes and log-probabilities
    whole:       at most `width` answers with their ranking scores, best first
    """

    prompt: int
    method: Method
    new_tokens: int
    eos: int
    nodes: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0])
    whole: list[tuple[float, Answer]] = field(default_factory=list)

    @property
    def best(self) -> Answer:
        """The best whole answer."""
        return self.whole[0][1]

    def normalised(self, total: float, length: int) -> float:
        """What answers are ranked by."""
        return float(total / length**self.method.length_penalty)

    def continuations(self, values: Tensor, tokens: Tensor) -> list[tuple[int, int, float]]:
        """(place of the beam, token, sum) of the best, twice as many as beams.

        values, tokens: [beams, K] the likeliest tokens behind each open beam
        """
        wanted = 2 * self.method.width
        totals = values[:, :wanted] + torch.tensor(self.sums)[:, None]
        best = totals.flatten().topk(min(wanted, totals.numel()))
        rows = torch.div(best.indices, totals.shape[1], rounding_mode="floor").tolist()
        chosen = tokens[:, :wanted].flatten()[best.indices].tolist()
        return list(zip(rows, chosen, best.values.tolist(), strict=True))

    def divide(
        self, candidates: Sequence[tuple[int, int, float]], texts: Sequence[list[int]], step: int
    ) -> list[tuple[int, int, float]]:
        """Keep those that end; return those that go on, none where the search is over.

        texts: the tokens of each open beam
        """
        width = self.method.width
        going = []
        for rank, (row, token, total) in enumerate(candidates):
            ended = token == self.eos
            if not ended and step < self.new_tokens:
                going.append((row, token, total))
            elif rank < width:
                score = self.normalised(total, step)
                if len(self.whole) < width or score > self.whole[-1][0]:
                    self.whole.append((score, Answer([*texts[row], token], ended, total)))
                    self.whole.sort(key=lambda each: -each[0])
                    del self.whole[width:]
        going = going[:width]
        full = len(self.whole) == width
        if going and full and self.normalised(going[0][2], step) <= self.whole[-1][0]:
            return []
        return going


def _run(branches: Branches, searches: Sequence[_Search]) -> None:
    frontier = branches.open()
    for search in searches:
        search.nodes = [int(frontier.nodes[search.prompt])]
    going = list(searches)
    step = 0
    most = 2 * max(search.method.width for search in searches)
    while going:
        step += 1
        place = {node: row for row, node in enumerate(frontier.nodes.tolist())}
        values, tokens = frontier.searched.topk(min(most, frontier.searched.shape[1]))
        # (row of the frontier, token) -> its number among the moves
        moves: dict[tuple[int, int], int] = {}
        chosen: list[tuple[_Search, list[int], list[float]]] = []
        for search in going:
            rows = [place[node] for node in search.nodes]
            texts = [branches.tree.response(node) for node in search.nodes]
            candidates = search.continuations(values[rows], tokens[rows])
            kept = search.divide(candidates, texts, step)
            if kept:
                steps = [(rows[row], token) for row, token, _ in kept]
                numbers = [moves.setdefault(each, len(moves)) for each in steps]
                chosen.append((search, numbers, [total for _, _, total in kept]))
        if not chosen:
            return
        nodes = branches.place(_moves(frontier, list(moves)))
        branches.retain(nodes)
        frontier = branches.read(nodes)
        for search, numbers, sums in chosen:
            search.nodes, search.sums = nodes[numbers].tolist(), sums
        going = [search for search, _, _ in chosen]


def _moves(frontier: Frontier, steps: Sequence[tuple[int, int]]) -> Moves:
    rows, tokens = torch.tensor(steps).T
    return frontier.moves(rows, tokens)
