"""Keys and values of a tree of tokens: each prompt's once, each further token's once.

A branch attends to its prompt's block, which all branches of the prompt read together, and to its
own tokens, gathered by node; the two softmaxes are merged exactly. Nothing is copied when branches
fork, are reordered or die.
"""

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
        self.keys[:, slots] = keys
        self.values[:, slots] = values

    def keep_prompts(self, rows: Tensor) -> None:
        """Keep only these prompts [P'], in this order."""
        self.prompt_keys = self.prompt_keys[rows]
        self.prompt_values = self.prompt_values[rows]


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
        self.layers, self.size = layers, size
        self.slots = slots.to(device)
        self.branches, self.depth = paths.shape
        self.flat_paths = paths.clamp_min(0).flatten().to(device)
        self.missing = (paths < 0).to(device)
        self.depths = (paths >= 0).sum(-1).to(device)
        self.lengths = lengths.to(device)
        counts = torch.bincount(rows, minlength=len(lengths))
        self.widest = int(counts.max())
        first = torch.cumsum(counts, 0) - counts
        place = torch.arange(self.branches) - first[rows]
        self.cells = (rows * self.widest + place).to(device)
        grid = torch.zeros(len(lengths) * self.widest, dtype=torch.long)
        grid[rows * self.widest + place] = torch.arange(self.branches)
        self.grid = grid.to(device)
        self.aligned = bool((counts == self.widest).all())

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
        scaled = (query[0] * scale).view(heads, -1, self.branches, width)
        own = self._own(kv, scaled, softcap, window)
        prompt = self._prompt(kv, scaled, softcap, window)
        out = _merged(own, prompt)  # [H_kv, R, G, D_v]
        return out.transpose(0, 1).reshape(1, self.branches, -1, out.shape[-1]).to(value.dtype)

    def _own(
        self, kv: LayerKV, query: Tensor, softcap: float | None, window: int | None
    ) -> "_Part":
        heads = len(query)
        shape = (heads, self.branches, self.depth, -1)
        keys = kv.keys.index_select(1, self.flat_paths).view(shape)
        values = kv.values.index_select(1, self.flat_paths).view(shape)
        hidden = self.missing
        if window is not None:
            at = torch.arange(self.depth, device=hidden.device)
            hidden = hidden | (self.depths[:, None] - 1 - at >= window)
        return _attend(query.transpose(1, 2), keys, values, hidden[:, None, :], softcap)

    def _prompt(
        self, kv: LayerKV, query: Tensor, softcap: float | None, window: int | None
    ) -> "_Part":
        heads, groups, _, width = query.shape
        prompts, longest = len(kv.prompt_keys), kv.prompt_keys.shape[2]
        spread = query if self.aligned else query[:, :, self.grid]
        cells = spread.view(heads, groups, prompts, self.widest, width)
        asked = cells.permute(2, 0, 1, 3, 4).reshape(prompts, heads, -1, width)
        at = torch.arange(longest, device=query.device)
        hidden = at >= self.lengths[:, None]  # [P, L]
        hidden = hidden[:, None, None, :]
        if window is not None:
            behind = self.depths[self.grid].view(prompts, self.widest) + self.lengths[:, None] - 1
            far = behind[:, :, None] - at >= window  # [P, W, L]
            hidden = hidden | far.repeat(1, groups, 1)[:, None]
        part = _attend(asked, kv.prompt_keys, kv.prompt_values, hidden, softcap)
        return _Part(*(self._by_branch(each, heads, groups) for each in part))

    def _by_branch(self, cells: Tensor, heads: int, groups: int) -> Tensor:
        """[P, H_kv, G * W, n] -> [H_kv, R, G, n]."""
        prompts, width = len(cells), cells.shape[-1]
        split = cells.view(prompts, heads, groups, self.widest, width)
        flat = split.permute(1, 0, 3, 2, 4).reshape(heads, prompts * self.widest, groups, width)
        return flat if self.aligned else flat.index_select(1, self.cells)


class _Part(tuple[Tensor, Tensor, Tensor]):
    """A softmax over some of the keys, unfinished: greatest score [..., 1], sum of the weights
    relative to it [..., 1], weighted values [..., D]."""

    def __new__(cls, greatest: Tensor, total: Tensor, weighted: Tensor) -> "_Part":
        return super().__new__(cls, (greatest, total, weighted))


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, softcap: float | None
) -> _Part:
    """query [..., M, D], keys, values [..., L, D], hidden: broadcast to [..., M, L]."""
    scores = query @ keys.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill_(hidden, -torch.inf)
    # Where every key is hidden the weights are all 0, not nan.
    greatest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    weights = scores.sub_(greatest).exp_()
    return _Part(greatest, weights.sum(-1, keepdim=True), weights.to(values.dtype) @ values)


def _merged(one: _Part, other: _Part) -> Tensor:
    greatest = torch.maximum(one[0], other[0])
    first, second = (one[0] - greatest).exp_(), (other[0] - greatest).exp_()
    total = one[1] * first + other[1] * second
    return (one[2] * first + other[2] * second) / total
