"""Rows to token ids: tokenisation in batches, truncation, and the count of what happened."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import datasets
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from tokenq.data.encoding import ResponseEncoder, TokenisedText
from tokenq.data.formats import TEMPLATE_COLUMNS, Kind
from tokenq.data.hashing import json_hash
from tokenq.data.loading import Rows
from tokenq.data.report import PreparationReport
from tokenq.data.segments import Segmentation, SegmentMode, UnclearSteps
from tokenq.data.templates import EmptyResponse, Rendering, TemplateRefusal, template_options
from tokenq.errors import UserError

TruncationMode = Literal["keep_start", "keep_end"]

_ANSWER_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "sft": ("completion",),
    "unpaired": ("completion",),
    "ranked": ("completions",),
}
_BATCH = 1000
_ENCODING = 1  # raise when the same text would give other ids, so that no cached ids are used
_NOTES = ("dropped", "marks", "lengths")


@dataclass(frozen=True)
class Limits:
    """How long a row may become, in tokens.

    ``max_length``: prompt and response together. ``max_prompt_length``: the prompt, cut from its
    beginning before all else (a BOS there is kept); None: it is not limited by itself.
    ``truncation_mode``: ``keep_start`` cuts the ends of responses; ``keep_end`` first cuts the
    beginning of the prompt, then the ends of responses that still do not fit.
    """

    max_length: int
    max_prompt_length: int | None
    truncation_mode: TruncationMode

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; accepted: 2 or more tokens")
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise UserError(
                f"max_prompt_length is {self.max_prompt_length}; accepted: 1 to "
                f"{self.max_length - 1}, less than max_length"
            )
        if self.truncation_mode not in get_args(TruncationMode):
            raise UserError(
                f"truncation_mode is {self.truncation_mode!r}; accepted: keep_start, keep_end"
            )


@dataclass(frozen=True)
class _Settings:
    """What decides how a row is tokenised, beside the row itself."""

    encoder: ResponseEncoder
    kind: Kind
    limits: Limits
    segmentation: Segmentation | None


@dataclass(frozen=True)
class Prepared:
    """Rows as token ids.

    ``dataset`` columns (lists of ids; a response ends with its end token unless it was cut):

    * preference: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``
    * sft: ``prompt_ids``, ``completion_ids``
    * unpaired: ``prompt_ids``, ``completion_ids``, ``label``
    * ranked: ``prompt_ids``, ``completions_ids`` (best first), ``ranks`` (equal ranks are ties)

    and ``row``, the row's number in the source. No response and no prompt is empty. With numbered
    segments each ``X_ids`` of a response has an ``X_segments`` beside it: one number a token, from
    0; -1: the token is not the model's own.
    ``report`` is complete for a loaded data set; for a stream it counts the latest pass so far.
    ``fingerprint``: hash of the rows, the tokenizer and all settings.
    """

    dataset: "datasets.Dataset | datasets.IterableDataset"
    kind: Kind
    report: PreparationReport
    fingerprint: str


def prepare(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: TruncationMode = "keep_start",
    segments: SegmentMode = "auto",
    step_pattern: str = "lines",
    num_proc: int | None = None,
) -> Prepared:
    """Tokenise rows (by the rules of :func:`tokenq.data.encode`) and cut them to length.

    A row is dropped, and counted by reason, when its prompt leaves no room for a response token,
    when its responses are equal after truncation or all tied, when a response is empty once
    rendered, or when the chat template refuses it. All responses of a row share one prompt: it
    ends where the first of them departs from it. Equal responses in a ranked list count once.

    Args:
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens of the prompt, which is cut from its beginning; None: no limit.
        truncation_mode: ``keep_start`` cuts the ends of responses; ``keep_end`` first cuts the
            beginning of the prompt.
        segments: ``turns`` numbers the assistant's turns in each answer and marks what others say
            in between; ``steps`` numbers reasoning steps; ``none`` adds no column; ``auto`` is
            ``turns`` where an answer has several (of a stream: where answers are messages). Ids
            are the same whatever is numbered.
        step_pattern: ``lines``, ``paragraphs``, ``numbered`` ("Step 1: ...") or a regular
            expression that matches where a step begins.
        num_proc: processes that tokenise (not for streams); None or 1: this one.

    Raises:
        UserError: a setting is out of range, no row is left, messages meet a tokenizer without
            chat template, the tokenizer has no EOS token, or a row's turns cannot be told apart.
    """
    limits = Limits(max_length, max_prompt_length, truncation_mode)
    encoder = ResponseEncoder(tokenizer)  # refuses an unfit tokenizer before any row is touched
    segmentation = Segmentation.choose(
        segments, step_pattern, rows.dataset, _ANSWER_COLUMNS[rows.kind]
    )
    settings = _Settings(encoder, rows.kind, limits, segmentation)
    identity = {
        "tokenizer": tokenizer_hash(tokenizer),
        "limits": vars(limits),
        "segments": segmentation and vars(segmentation),
        "v": _ENCODING,
    }
    fingerprint = json_hash({"rows": rows.fingerprint, **identity})
    report = PreparationReport(rejected=rows.rejected)
    if isinstance(rows.dataset, datasets.IterableDataset):
        stream = _stream(rows.dataset, settings, report)
        return Prepared(stream, rows.kind, report, fingerprint)
    noted = rows.dataset.map(
        _prepare_batch,
        batched=True,
        batch_size=_BATCH,
        fn_kwargs={"settings": settings},
        remove_columns=rows.dataset.column_names,
        features=_features(settings),
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        # The library would hash the tokenizer's pickle, which changes with use.
        new_fingerprint=json_hash({"rows": rows.dataset._fingerprint, **identity})[:32],
        desc="Tokenising",
    )
    kept = []
    notes = noted.select_columns(["row", *_NOTES])
    for position, note in enumerate(notes):
        if _count(report, note):
            kept.append(position)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise UserError(f"{rows.source}: no row is left after preparation ({reasons})")
    dataset = noted.remove_columns(list(_NOTES))
    if len(kept) < len(dataset):
        dataset = dataset.select(kept)
    return Prepared(dataset, rows.kind, report, fingerprint)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides a tokenizer's ids: model, special tokens, template, versions.

    Padding and truncation settings, which calls leave behind, do not count.
    """
    if tokenizer.is_fast:
        model = json.loads(tokenizer.backend_tokenizer.to_str())
        model = {
            name: part for name, part in model.items() if name not in ("padding", "truncation")
        }
    else:
        model = tokenizer.get_vocab()
    return json_hash(
        {
            "model": model,
            "class": type(tokenizer).__name__,
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "template": tokenizer.chat_template,
            "versions": [transformers.__version__, tokenizers.__version__],
        }
    )


def _features(settings: _Settings) -> datasets.Features:
    kind = settings.kind
    ids = datasets.List(datasets.Value("int32"))
    columns: dict[str, Any] = {"row": datasets.Value("int64"), "prompt_ids": ids}
    for name in _ANSWER_COLUMNS[kind]:
        columns[f"{name}_ids"] = datasets.List(ids) if kind == "ranked" else ids
        if settings.segmentation:
            columns[f"{name}_segments"] = columns[f"{name}_ids"]
    if kind == "unpaired":
        columns["label"] = datasets.Value("bool")
    if kind == "ranked":
        columns["ranks"] = datasets.List(datasets.Value("int64"))
    notes = {
        "dropped": datasets.Value("string"),
        "marks": datasets.List(datasets.Value("string")),
        "lengths": datasets.List(datasets.Value("int32")),
    }
    return datasets.Features({**columns, **notes})


def _stream(
    rows: datasets.IterableDataset, settings: _Settings, report: PreparationReport
) -> datasets.IterableDataset:
    def prepared() -> Iterator[dict[str, Any]]:
        vars(report).update(vars(PreparationReport(rejected=report.rejected)))
        source = iter(rows)
        while batch := list(itertools.islice(source, _BATCH)):
            for row in _prepare_rows(batch, settings):
                if _count(report, row):
                    yield {name: value for name, value in row.items() if name not in _NOTES}

    columns = {name: type_ for name, type_ in _features(settings).items() if name not in _NOTES}
    return datasets.IterableDataset.from_generator(prepared, features=datasets.Features(columns))


def _prepare_batch(batch: Mapping[str, list[Any]], settings: _Settings) -> dict[str, list[Any]]:
    count = len(batch["row"])
    rows = [{name: values[i] for name, values in batch.items()} for i in range(count)]
    prepared = _prepare_rows(rows, settings)
    return {name: [row[name] for row in prepared] for name in prepared[0]}


def _prepare_rows(rows: list[dict[str, Any]], settings: _Settings) -> list[dict[str, Any]]:
    rendered = [_render(row, settings) for row in rows]
    flat = [each for one in rendered if not isinstance(one, str) for each in one]
    tokenised = iter(settings.encoder.tokenise(flat))
    prepared = []
    for row, one in zip(rows, rendered, strict=True):
        if isinstance(one, str):
            prepared.append(_dropped(row, settings, one))
            continue
        texts = [next(tokenised) for _ in one]
        marks = ["response_altered"] if any(each.span is None for each in one) else []
        try:
            segments = _segments(row, one, texts, settings)
        except UnclearSteps:
            prepared.append(_dropped(row, settings, "steps_unknown"))
            continue
        prepared.append(_fit(row, texts, segments, marks, settings))
    return prepared


def _render(row: dict[str, Any], settings: _Settings) -> list[Rendering] | str:
    """The row's responses as text, or the reason why it is dropped."""
    if settings.kind == "ranked" and len(set(row["ranks"])) == 1:
        return "tied"
    answers = _answers(row, settings.kind)
    try:
        return settings.encoder.render(row["prompt"], answers, _options(row))
    except EmptyResponse:
        return "empty_response"
    except TemplateRefusal:
        return "template_error"


def _answers(row: Mapping[str, Any], kind: Kind) -> list[Any]:
    answers = [row[name] for name in _ANSWER_COLUMNS[kind]]
    return answers[0] if kind == "ranked" else answers


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    return template_options({name: row.get(name) for name in TEMPLATE_COLUMNS})


def _segments(
    row: Mapping[str, Any],
    renderings: list[Rendering],
    texts: list[TokenisedText],
    settings: _Settings,
) -> list[list[int]]:
    """Numbers for the ids of each response, the prompt included; nothing if none are wanted."""
    if settings.segmentation is None:
        return [[] for _ in texts]
    answers = _answers(row, settings.kind)
    return [
        settings.segmentation.numbers(
            settings.encoder, row, answer, _options(row), rendering, tokens
        )
        for answer, rendering, tokens in zip(answers, renderings, texts, strict=True)
    ]


def _fit(
    row: dict[str, Any],
    texts: list[TokenisedText],
    segments: list[list[int]],
    marks: list[str],
    settings: _Settings,
) -> dict[str, Any]:
    encoder, kind, limits = settings.encoder, settings.kind, settings.limits
    if any(text.empty for text in texts):
        return _dropped(row, settings, "empty_response")
    boundary = min(text.common for text in texts)
    if any(text.boundary_shifted for text in texts):
        marks.append("boundary_shifted")
    if not boundary and not encoder.has_bos:
        return _dropped(row, settings, "no_prompt_token")
    prompt = encoder.prompt_ids(texts[0].ids[:boundary])
    responses = [text.ids[boundary:] for text in texts]

    cut_prompt = _cut_prompt(prompt, max(map(len, responses)), limits, encoder)
    if cut_prompt != prompt:
        marks.append("prompt_truncated")
    room = limits.max_length - len(cut_prompt)
    if room < 1:
        return _dropped(row, settings, "prompt_too_long")
    if any(len(response) > room for response in responses):
        marks.append("truncated")
    responses = [response[:room] for response in responses]
    segments = [numbers[boundary : boundary + room] for numbers in segments]

    ranks = row.get("ranks", [])
    if kind == "ranked":
        first_places = {tuple(ids): i for i, ids in reversed(list(enumerate(responses)))}
        places = sorted(first_places.values())
        responses, ranks = [responses[i] for i in places], [ranks[i] for i in places]
        segments = [segments[i] for i in places]
        if len(responses) > 1 and len(set(ranks)) == 1:
            return _dropped(row, settings, "tied")
    if (kind == "ranked" and len(responses) < 2) or (
        kind == "preference" and responses[0] == responses[1]
    ):
        return _dropped(row, settings, "identical")
    return _row(row, settings, cut_prompt, responses, segments, ranks, None, marks)


def _cut_prompt(
    prompt: list[int], longest_response: int, limits: Limits, encoder: ResponseEncoder
) -> list[int]:
    keep = len(prompt)
    if limits.max_prompt_length is not None:
        keep = min(keep, limits.max_prompt_length)
    if limits.truncation_mode == "keep_end":
        keep = min(keep, max(1, limits.max_length - longest_response))
    if keep == len(prompt):
        return prompt
    bos = prompt[:1] if keep > 1 and encoder.is_bos(prompt[0]) else []
    return bos + prompt[len(prompt) - keep + len(bos) :]


def _dropped(row: dict[str, Any], settings: _Settings, reason: str) -> dict[str, Any]:
    nothing: list[list[int]] = [[] for _ in _ANSWER_COLUMNS[settings.kind]]
    return _row(row, settings, [], nothing, nothing, [], reason, [])


def _row(
    row: dict[str, Any],
    settings: _Settings,
    prompt: list[int],
    responses: list[list[int]],
    segments: list[list[int]],
    ranks: list[int],
    dropped: str | None,
    marks: list[str],
) -> dict[str, Any]:
    kind = settings.kind
    columns: dict[str, Any] = {"row": row["row"], "prompt_ids": prompt}
    features = {"ids": responses, **({"segments": segments} if settings.segmentation else {})}
    for feature, values in features.items():
        if kind == "ranked":
            columns[f"completions_{feature}"] = values
        else:
            names = [f"{name}_{feature}" for name in _ANSWER_COLUMNS[kind]]
            columns |= dict(zip(names, values, strict=True))
    if kind == "ranked":
        columns["ranks"] = ranks
    if kind == "unpaired":
        columns["label"] = row["label"]
    lengths = [len(prompt), *map(len, responses)]
    return {**columns, "dropped": dropped, "marks": marks, "lengths": lengths}


def _count(report: PreparationReport, note: Mapping[str, Any]) -> bool:
    """Add one row to the report; whether the row is kept."""
    if note["dropped"] is not None:
        report.drop(note["dropped"], note["row"])
        return False
    report.keep(note["lengths"][0], note["lengths"][1:], note["marks"])
    return True
