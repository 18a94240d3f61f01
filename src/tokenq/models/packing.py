"""Rows of token ids -> packed prefix trees: each prompt once, its responses behind it, no padding.

Pure functions of integers; nothing here knows a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """One packed forward.

    input_ids:    [T] token ids; the last token of a response is a target only, never an input
    layout:       see :class:`TreeLayout`
    target_index: [N] packed position whose hidden state predicts the n-th response token
    targets:      [N] response token ids, row after row
    rows:         index of each packed row in the caller's order
    lengths:      response length of each packed row; they add up to N
    """

    input_ids: Tensor
    layout: TreeLayout
    target_index: Tensor
    targets: Tensor
    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def to(self, device: torch.device | str) -> "Pack":
        """Return the pack with its model inputs on `device`."""
        layout = TreeLayout(
            self.layout.trees,
            self.layout.responses,
            self.layout.segment.to(device, non_blocking=True),
            self.layout.prompt.to(device, non_blocking=True),
            self.layout.positions.to(device, non_blocking=True),
            self.layout.longest,
        )
        return Pack(
            self.input_ids.to(device, non_blocking=True),
            layout,
            self.target_index.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.rows,
            self.lengths,
        )


@dataclass(frozen=True)
class Tree:
    """A prompt and the rows (indices in the caller's order) that answer it."""

    prompt: tuple[int, ...]
    rows: tuple[int, ...]
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
    return [_pack(bin_, responses) for bin_ in _fill_bins(trees, token_budget)]


def group_by_prompt(
    prompts: Sequence[Ids], responses: Sequence[Ids], token_budget: int
) -> list[Tree]:
    """Return one tree per distinct prompt, or several where one would exceed `token_budget`."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    trees = []
    for prompt, rows in by_prompt.items():
        part: list[int] = []
        size = len(prompt)
        for row in rows:
            extra = len(responses[row]) - 1
            if part and size + extra > token_budget:
                trees.append(Tree(prompt, tuple(part), size))
                part, size = [], len(prompt)
            part.append(row)
            size += extra
        trees.append(Tree(prompt, tuple(part), size))
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


def _pack(trees: Sequence[Tree], responses: Sequence[Ids]) -> Pack:
    ids: list[int] = []
    segment: list[int] = []
    prompt_of: list[int] = []
    positions: list[int] = []
    target_index: list[int] = []
    targets: list[int] = []
    tree_spans, response_spans = [], []
    rows, lengths = [], []
    segments = longest = 0
    for tree in trees:
        start, width, root = len(ids), len(tree.prompt), segments
        ids += tree.prompt
        segment += [root] * width
        positions += range(width)
        segments += 1
        for row in tree.rows:
            response = list(responses[row])
            first, inner = len(ids), len(response) - 1
            ids += response[:-1]
            positions += range(width, width + inner)
            target_index += [start + width - 1, *range(first, first + inner)]
            targets += response
            rows.append(row)
            lengths.append(len(response))
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
        torch.tensor(ids),
        layout,
        torch.tensor(target_index),
        torch.tensor(targets),
        tuple(rows),
        tuple(lengths),
    )
