"""What a trainer accepts as data, brought to one form: tokenised rows with their origin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
from pyarrow import compute
from transformers import PreTrainedTokenizerBase

from tokenq.data import (
    PreparationReport,
    Prepared,
    Rows,
    add_edits,
    holds_token_ids,
    load_rows,
    load_tokenised,
    prepare,
    share_steps,
    stop_word_ids,
    tokenised_kind,
)
from tokenq.data.preparation import TruncationMode
from tokenq.data.segments import SegmentMode
from tokenq.data.tokenised import TOKENISED_COLUMNS
from tokenq.errors import UserError
from tokenq.training.batches import Collator, Ids
from tokenq.training.columns import token_features, with_mismatched
from tokenq.training.config import PreferenceConfig
from tokenq.training.mixture import Mixture

NO_LIMIT = 2**31


@dataclass(frozen=True)
class Split:
    """One set of tokenised rows.

    columns:  token-id columns of the answers that the objectives look at
    features: token features that every answer has a column of
    report:   what preparation did, or None if the rows came tokenised
    """

    dataset: Any
    kind: str
    columns: tuple[str, ...]
    features: tuple[str, ...]
    source: str
    fingerprint: str
    report: PreparationReport | None

    @property
    def collator(self) -> Collator:
        """Collects the set's rows."""
        return Collator(self.columns, self.kind, self.features)

    @property
    def scored(self) -> tuple[str, ...]:
        """Columns of all answers that go through the models."""
        mismatched = "mismatched_ids" in (self.dataset.column_names or ())
        return (*self.columns, *(("mismatched_ids",) if mismatched else ()))


def answers(split: Split) -> tuple[list[Ids], list[Ids]]:
    """Return (prompts, answers) of the whole set, one entry for each answer to be scored."""
    rows = split.dataset.select_columns(["prompt_ids", *split.scored])[:]
    found: list[tuple[Ids, Ids]] = []
    for name in split.scored:
        for prompt, value in zip(rows["prompt_ids"], rows[name], strict=True):
            found += [(prompt, each) for each in (value if split.kind == "ranked" else [value])]
    return [prompt for prompt, _ in found], [answer for _, answer in found]


def prepare_split(
    source: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    args: PreferenceConfig,
    mixture: Mixture,
) -> Split:
    """Load, check and tokenise `source`; raises UserError if the objectives cannot learn from it.

    source: path, hub name or `bundled:` name; `Rows`; `Prepared`; a `datasets` set with columns as
            in `Prepared`; a `Split`, which is returned as it is.
    """
    if isinstance(source, Split):
        return source
    if isinstance(source, str | Path):
        name = str(source)
        source = load_tokenised(source) if holds_token_ids(source) else load_rows(source)
    if isinstance(source, Rows):
        mixture.check_data(source.kind, source.source)
        name = source.source
        source = _prepare(source, tokenizer, args, mixture)
    prepared = source if isinstance(source, Prepared) else None
    if prepared is not None and "edits" in mixture.needs and _lacks_edits(prepared):
        prepared = add_edits(prepared, stop_word_ids(tokenizer), num_proc=args.dataset_num_proc)
    dataset = source if prepared is None else prepared.dataset
    kind = _tokenised_kind(dataset, name) if prepared is None else prepared.kind
    mixture.check_data(kind, name)
    columns = mixture.response_columns(kind)
    if isinstance(dataset, datasets.Dataset):
        if not len(dataset):
            raise UserError(f"{name}: no row is left after preparation; see the report above")
        if "row" not in dataset.column_names:
            dataset = dataset.add_column("row", list(range(len(dataset))))
    if "mismatched" in mixture.needs:
        dataset = with_mismatched(dataset, columns[0], args, name)
    return Split(
        dataset=dataset,
        kind=kind,
        columns=columns,
        features=token_features(dataset, columns, mixture, args, name),
        source=name,
        fingerprint=dataset._fingerprint if prepared is None else prepared.fingerprint,
        report=None if prepared is None else prepared.report,
    )


def _lacks_edits(prepared: Prepared) -> bool:
    columns = prepared.dataset.column_names or ()
    return prepared.kind == "preference" and "chosen_edits" not in columns


def _prepare(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, mixture: Mixture
) -> Prepared:
    """Tokenise rows, with the turns or steps that an objective or a setting asks for."""
    segments = args.segments
    if args.step_pairs:
        segments = "steps"
    elif segments == "auto" and "segments" in mixture.needs:
        segments = "turns"
    prepared = prepare(
        rows,
        tokenizer,
        max_length=args.max_length or NO_LIMIT,
        max_prompt_length=args.max_prompt_length,
        truncation_mode=cast(TruncationMode, args.truncation_mode),
        segments=cast(SegmentMode, segments),
        step_pattern=args.step_pattern,
        num_proc=args.dataset_num_proc,
    )
    return share_steps(prepared, keep=1) if args.step_pairs else prepared


def check_lengths(split: Split, positions: int | None) -> None:
    """Raise UserError if a row is longer than the model has positions."""
    if positions is None or not isinstance(split.dataset, datasets.Dataset):
        return
    columns = ["prompt_ids", *split.scored]
    table = split.dataset.select_columns(columns).with_format("arrow")[:]
    prompt, *answers = (table[name] for name in columns)
    lengths = [_answer_lengths(answer, split.kind) for answer in answers]
    longest = max(
        compute.max(compute.add(compute.list_value_length(prompt), length)).as_py()
        for length in lengths
    )
    if longest > positions:
        raise UserError(
            f"{split.source}: a row has {longest} tokens, but the model has {positions} positions "
            f"(max_position_embeddings); set max_length to {positions} or less"
        )


def _answer_lengths(answers: Any, kind: str) -> Any:
    """Tokens of each row's answer, of the longest one where a row has several."""
    if kind != "ranked":
        return compute.list_value_length(answers)
    answers = answers.combine_chunks()
    rows = compute.list_parent_indices(answers)
    lengths = compute.list_value_length(compute.list_flatten(answers))
    table = pyarrow.table({"row": rows, "length": lengths})
    return table.group_by("row").aggregate([("length", "max")]).sort_by("row")["length_max"]


def _tokenised_kind(dataset: Any, name: str) -> str:
    columns = getattr(dataset, "column_names", None) or ()
    kind = tokenised_kind(columns)
    if kind is None:
        raise UserError(
            f"{name}: expected a path, Rows, Prepared, or a data set with the columns "
            f"{' or '.join('+'.join(c) for c in TOKENISED_COLUMNS.values())}; got "
            f"{'+'.join(sorted(columns)) or type(dataset).__name__}. For raw rows, "
            "use tokenq.data.load_rows"
        )
    return kind
