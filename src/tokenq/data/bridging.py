"""Bridged pairs: the rejected answer edited towards the chosen one becomes the new chosen answer.

The two sides then differ where it matters and nowhere else. Bridging and Modeling Correlations in
Pairwise Data for Direct Preference Optimization (BMC), arXiv 2408.07471.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from string import Formatter
from typing import Any, Literal

import datasets
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tokenq.data.edits import edit_distance
from tokenq.data.encoding import encode_prompt
from tokenq.data.formats import Messages
from tokenq.data.hashing import json_hash
from tokenq.data.loading import Rows
from tokenq.errors import UserError

Prompt = str | Messages
Editor = Callable[[Prompt, str, str], str | None]
"""(prompt, chosen, rejected) to the edited rejected answer; None where the editor has none."""

UNBRIDGED_REASONS = {
    "several_turns": "an answer has more than one message",
    "no_edit": "the editor gave nothing",
    "unchanged": "the edit is the rejected answer",
    "chosen_itself": "the edit is the chosen answer",
    "farther": "the edit is farther from the rejected answer than the chosen answer is",
}

EDIT_INSTRUCTION = """\
Below are a task and two answers to it. Answer B is better than answer A. Correct answer A: change \
as few words as you can to make it as good as answer B, and leave all its other words as they are. \
Reply with the corrected answer A and nothing else.

Task:
{prompt}

Answer A:
{rejected}

Answer B:
{chosen}"""
"""What :class:`ModelEditor` asks; the three names in braces are filled in."""


@dataclass(frozen=True)
class Bridged:
    """``rows``: pairs with new chosen answers. ``counts``: number of rows by what became of them.

    The counts' names are ``bridged`` and those of :data:`UNBRIDGED_REASONS`.
    """

    rows: Rows
    counts: dict[str, int]


def words(text: str) -> list[str]:
    """Words, numbers and signs of a text, each with the blanks before it; joined they are it."""
    return re.findall(r"\s*(?:\d+(?:[.,]\d+)*|\w+|[^\w\s])|\s+", text)


def bridge(
    rows: Rows,
    editor: Editor,
    *,
    tokenise: Callable[[str], Sequence[Hashable]] = words,
    unbridged: Literal["keep", "drop"] = "keep",
) -> Bridged:
    """Put an edit of the rejected answer in place of each chosen answer.

    An edit counts if it lies no farther from the rejected answer than the chosen one does
    (:func:`tokenq.data.edits.edit_distance` over ``tokenise``) and is neither of them. Whether it
    is as good as the chosen answer is for the editor to see to; nothing here can tell.

    Args:
        rows: preference pairs, loaded. Message answers of a single turn keep their other keys.
        editor: see :data:`Editor`; :class:`AcceptedSpans`, :class:`SmallestCorrect` and
            :class:`ModelEditor` are ready.
        tokenise: the items whose edits are counted, such as a tokenizer's ``tokenize``.
        unbridged: whether a row without an edit keeps its chosen answer or is left out.

    Returns:
        Rows with the columns ``original_chosen`` and ``bridged`` (bool) beside the others.

    Raises:
        UserError: the rows are no loaded preference pairs, are bridged already, or none is left.
    """
    dataset = rows.dataset
    if rows.kind != "preference" or isinstance(dataset, datasets.IterableDataset):
        raise UserError(
            f"{rows.source}: pairs are bridged, loaded ones; accepted: prompt+chosen+rejected, "
            "streaming=False"
        )
    if "original_chosen" in dataset.column_names:
        raise UserError(f"{rows.source}: has a column 'original_chosen': it is bridged already")
    chosen, outcomes = [], []
    for row in datasets.utils.tqdm(dataset, desc="Bridging", unit="row"):
        answer, outcome = _edited(row, editor, tokenise)
        chosen.append(answer)
        outcomes.append(outcome)
    done = [outcome == "bridged" for outcome in outcomes]
    content = json_hash({"rows": rows.fingerprint, "chosen": chosen, "unbridged": unbridged})
    bridged = dataset.rename_column("chosen", "original_chosen")
    for name, values, kind in (
        ("chosen", chosen, dataset.features["chosen"]),
        ("bridged", done, datasets.Value("bool")),
    ):
        named = json_hash([content, name])[:32]
        bridged = bridged.add_column(name, values, new_fingerprint=named, feature=kind)
    if unbridged == "drop":
        bridged = bridged.select([place for place, each in enumerate(done) if each])
        if not len(bridged):
            raise UserError(f"{rows.source}: no row could be bridged ({_shown(outcomes)})")
    new_rows = replace(rows, dataset=bridged, fingerprint=content)
    return Bridged(new_rows, dict(Counter(outcomes)))


@dataclass(frozen=True)
class EditSpan:
    """One place where the words of two answers differ.

    ``removed``: what stands there in the rejected answer. ``added``: what stands there in the
    chosen one. Either may be empty. ``size``: words of the longer of the two.
    """

    removed: str
    added: str
    size: int


@dataclass(frozen=True)
class AcceptedSpans:
    """An editor that takes over the differences it is told to: those that ``accept`` holds for.

    Sensible where the two answers are versions of one text (corrections, code, templates). Of two
    answers that were written independently it makes a patchwork; use a model there.
    """

    accept: Callable[[EditSpan], bool]

    def __call__(self, prompt: Prompt, chosen: str, rejected: str) -> str | None:
        """The rejected answer with the accepted differences, None if there are none."""
        pieces = _difference(chosen, rejected)
        taken = [isinstance(each, EditSpan) and self.accept(each) for each in pieces]
        return _joined(pieces, taken) if any(taken) else None


def at_most(size: int) -> Callable[[EditSpan], bool]:
    """For :class:`AcceptedSpans`: differences of at most ``size`` words."""
    return lambda span: span.size <= size


@dataclass(frozen=True)
class SmallestCorrect:
    """An editor that takes over no more differences than make the rejected answer correct.

    It starts from all differences, which is the chosen answer, and gives up one after the other,
    large ones first, as long as the answer stays correct. What is left is minimal: undoing any
    single one of its edits makes the answer wrong.

    ``is_correct``: (prompt, answer) to whether the answer is right, such as a comparison of the
    final number or a run of unit tests.
    """

    is_correct: Callable[[Prompt, str], bool]

    def __call__(self, prompt: Prompt, chosen: str, rejected: str) -> str | None:
        """The edit, None if the chosen answer is wrong or the rejected one right."""
        if not self.is_correct(prompt, chosen) or self.is_correct(prompt, rejected):
            return None
        pieces = _difference(chosen, rejected)
        sizes = {i: each.size for i, each in enumerate(pieces) if isinstance(each, EditSpan)}
        taken = [place in sizes for place in range(len(pieces))]
        given_up = True
        while given_up:
            given_up = False
            for place in sorted(sizes, key=lambda i: -sizes[i]):
                trial = [each and i != place for i, each in enumerate(taken)]
                if taken[place] and self.is_correct(prompt, _joined(pieces, trial)):
                    taken, given_up = trial, True
        return _joined(pieces, taken)


@dataclass(frozen=True)
class ModelEditor:
    """An editor that asks a causal language model, decoding greedily.

    ``tokenizer``: with a chat template. ``instruction``: the user's message, with {prompt},
    {chosen} and {rejected}. ``max_new_tokens``: bound on the edit's length; edits that could only
    be farther from the rejected answer than the chosen one are cut off earlier.

    Raises:
        UserError: the instruction lacks a name or has another one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    instruction: str = EDIT_INSTRUCTION
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        try:
            names = {name for _, name, _, _ in Formatter().parse(self.instruction)} - {None}
        except ValueError as error:
            raise UserError(f"the edit instruction has a stray brace ({error})") from None
        if names != {"prompt", "chosen", "rejected"}:
            raise UserError(
                f"the edit instruction has the names {sorted(map(str, names))}; accepted: "
                "{prompt}, {chosen} and {rejected}, each somewhere"
            )

    def __call__(self, prompt: Prompt, chosen: str, rejected: str) -> str | None:
        """The model's edit; None if it does not end in time or does not fit the context."""
        import torch

        task = prompt if isinstance(prompt, str) else _dialogue(prompt)
        asked = self.instruction.format(prompt=task, chosen=chosen, rejected=rejected)
        ids = encode_prompt(self.tokenizer, [{"role": "user", "content": asked}])
        sizes = [len(self.tokenizer(text)["input_ids"]) for text in (rejected, chosen)]
        room = min(self.max_new_tokens, sizes[0] + max(sizes) + 1)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and len(ids) + room > positions:
            return None
        inputs = torch.tensor([ids], device=self.model.device)
        generate: Any = self.model.generate
        with torch.no_grad():
            whole = generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=room,
                    eos_token_id=self._ends,
                    pad_token_id=self._ends[0],
                ),
            )
        written = whole[0, len(ids) :].tolist()
        if written[-1] not in self._ends:
            return None
        return str(self.tokenizer.decode(written[:-1], skip_special_tokens=True)).strip() or None

    @property
    def _ends(self) -> list[int]:
        known = self.model.generation_config
        ends = known.eos_token_id if known is not None else None
        listed = ends if isinstance(ends, list) else [ends]
        return sorted({end for end in (*listed, self.tokenizer.eos_token_id) if end is not None})


def _edited(
    row: dict[str, Any], editor: Editor, tokenise: Callable[[str], Sequence[Hashable]]
) -> tuple[Any, str]:
    """The row's new chosen answer, and what became of the row."""
    answers = [row["chosen"], row["rejected"]]
    if any(isinstance(answer, list) and len(answer) > 1 for answer in answers):
        return row["chosen"], "several_turns"
    chosen, rejected = (
        answer if isinstance(answer, str) else answer[0].get("content") or "" for answer in answers
    )
    edit = editor(row["prompt"], chosen, rejected)
    if edit is None or not edit.strip():
        return row["chosen"], "no_edit"
    if edit == rejected:
        return row["chosen"], "unchanged"
    if edit == chosen:
        return row["chosen"], "chosen_itself"
    items = tokenise(rejected)
    if edit_distance(tokenise(edit), items) > edit_distance(tokenise(chosen), items):
        return row["chosen"], "farther"
    if isinstance(row["chosen"], str):
        return edit, "bridged"
    return [{**row["chosen"][0], "content": edit}], "bridged"


def _difference(chosen: str, rejected: str) -> list[str | EditSpan]:
    """The rejected answer as stretches that both share and places where they differ."""
    before, after = words(rejected), words(chosen)
    pieces: list[str | EditSpan] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        removed, added = "".join(before[i:j]), "".join(after[k:m])
        pieces.append(removed if kind == "equal" else EditSpan(removed, added, max(j - i, m - k)))
    return pieces


def _joined(pieces: Sequence[str | EditSpan], taken: Sequence[bool]) -> str:
    """The rejected answer with those differences edited that are ``taken``."""
    return "".join(
        piece if isinstance(piece, str) else piece.added if take else piece.removed
        for piece, take in zip(pieces, taken, strict=True)
    )


def _dialogue(messages: Messages) -> str:
    if len(messages) == 1:
        return str(messages[0].get("content", ""))
    return "\n".join(f"{turn['role']}: {turn.get('content', '')}" for turn in messages)


def _shown(outcomes: list[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(outcomes).most_common())
