"""What the monitor needs to know of a run, found in a trainer or given by hand.

A trainer of tokenq says it itself (`watched()`); of any other one the attributes are read that
TRL's DPOTrainer has.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokenq.data import Prepared, Rows, load_rows, prepare
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.packing import Ids
from tokenq.models.reference import AdapterOff
from tokenq.monitor.readings import ProbePair, SetName

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
TEXTS = ("prompt", "chosen", "rejected")
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Watched:
    """A run to be monitored.

    held_out:  rows that training does not see, None where there are none
    trained:   rows that it sees
    reference: what rewards are measured against, a model that stays as it is; None: the policy
               before its first step
    beta:      implicit rewards are beta times log-ratios in nats
    facts:     settings worth showing beside the curves
    off:       why there is nothing to monitor, or None
    """

    held_out: Any = None
    trained: Any = None
    reference: nn.Module | AdapterOff | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    beta: float | None = None
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    facts: Mapping[str, Any] = field(default_factory=dict)
    off: str | None = None


def watched(trainer: Any) -> Watched:
    """Find in a trainer what there is to monitor. Raises UserError if it is of another kind."""
    own = getattr(trainer, "watched", None)
    if own is not None:
        found: Watched = own()
        return found
    args = trainer.args
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, Mapping):
        evaluation = next(iter(evaluation.values()), None)
    trained = trainer.train_dataset
    held_out = evaluation if _columns(evaluation) else None
    if not _columns(trained) and held_out is None:
        raise UserError(
            f"monitor: {type(trainer).__name__} has no rows with {', '.join(IDS)}; accepted: "
            "PreferenceTrainer, TRL's DPOTrainer, or Monitor(held_out=rows) as a plain callback"
        )
    moving = bool(getattr(args, "sync_ref_model", False))
    reference = None if moving else getattr(trainer, "ref_model", None)
    return Watched(
        held_out,
        trained if _columns(trained) else None,
        reference_of(trainer.model, reference),
        getattr(trainer, "processing_class", None),
        facts={"trainer": type(trainer).__name__, "objective": getattr(args, "loss_type", None)},
        **settings_of(args),
    )


def settings_of(args: Any) -> dict[str, Any]:
    """What arguments of TRL's kind say of rewards and lengths, as fields of :class:`Watched`."""
    return {
        "beta": getattr(args, "beta", None),
        "max_length": getattr(args, "max_length", None),
        "truncation_mode": getattr(args, "truncation_mode", "keep_start"),
    }


def reference_of(policy: nn.Module, given: Any = None) -> nn.Module | AdapterOff | None:
    """The reference model: the one given, the base under an adapter, or None for the start."""
    if given is not None:
        reference: nn.Module | AdapterOff = given
        return reference
    return AdapterOff(policy) if isinstance(policy, PeftModel) else None


def name_of(model: Any) -> str:
    """Where a model came from, for people."""
    name = model.name if isinstance(model, AdapterOff) else causal_lm(model).config._name_or_path
    return str(name or "a model without a name")


@dataclass(frozen=True)
class PairRows:
    """Preference pairs as token ids, cut as the trainer cuts them.

    max_length, truncation_mode: of prompt and answer together, as in TRL; None: whole rows
    """

    rows: Any
    max_length: int | None
    truncation_mode: str

    @classmethod
    def of(
        cls,
        source: Any,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int | None = None,
        truncation_mode: str = "keep_start",
    ) -> "PairRows":
        """Rows of token ids as they are; texts, or a path to them, tokenised.

        Raises UserError for rows that are neither, or texts without a tokenizer.
        """
        if isinstance(source, str | Path):
            source = load_rows(source)
        if isinstance(source, Sequence) and source and isinstance(source[0], Mapping):
            source = _data_set(list(source))
        if not isinstance(source, Rows | Prepared) and not _columns(source):
            source = _text_rows(source, name)
        if isinstance(source, Rows):
            if tokenizer is None:
                raise UserError(f"{name}: holds texts; accepted: token ids, or a tokenizer as well")
            source = prepare(source, tokenizer, max_length=max_length or _NO_LIMIT, segments="none")
        if isinstance(source, Prepared):
            if source.kind != "preference":
                raise UserError(f"{name}: holds {source.kind} rows; accepted: preference pairs")
            source = source.dataset
        return cls(source, max_length, truncation_mode)

    def draw(self, source: SetName, count: int, seed: int) -> list[ProbePair]:
        """`count` pairs, or all if there are fewer, in the rows' order; reads no other rows.

        Rows in which the prompt or an answer has no token left are passed over.
        """
        order = list(range(len(self.rows)))
        random.Random(f"{seed} {source}").shuffle(order)
        drawn: list[ProbePair] = []
        for number in order:
            if len(drawn) == count:
                break
            pair = self._pair(source, number)
            if all(map(len, (pair.prompt, pair.chosen, pair.rejected))):
                drawn.append(pair)
        return sorted(drawn, key=lambda pair: pair.row)

    def _pair(self, source: SetName, number: int) -> ProbePair:
        row = self.rows[number]
        prompt = list(row["prompt_ids"])
        cut = [self._cut(prompt, list(row[name])) for name in IDS[1:]]
        # `keep_end` may cut the prompt differently for each; both are read after the shorter one.
        return ProbePair(
            source, number, min((each for each, _ in cut), key=len), cut[0][1], cut[1][1]
        )

    def _cut(self, prompt: list[int], answer: list[int]) -> tuple[Ids, Ids]:
        over = 0 if self.max_length is None else len(prompt) + len(answer) - self.max_length
        if over <= 0:
            return prompt, answer
        if self.truncation_mode == "keep_end":
            return prompt[min(over, len(prompt)) :], answer[max(0, over - len(prompt)) :]
        return prompt, answer[: max(0, len(answer) - over)]


def _columns(rows: Any) -> bool:
    """Whether these are rows of a known number with token ids of pairs."""
    names = getattr(rows, "column_names", None) or ()
    return hasattr(rows, "__len__") and set(IDS) <= set(names)


def _data_set(rows: list[Mapping[str, Any]]) -> Any:
    import datasets

    return datasets.Dataset.from_list([dict(row) for row in rows])


def _text_rows(source: Any, name: str) -> Rows:
    columns = getattr(source, "column_names", None) or ()
    if not hasattr(source, "__len__") or not set(TEXTS) <= set(columns):
        raise UserError(
            f"{name}: has the columns {', '.join(columns) or 'none'}; accepted: "
            f"{', '.join(IDS)}, or {', '.join(TEXTS)}"
        )
    kept = source.select_columns(list(TEXTS))
    numbered = kept.add_column("row", list(range(len(kept))))
    return Rows(numbered, "preference", name, numbered._fingerprint, 0)
