"""Several sources on one text: their scores side by side on the same tokens or words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tokenq.credit.aggregation import word_spans
from tokenq.credit.sources.language_model import shared_forwards
from tokenq.credit.sources.projection import on_spans, project
from tokenq.credit.sources.scores import Direction, Offsets, RowError, TokenScores, TokenSource
from tokenq.data.formats import Messages
from tokenq.errors import UserError


@dataclass(frozen=True)
class Aligned:
    """One response: its text, the stretches that are scored, and the scores [T] of each source."""

    text: str
    offsets: Offsets
    scores: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """Sources by name with the units and directions of their scores, and one entry a response."""

    units: dict[str, str]
    higher: dict[str, Direction]
    rows: list[Aligned]

    def records(self) -> Iterator[dict[str, Any]]:
        """One flat record a token: `row`, `start`, `end`, `text`, and a column for each source."""
        for number, row in enumerate(self.rows):
            for at, (start, end) in enumerate(row.offsets):
                columns = {name: float(scores[at]) for name, scores in row.scores.items()}
                place = {"row": number, "start": start, "end": end, "text": row.text[start:end]}
                yield place | columns

    def correlations(self) -> np.ndarray:
        """Spearman's rho [S, S] of the sources' blame over all tokens.

        nan for a constant one, and for all where there is no token (no word).
        """
        columns = [
            torch.cat([row.scores[name] for row in self.rows]).double().numpy()
            * (1.0 if direction == "suspicious" else -1.0)
            for name, direction in self.higher.items()
        ]
        if not columns[0].size:
            return np.full((len(columns), len(columns)), np.nan)
        ranks = np.stack([stats.rankdata(column) for column in columns])
        centred = ranks - ranks.mean(1, keepdims=True)
        norms = np.linalg.norm(centred, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = centred @ centred.T / np.outer(norms, norms)
        return found


def compare(
    sources: Sequence[TokenSource],
    prompts: Sequence[str | Messages],
    responses: Sequence[str | Messages],
    *,
    words: bool = False,
    batch: int = 16,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Comparison:
    """Score responses with every source, all on the tokens of the first one.

    words:       on words instead (:func:`word_spans`); punctuation and the end are left out
    batch:       responses that all sources score before the next ones; models are run once for all
                 sources that read them
    on_progress: called with the number of responses done since the last call

    Raises UserError for no source, two of one name, or what a source raises (rows counted from 0).
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise UserError(f"sources are {names}; accepted: one or more, each with a name of its own")
    if batch < 1:
        raise UserError(f"batch is {batch}; accepted: 1 or more responses")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    units: dict[str, str] = {}
    higher: dict[str, Direction] = {}
    rows: list[Aligned] = []
    pairs = iter(zip(prompts, responses, strict=True))
    while part := list(islice(pairs, batch)):
        with shared_forwards():
            found = [_scored(source, part, len(rows)) for source in sources]
        for each in zip(*found, strict=True):
            rows.append(_aligned(each, words))
            units |= {scores.name: scores.unit for scores in each}
            higher |= {scores.name: scores.higher for scores in each}
        on_progress(len(part))
    return Comparison(units, higher, rows)


def _scored(
    source: TokenSource, part: Sequence[tuple[str | Messages, str | Messages]], before: int
) -> list[TokenScores]:
    prompts, responses = zip(*part, strict=True)
    try:
        return source.score(prompts, responses)
    except RowError as error:
        raise RowError(before + error.row, error.reason) from error


def _aligned(found: Sequence[TokenScores], words: bool) -> Aligned:
    first = found[0]
    if words:
        offsets = tuple(word_spans(first.text))
        moved = [on_spans(each, offsets) for each in found]
    else:
        offsets = first.offsets
        moved = [first, *(project(each, offsets) for each in found[1:])]
    return Aligned(first.text, offsets, {each.name: each.scores for each in moved})
