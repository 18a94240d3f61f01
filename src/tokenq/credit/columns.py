"""Token credit as columns of the rows it was computed on, for objectives that weigh tokens.

SePO (2408.13518) ranks tokens by such rewards and TGDPO (2506.14574) weights them with it; `tokenq
train` takes the file as it is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from tokenq.credit.answers import read_answer
from tokenq.data.features import feature_column
from tokenq.data.formats import Kind, Messages
from tokenq.data.loading import Rows
from tokenq.data.tokenised import TOKENISED_COLUMNS
from tokenq.errors import UserError
from tokenq.storage import atomic_file

_BATCH = 128
"""Rows that are in memory at the same time."""


@dataclass
class ColumnsReport:
    """How many rows were written, and why others were left out."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def write_columns(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    records: Iterable[Mapping[str, Any]],
    path: Path,
    *,
    estimator: str = "plain",
) -> ColumnsReport:
    """Write the rows as token ids with their token credit, as Parquet at `path`, whole or not.

    rows:      what was scored
    tokenizer: that of the policy
    records:   lines of the scored data set, ascending (`CreditRun.records`)
    estimator: which token credit; `plain` or one of the run's own estimators

    Columns: those of the source (unless it is streamed), then those of tokenised rows (`prompt_ids`
    with `chosen_ids` and `rejected_ids`; `completion_ids`; or `completions_ids` and `ranks`), and
    beside each ids column its `_rewards`, beta times nats. Ids end where the scored response was
    cut. Left out, and counted: rows that were not scored, and rows whose answers do not begin at
    the same token, where the prompt's last one merges with an answer's first.

    Raises UserError for records of other rows, or without that estimator.
    """
    source = {} if rows.dataset.features is None else dict(rows.dataset.features)
    if isinstance(rows.dataset, datasets.IterableDataset):
        source = {}
    features = datasets.Features({**source, **_types(rows.kind), "row": datasets.Value("int64")})
    report = ColumnsReport()
    made = _rows(rows, tokenizer, iter(records), estimator, report)
    schema = features.arrow_schema
    with atomic_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(made, _BATCH)):
            kept = [{name: row.get(name) for name in features} for row in batch]
            table = datasets.Dataset.from_list(kept, features=features).data.table
            writer.write_table(table.cast(schema))
            report.rows += len(batch)
        if not report.rows:
            reasons = ", ".join(f"{count} {why}" for why, count in report.left_out.items())
            raise UserError(f"{rows.source}: no row has token credit to be kept ({reasons})")
    return report


def named_responses(kind: Kind, row: dict[str, Any]) -> dict[str, str | Messages]:
    """The responses of a normalised row by name, from the best down."""
    if kind == "preference":
        return {"chosen": row["chosen"], "rejected": row["rejected"]}
    if kind == "ranked":
        return {str(place): each for place, each in enumerate(row["completions"], start=1)}
    return {"completion": row["completion"]}


def _types(kind: Kind) -> dict[str, Any]:
    ids = datasets.List(datasets.Value("int32"))
    known: dict[str, Any] = {
        "label": datasets.Value("bool"),
        "ranks": datasets.List(datasets.Value("int64")),
        "completions_ids": datasets.List(ids),
    }
    types = {name: known.get(name, ids) for name in TOKENISED_COLUMNS[kind]}
    answers = [name for name in types if name.endswith("_ids") and name != "prompt_ids"]
    rewards = [f"{name.removesuffix('_ids')}_rewards" for name in answers]
    return types | {name: feature_column(name) for name in rewards}


def _rows(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    records: Iterator[Mapping[str, Any]],
    estimator: str,
    report: ColumnsReport,
) -> Iterator[dict[str, Any]]:
    record = next(records, None)
    for row in rows.dataset:
        if record is None or record["row"] != row["row"]:
            report.left_out["not scored"] += 1
            continue
        prompts = _prompts(row, rows.kind, tokenizer, record, rows.source)
        if len(set(prompts)) == 1:
            yield {**row, "prompt_ids": list(prompts[0]), **_answers(rows.kind, record, estimator)}
        else:
            report.left_out["answers begin at different tokens"] += 1
        record = next(records, None)
    if record is not None:
        raise UserError(
            f"{rows.source}: has no row {record['row']}, which was scored; accepted: the rows that "
            "the records are of"
        )


def _prompts(
    row: Mapping[str, Any],
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    source: str,
) -> list[tuple[int, ...]]:
    """The prompt's ids before each answer."""
    prompts = []
    for name, response in named_responses(kind, dict(row)).items():
        encoded = read_answer(
            tokenizer,
            row["prompt"],
            response,
            tools=row.get("tools"),
            chat_template_kwargs=row.get("chat_template_kwargs"),
        ).encoded
        scored = record["responses"].get(name, {}).get("token_ids", [])
        if not scored or scored != encoded.response_ids[: len(scored)]:
            raise UserError(
                f"{source}, row {row['row']}: '{name}' has other tokens than those that were "
                "scored; accepted: the same rows and the tokenizer of the policy"
            )
        prompts.append(tuple(encoded.prompt_ids))
    return prompts


def _answers(kind: Kind, record: Mapping[str, Any], estimator: str) -> dict[str, Any]:
    """Ids and rewards of a record's answers, in the columns of the kind."""
    columns: dict[str, Any] = {}
    for name, side in record["responses"].items():
        columns[f"{name}_ids"] = side["token_ids"]
        columns[f"{name}_rewards"] = _credit(side, estimator)
    if kind != "ranked":
        return columns
    return {
        f"completions_{what}": [columns[f"{name}_{what}"] for name in record["responses"]]
        for what in ("ids", "rewards")
    }


def _credit(side: Mapping[str, Any], estimator: str) -> list[float]:
    if estimator == "plain":
        found: list[float] = side["rewards"]
        return found
    estimates = side.get("estimates", {})
    if estimator not in estimates:
        kept = ", ".join(["plain", *(name for name in estimates if name != "plain")])
        raise UserError(f"the records hold no credit by {estimator!r}; accepted: {kept}")
    return list(estimates[estimator])
