"""What a trainer accepts as data, brought to one form: tokenised rows with their origin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from pyarrow import compute
from transformers import PreTrainedTokenizerBase

from tokenq.data import PreparationReport, Prepared, Rows, load_rows, prepare
from tokenq.data.preparation import TruncationMode
from tokenq.errors import UserError
from tokenq.training.config import PreferenceConfig
from tokenq.training.mixture import Mixture

TOKENISED = {
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "sft": ("prompt_ids", "completion_ids"),
}

NO_LIMIT = 2**31


@dataclass(frozen=True)
class Split:
    """One set of tokenised rows.

    columns: token-id columns of the answers that the objectives look at
    report:  what preparation did, or None if the rows came tokenised
    """

    dataset: Any
    kind: str
    columns: tuple[str, ...]
    source: str
    fingerprint: str
    report: PreparationReport | None


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
        source = load_rows(source)
    if isinstance(source, Rows):
        mixture.check_data(source.kind, source.source)
        name = source.source
        source = prepare(
            source,
            tokenizer,
            max_length=args.max_length or NO_LIMIT,
            max_prompt_length=args.max_prompt_length,
            truncation_mode=cast(TruncationMode, args.truncation_mode),
            num_proc=args.dataset_num_proc,
        )
    prepared = source if isinstance(source, Prepared) else None
    dataset = source if prepared is None else prepared.dataset
    kind = _tokenised_kind(dataset, name) if prepared is None else prepared.kind
    mixture.check_data(kind, name)
    if isinstance(dataset, datasets.Dataset):
        if not len(dataset):
            raise UserError(f"{name}: no row is left after preparation; see the report above")
        if "row" not in dataset.column_names:
            dataset = dataset.add_column("row", list(range(len(dataset))))
    return Split(
        dataset=dataset,
        kind=kind,
        columns=mixture.response_columns(kind),
        source=name,
        fingerprint=dataset._fingerprint if prepared is None else prepared.fingerprint,
        report=None if prepared is None else prepared.report,
    )


def check_lengths(split: Split, positions: int | None) -> None:
    """Raise UserError if a row is longer than the model has positions."""
    if positions is None or not isinstance(split.dataset, datasets.Dataset):
        return
    columns = ["prompt_ids", *split.columns]
    table = split.dataset.select_columns(columns).with_format("arrow")[:]
    prompt, *answers = (compute.list_value_length(table[name]) for name in columns)
    longest = max(compute.max(compute.add(prompt, answer)).as_py() for answer in answers)
    if longest > positions:
        raise UserError(
            f"{split.source}: a row has {longest} tokens, but the model has {positions} positions "
            f"(max_position_embeddings); set max_length to {positions} or less"
        )


def _tokenised_kind(dataset: Any, name: str) -> str:
    columns = set(getattr(dataset, "column_names", None) or ())
    for kind, needed in TOKENISED.items():
        if columns >= set(needed):
            return kind
    raise UserError(
        f"{name}: expected a path, Rows, Prepared, or a data set with the columns "
        f"{' or '.join('+'.join(c) for c in TOKENISED.values())}; got "
        f"{'+'.join(sorted(columns)) or type(dataset).__name__}. For raw rows, "
        "use tokenq.data.load_rows"
    )
