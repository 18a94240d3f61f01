"""Rows of token ids -> packed prefix trees: each prompt once, its responses behind it, no padding.

Pure functions of integers; nothing here knows a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """Which packed positions may see which: a forest of two-level trees.

    trees:     [n, 3] int64 on CPU: start, end of the prompt, end of the tree
    responses: [m, 2] int64 on CPU: start and end of every response segment, in packed order
    segment:   [T] int64 on the batch's device: number of the segment that a position belongs to
    prompt:    [T] int64 on the batch's device: number of the prompt segment of its tree
    positions: [T] int64 on the batch's device: position in the unpacked sequence
    longest:   greatest unpacked length of a row, so that a sliding window at least as wide is idle

    A position sees the positions of its own segment up to itself and, in a response, all of its
    tree's prompt. It sees no other response and no other tree.
    """

    trees: Tensor
    responses: Tensor
    segment: Tensor
    prompt: Tensor
    positions: Tensor
    longest: int

    def dense_mask(self, window: int | None = None) -> Tensor:
        """Return the [T, T] bool mask that the layout stands for; `window` as in the model."""
        index = torch.arange(len(self.segment), device=self.segment.device)
        query, key = self.segment[:, None], self.segment[None, :]
        visible = (index[:, None] >= index[None, :]) & (
            (query == key) | (self.prompt[:, None] == key)
        )
        if window is not None:
            visible &= self.positions[:, None] - self.positions[None, :] < window
        return visible


@dataclass(frozen=True)
class Pack:
    """One packed forward of R rows with N response tokens, of which M are in distinct responses.

    Rows with the same prompt and the same response (as in all pairs of a ranked list) are computed
    once and handed to each of them.

    input_ids:    [T] token ids; the last token of a response is a target only, never an input
    layout:       see :class:`TreeLayout`
    target_index: [M] packed position whose hidden state predicts the m-th response token
    targets:      [M] response token ids, one distinct response after the other
    distinct:     lengths of the distinct responses; they add up to M
    copies:       [N] index into M of every row's tokens, or None where all responses differ
    rows:         index of each packed row in the caller's order
    lengths:      response length of each packed row; they add up to N
    """

    input_ids: Tensor
    layout: TreeLayout
    target_index: Tensor
    targets: Tensor
    distinct: tuple[int, ...]
    copies: Tensor | None
    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def for_every_row(self, values: Tensor) -> Tensor:
        """Spread values [M, ...] of distinct response tokens over all rows' tokens: [N, ...]."""
        return values if self.copies is None else values[self.copies]

    def to(self, device: torch.device | str) -> "Pack":
        """Return the pack with its model inputs on `device`."""

        def move(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        layout = replace(
            self.layout,
            segment=move(self.layout.segment),
            prompt=move(self.layout.prompt),
            positions=move(self.layout.positions),
        )
        return replace(
            self,
            input_ids=move(self.input_ids),
            layout=layout,
            target_index=move(self.target_index),
            targets=move(self.targets),
            copies=None if self.copies is None else move(self.copies),
        )


@dataclass(frozen=True)
class Tree:
    """A prompt, its distinct responses with their rows (the caller's order), its input tokens."""

    prompt: tuple[int, ...]
    answers: dict[tuple[int, ...], list[int]]
    size: int


def pack_trees(prompts: Sequence[Ids], responses: Sequence[Ids], token_budget: int) -> list[Pack]:
    """Group rows by prompt and pack the trees into forwards of at most `token_budget` tokens.

    prompts, responses: token ids of each row; every prompt and response has at least one token
    token_budget:       most input tokens of a pack. A tree that is larger is split, its prompt
                        encoded again for each part; a single row that is larger stands alone.

    Raises ValueError for an empty prompt (nothing predicts the first token) or response.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            side = "response" if len(prompt) else "prompt"
            raise ValueError(f"row {row}: the {side} has no tokens")
    trees = group_by_prompt(prompts, responses, token_budget)
    return [_pack(bin_) for bin_ in _fill_bins(trees, token_budget)]


def group_by_prompt(
    prompts: Sequence[Ids], responses: Sequence[Ids], token_budget: int
) -> list[Tree]:
    """Return one tree per distinct prompt, or several where one would exceed `token_budget`."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        same_prompt = by_prompt.setdefault(tuple(map(int, prompt)), {})
        same_prompt.setdefault(tuple(map(int, response)), []).append(row)
    trees = []
    for prompt, answers in by_prompt.items():
        part: dict[tuple[int, ...], list[int]] = {}
        size = len(prompt)
        for response, rows in answers.items():
            extra = len(response) - 1
            if part and size + extra > token_budget:
                trees.append(Tree(prompt, part, size))
                part, size = {}, len(prompt)
            part[response] = rows
            size += extra
        trees.append(Tree(prompt, part, size))
    return trees


def _fill_bins(trees: Sequence[Tree], token_budget: int) -> list[list[Tree]]:
    """First-fit-decreasing: few packs, each at most the budget unless a single tree is larger."""
    bins: list[list[Tree]] = []
    free: list[int] = []
    for tree in sorted(trees, key=lambda t: -t.size):
        for i, room in enumerate(free):
            if tree.size <= room:
                bins[i].append(tree)
                free[i] -= tree.size
                break
        else:
            bins.append([tree])
            free.append(token_budget - tree.size)
    return bins


def _pack(trees: Sequence[Tree]) -> Pack:
    ids: list[int] = []
    segment: list[int] = []
    prompt_of: list[int] = []
    positions: list[int] = []
    target_index: list[int] = []
    targets: list[int] = []
    tree_spans: list[tuple[int, int, int]] = []
    response_spans: list[tuple[int, int]] = []
    segments = longest = 0
    rows: list[int] = []
    distinct: list[int] = []
    lengths: list[int] = []
    copies: list[int] = []
    for tree in trees:
        start, width, root = len(ids), len(tree.prompt), segments
        ids += tree.prompt
        segment += [root] * width
        positions += range(width)
        segments += 1
        for response, same in tree.answers.items():
            first, inner, flat = len(ids), len(response) - 1, len(targets)
            ids += response[:-1]
            positions += range(width, width + inner)
            target_index += [start + width - 1, *range(first, first + inner)]
            targets += response
            distinct.append(len(response))
            rows += same
            lengths += [len(response)] * len(same)
            copies += list(range(flat, len(targets))) * len(same)
            longest = max(longest, width + inner)
            if inner:
                segment += [segments] * inner
                response_spans.append((first, first + inner))
                segments += 1
        prompt_of += [root] * (len(ids) - start)
        tree_spans.append((start, start + width, len(ids)))
    layout = TreeLayout(
        trees=torch.tensor(tree_spans),
        responses=torch.tensor(response_spans, dtype=torch.long).reshape(-1, 2),
        segment=torch.tensor(segment),
        prompt=torch.tensor(prompt_of),
        positions=torch.tensor(positions),
        longest=longest,
    )
    return Pack(
        input_ids=torch.tensor(ids),
        layout=layout,
        target_index=torch.tensor(target_index),
        targets=torch.tensor(targets),
        distinct=tuple(distinct),
        copies=torch.tensor(copies) if len(copies) > len(targets) else None,
        rows=tuple(rows),
        lengths=tuple(lengths),
    )
