"""From prepared rows to micro-batches, and from packed log-probs to what objectives are given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenq.models.forward import pad_rows
from tokenq.models.packing import Pack, pack_trees
from tokenq.objectives import PairLogps, ResponseLogps

Ids = list[int]


@dataclass(frozen=True)
class Batch:
    """Rows of token ids; `responses[i]` are row i's answers: chosen and rejected, or one alone.

    rows:      number of each row in its source
    prompts:   token ids of each row's prompt
    responses: token ids of each row's answers, the same number of answers in every row
    """

    rows: tuple[int, ...]
    prompts: tuple[Ids, ...]
    responses: tuple[tuple[Ids, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences prompt + answer, the prompt counted for each (as TRL counts)."""
        return sum(
            len(prompt) + len(answer)
            for prompt, answers in zip(self.prompts, self.responses, strict=True)
            for answer in answers
        )

    def take(self, indices: Sequence[int]) -> "Batch":
        """Return the batch of these rows alone."""
        return Batch(
            tuple(self.rows[i] for i in indices),
            tuple(self.prompts[i] for i in indices),
            tuple(self.responses[i] for i in indices),
        )

    def flat(self) -> tuple[list[Ids], list[Ids]]:
        """Return (prompts, answers), one entry an answer: all first answers, then all second."""
        sides = list(zip(*self.responses, strict=True))
        return [p for _ in sides for p in self.prompts], [ids for side in sides for ids in side]

    def pack(self) -> Pack:
        """Pack the whole batch into one forward."""
        prompts, responses = self.flat()
        size = sum(map(len, prompts)) + sum(map(len, responses))
        (pack,) = pack_trees(prompts, responses, token_budget=size)
        return pack


@dataclass(frozen=True)
class Collator:
    """Prepared rows -> :class:`Batch`. `columns`: the token-id columns of a row's answers.

    With columns ("chosen_ids", "rejected_ids") the row {"row": 7, "prompt_ids": [1, 2],
    "chosen_ids": [3], "rejected_ids": [4, 5]} becomes rows (7,), prompts ([1, 2],), responses
    (([3], [4, 5]),). No rows make an empty batch.
    """

    columns: tuple[str, ...]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Collect the rows; nothing is padded."""
        return Batch(
            tuple(int(example["row"]) for example in examples),
            tuple(example["prompt_ids"] for example in examples),
            tuple(tuple(example[name] for name in self.columns) for example in examples),
        )


def micro_batches(batch: Batch, token_budget: int) -> list[Batch]:
    """Split a batch into parts of at most `token_budget` packed tokens, rows kept whole.

    Rows with one prompt go together, since they share it. A row over the budget stands alone.
    """
    parts: list[list[int]] = []
    free: list[int] = []
    for size, rows in sorted(_trees(batch, token_budget), key=lambda tree: -tree[0]):
        fitting = next((i for i, room in enumerate(free) if size <= room), None)
        if fitting is None:
            parts.append(rows)
            free.append(token_budget - size)
        else:
            parts[fitting] += rows
            free[fitting] -= size
    return [batch.take(sorted(part)) for part in parts]


def _trees(batch: Batch, token_budget: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (packed tokens, rows) of rows that share a prompt; equal answers are packed once."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, ids in enumerate(batch.prompts):
        by_prompt.setdefault(tuple(ids), []).append(i)
    for prompt, rows in by_prompt.items():
        part: list[int] = []
        answers: set[tuple[int, ...]] = set()
        for row in rows:
            more = answers | {tuple(answer) for answer in batch.responses[row]}
            if part and _tree_size(prompt, more) > token_budget:
                yield _tree_size(prompt, answers), part
                part, more = [], {tuple(answer) for answer in batch.responses[row]}
            part.append(row)
            answers = more
        yield _tree_size(prompt, answers), part


def _tree_size(prompt: tuple[int, ...], answers: set[tuple[int, ...]]) -> int:
    # The last token of an answer is predicted, never read.
    return len(prompt) + sum(len(answer) - 1 for answer in answers)


@dataclass(frozen=True)
class Sides:
    """One [B, T] tensor a side (first answers, second answers) with its mask.

    values: [B, T] float, 0 where the mask is False
    masks:  [B, T] bool
    """

    values: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    @classmethod
    def of(cls, rows: Sequence[Tensor], count: int) -> "Sides":
        """Split rows ([T_i] each, in the order of :meth:`Batch.flat`) into `count` sides."""
        size = len(rows) // count
        padded = [
            pad_rows(torch.cat(part), [len(row) for row in part])
            for part in (list(rows[i * size : (i + 1) * size]) for i in range(count))
        ]
        return cls(tuple(values for values, _ in padded), tuple(mask for _, mask in padded))


def in_flat_order(values: Tensor, pack: Pack) -> list[Tensor]:
    """Return the rows [T_i] of a [N] tensor in pack order, in the order of the batch."""
    pieces = dict(zip(pack.rows, values.split(list(pack.lengths)), strict=True))
    return [pieces[row] for row in range(len(pieces))]


def pair_view(logps: Sides, ref_logps: Sides | None) -> PairLogps:
    """Chosen beside rejected; without a reference its log-probs are zeros."""
    chosen, rejected = logps.values
    if ref_logps is None:
        ref_chosen, ref_rejected = torch.zeros_like(chosen), torch.zeros_like(rejected)
    else:
        ref_chosen, ref_rejected = ref_logps.values
    chosen_mask, rejected_mask = logps.masks
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, chosen_mask, rejected_mask)


def response_view(logps: Sides, ref_logps: Sides | None) -> ResponseLogps:
    """The first answers alone: the completion, or the chosen side of a pair."""
    reference = None if ref_logps is None else ref_logps.values[0]
    return ResponseLogps(logps.values[0], logps.masks[0], reference)


VIEWS: dict[str, Callable[[Sides, Sides | None], PairLogps | ResponseLogps]] = {
    "preference": pair_view,
    "sft": response_view,
}
"""What an objective of each kind is called with."""


def shape_of(batch: Batch) -> Sides:
    """Zeros and masks of a batch's log-probs, on CPU: enough to know an objective's weight."""
    _, responses = batch.flat()
    return Sides.of([torch.zeros(len(ids)) for ids in responses], len(batch.responses[0]))
