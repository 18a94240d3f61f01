"""From prepared rows to micro-batches: token ids of prompts and answers, and how they are split.

What a forward makes of them is `scores`; nothing here is a tensor of a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenq.models.packing import Pack, pack_trees

Ids = list[int]
Place = tuple[int, int]
"""Row of the batch and number of the answer in it."""

MISMATCHED = -1
"""Number of the answer that belongs to another row's prompt."""


@dataclass(frozen=True)
class Batch:
    """Rows of token ids; `responses[i]` are row i's answers, one or several.

    rows:       number of each row in its source
    prompts:    token ids of each row's prompt
    responses:  token ids of each row's answers: chosen and rejected, one completion, or a list
                from best to worst, whose length may differ between rows
    kind:       what the rows are, as in `tokenq.data`
    labels:     of unpaired rows, 1 for a good completion and 0 for a bad one
    ranks:      of ranked rows, the answers' ranks; equal ranks are ties
    mismatched: one answer of another row to each prompt, or none at all
    features:   named values of every token of every answer, as in `StepFeatures`
    """

    rows: tuple[int, ...]
    prompts: tuple[Ids, ...]
    responses: tuple[tuple[Ids, ...], ...]
    kind: str = "preference"
    labels: tuple[float, ...] = ()
    ranks: tuple[tuple[int, ...], ...] = ()
    mismatched: tuple[Ids, ...] = ()
    features: Mapping[str, tuple[tuple[list[float], ...], ...]] = field(default_factory=dict)

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

    @property
    def width(self) -> int:
        """Most answers of a row."""
        return max(map(len, self.responses), default=0)

    def places(self) -> list[Place]:
        """Every answer, in the order of :meth:`flat`: all first answers, then all second..."""
        places = [
            (row, number)
            for number in range(self.width)
            for row, answers in enumerate(self.responses)
            if number < len(answers)
        ]
        return places + [(row, MISMATCHED) for row in range(len(self.mismatched))]

    def answer(self, place: Place) -> Ids:
        """Token ids of the answer at `place`."""
        row, number = place
        return self.mismatched[row] if number == MISMATCHED else self.responses[row][number]

    def flat(self) -> tuple[list[Ids], list[Ids]]:
        """Return (prompts, answers), one entry an answer, in the order of :meth:`places`."""
        places = self.places()
        return [self.prompts[row] for row, _ in places], [self.answer(p) for p in places]

    def take(self, indices: Sequence[int]) -> "Batch":
        """Return the batch of these rows alone."""

        def picked(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[i] for i in indices) if values else ()

        return Batch(
            picked(self.rows),
            picked(self.prompts),
            picked(self.responses),
            self.kind,
            picked(self.labels),
            picked(self.ranks),
            picked(self.mismatched),
            {name: picked(values) for name, values in self.features.items()},
        )

    def pack(self) -> Pack:
        """Pack the whole batch into one forward."""
        prompts, responses = self.flat()
        size = sum(map(len, prompts)) + sum(map(len, responses))
        (pack,) = pack_trees(prompts, responses, token_budget=size)
        return pack


def join(parts: Sequence[Batch]) -> Batch:
    """Return the rows of all parts in one batch, part after part."""
    first = parts[0]

    def joined(name: str) -> tuple[Any, ...]:
        return tuple(value for part in parts for value in getattr(part, name))

    return Batch(
        joined("rows"),
        joined("prompts"),
        joined("responses"),
        first.kind,
        joined("labels"),
        joined("ranks"),
        joined("mismatched"),
        {
            name: tuple(value for part in parts for value in part.features[name])
            for name in first.features
        },
    )


@dataclass(frozen=True)
class Collator:
    """Prepared rows -> :class:`Batch`. `columns`: the token-id columns of a row's answers.

    With columns ("chosen_ids", "rejected_ids") the row {"row": 7, "prompt_ids": [1, 2],
    "chosen_ids": [3], "rejected_ids": [4, 5]} becomes rows (7,), prompts ([1, 2],), responses
    (([3], [4, 5]),). No rows make an empty batch.

    kind:     of the rows. Those of unpaired rows have a `label`, those of ranked rows `ranks`, and
              their one column holds the list of answers
    features: names of the token features that the rows hold, as `chosen_edits` for "edits"
    """

    columns: tuple[str, ...]
    kind: str = "preference"
    features: tuple[str, ...] = ()

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Collect the rows; nothing is padded."""
        return Batch(
            tuple(int(example["row"]) for example in examples),
            tuple(example["prompt_ids"] for example in examples),
            tuple(self._answers(example) for example in examples),
            self.kind,
            _column(examples, "label", float),
            _column(examples, "ranks", tuple),
            _column(examples, "mismatched_ids", list),
            {
                name: tuple(self._feature(example, name) for example in examples)
                for name in self.features
            },
        )

    def _answers(self, example: Mapping[str, Any]) -> tuple[Ids, ...]:
        if self.kind == "ranked":
            return tuple(example[self.columns[0]])
        return tuple(example[name] for name in self.columns)

    def _feature(self, example: Mapping[str, Any], name: str) -> tuple[list[float], ...]:
        values = tuple(example[feature_column(ids, name)] for ids in self.columns)
        return tuple(values[0]) if self.kind == "ranked" else values


def feature_column(ids_column: str, feature: str) -> str:
    """Name of the column that holds a feature of an answer's tokens: `chosen_edits`."""
    return f"{ids_column.removesuffix('_ids')}_{feature}"


def _column(examples: Sequence[Mapping[str, Any]], name: str, make: Any) -> tuple[Any, ...]:
    return tuple(make(example[name]) for example in examples if name in example)


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
            own = {tuple(answer) for answer in batch.responses[row]}
            own |= {tuple(answer) for answer in batch.mismatched[row : row + 1]}
            if part and _tree_size(prompt, answers | own) > token_budget:
                yield _tree_size(prompt, answers), part
                part, answers = [], set()
            part.append(row)
            answers = answers | own
        yield _tree_size(prompt, answers), part


def _tree_size(prompt: tuple[int, ...], answers: set[tuple[int, ...]]) -> int:
    # The last token of an answer is predicted, never read.
    return len(prompt) + sum(len(answer) - 1 for answer in answers)
