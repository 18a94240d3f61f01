"""Keys and values of a tree of tokens: each prompt's once, each further token's once.

A branch attends to its prompt's block, which all branches of the prompt read together, and to its
own tokens, gathered by node, under one softmax. Nothing is copied when branches fork, are reordered
or die.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenq.models.attention import attend_layout
from tokenq.models.packing import TreeLayout


@dataclass(eq=False)
class LayerKV:
    """One layer. H_kv heads of width D.

    prompt_keys, prompt_values: [P, H_kv, L, D], zero behind a prompt's end
    keys, values:               [H_kv, N, D] of the tokens behind prompts, by slot
    window: how far back a token sees, itself counted; None: to the start
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor
    window: int | None

    def write(self, slots: Tensor, size: int, keys: Tensor, values: Tensor) -> None:
        """Keep keys, values [H_kv, R, D] of tokens in `slots` [R]; `size`: of the whole table."""
        if self.keys.shape[1] < size:
            more = (0, 0, 0, size - self.keys.shape[1])
            self.keys = torch.nn.functional.pad(self.keys, more)
            self.values = torch.nn.functional.pad(self.values, more)
        self.keys.index_copy_(1, slots, keys)
        self.values.index_copy_(1, slots, values)

    def keep_prompts(self, rows: Tensor, longest: int) -> None:
        """Keep only these prompts [P'], in this order, of at most `longest` tokens."""
        self.prompt_keys = self.prompt_keys[rows, :, :longest]
        self.prompt_values = self.prompt_values[rows, :, :longest]


class PromptReading:
    """Attention of a packed row of prompts that also keeps their keys and values.

    layout:  one tree a prompt, without responses
    rows:    which rows of the store these prompts fill
    prompts: P, how many the store shall have; longest: L, tokens of the longest of all
    """

    def __init__(
        self,
        layers: dict[int, LayerKV],
        layout: TreeLayout,
        rows: range,
        prompts: int,
        longest: int,
    ) -> None:
        self.layers, self.layout, self.rows = layers, layout, rows
        self.prompts, self.longest = prompts, longest

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """query [1, H, T, D], key, value [1, H_kv, T, D] -> [1, T, H, D]."""
        kv = self.layers.get(layer)
        if kv is None:
            kv = self.layers[layer] = self._empty(key, value, window)
        for row, (start, end, _) in zip(self.rows, self.layout.trees.tolist(), strict=True):
            kv.prompt_keys[row, :, : end - start] = key[0, :, start:end]
            kv.prompt_values[row, :, : end - start] = value[0, :, start:end]
        return attend_layout(query, key, value, self.layout, scale, softcap, window)

    def _empty(self, key: Tensor, value: Tensor, window: int | None) -> LayerKV:
        heads = key.shape[1]
        return LayerKV(
            key.new_zeros(self.prompts, heads, self.longest, key.shape[-1]),
            value.new_zeros(self.prompts, heads, self.longest, value.shape[-1]),
            key.new_zeros(heads, 0, key.shape[-1]),
            value.new_zeros(heads, 0, value.shape[-1]),
            window,
        )


class BranchReading:
    """Attention of one new token a branch, to its prompt and to the tokens between.

    slots:   [R] of the new tokens
    size:    slots in the whole tree
    paths:   [R, T] slots on the way to each new token, its own last; -1 behind the end
    rows:    [R] row of the store that holds each branch's prompt; ascending
    lengths: [P] tokens of the prompts in the store
    """

    def __init__(
        self,
        layers: dict[int, LayerKV],
        slots: Tensor,
        size: int,
        paths: Tensor,
        rows: Tensor,
        lengths: Tensor,
        device: torch.device,
    ) -> None:
        self.layers, self.size, self.device = layers, size, device
        self.slots = slots.to(device)
        self.branches, self.depth = paths.shape
        self.prompts, self.longest = len(lengths), int(lengths.max())
        self.paths = paths.clamp_min(0).flatten().to(device)
        self.missing = paths < 0
        self.lengths = lengths[rows]
        counts = torch.bincount(rows, minlength=self.prompts)
        self.widest = int(counts.max())
        # Branch r stands in cell r of a grid of prompts, unless some have fewer branches.
        self.aligned = bool((counts == self.widest).all())
        first = torch.cumsum(counts, 0) - counts
        cells = rows * self.widest + torch.arange(self.branches) - first[rows]
        grid = torch.zeros(self.prompts * self.widest, dtype=torch.long)
        grid[cells] = torch.arange(self.branches)
        self.cells, self.grid = cells.to(device), grid.to(device)
        self.hidden = functools.cache(self._hidden)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """query [1, H, R, D], key, value [1, H_kv, R, D] -> [1, R, H, D]."""
        kv = self.layers[layer]
        kv.write(self.slots, self.size, key[0], value[0])
        heads, width = key.shape[1], query.shape[-1]
        asked = (query[0] * scale).view(heads, -1, self.branches, width).transpose(1, 2)
        prompt = self._by_branch(self._by_prompt(asked) @ kv.prompt_keys.transpose(-1, -2))
        scores = torch.cat([prompt, asked @ self._own(kv.keys).transpose(-1, -2)], dim=-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = self.hidden(window)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1).to(value.dtype)
        on_prompt, on_own = weights.split([self.longest, self.depth], dim=-1)
        out = self._by_branch(self._by_prompt(on_prompt) @ kv.prompt_values)
        out = out + on_own @ self._own(kv.values)  # [H_kv, R, G, D]
        return out.transpose(0, 1).reshape(1, self.branches, -1, out.shape[-1])

    def _own(self, table: Tensor) -> Tensor:
        """[H_kv, N, n] by slot -> [H_kv, R, T, n] along each branch."""
        found = table.index_select(1, self.paths)
        return found.view(len(table), self.branches, self.depth, -1)

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[H_kv, R, G, n] -> [P, H_kv, W * G, n], W branches a prompt."""
        heads, _, groups, width = rows.shape
        cells = rows if self.aligned else rows.index_select(1, self.grid)
        split = cells.reshape(heads, self.prompts, self.widest * groups, width)
        return split.transpose(0, 1)

    def _by_branch(self, cells: Tensor) -> Tensor:
        """[P, H_kv, W * G, n] -> [H_kv, R, G, n]."""
        _, heads, rows, width = cells.shape
        flat = cells.transpose(0, 1).reshape(heads, -1, rows // self.widest, width)
        return flat if self.aligned else flat.index_select(1, self.cells)

    def _hidden(self, window: int | None) -> Tensor | None:
        """[R, 1, L + T]: what a branch does not see of its prompt and its path; None: nothing."""
        at = torch.arange(self.longest + self.depth)
        own = at[self.longest :] - self.longest
        behind = torch.cat([at[: self.longest] >= self.lengths[:, None], self.missing], dim=1)
        if window is not None:
            last = (self.lengths + (~self.missing).sum(-1) - 1)[:, None]
            place = torch.cat(
                [at[: self.longest].expand(self.branches, -1), self.lengths[:, None] + own], dim=1
            )
            behind |= last - place >= window
        return behind[:, None].to(self.device) if behind.any() else None
