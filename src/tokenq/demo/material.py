"""What the demonstration reads: training pairs, test pairs and word valences, as files and rows."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenq.data import Rows, film_reviews, lexicon, load_rows
from tokenq.demo.settings import DemoSettings
from tokenq.demo.words import words_of
from tokenq.errors import UserError
from tokenq.storage import write_text


@dataclass(frozen=True)
class Material:
    """train, held_out: preference rows, also as `train.jsonl` and `held_out.jsonl`
    available:       training pairs that the settings allow, of which the first are taken
    frequency:       how often each word is in the texts of the whole training split
    valence:         human valence of each word of the lexicon, -4..4
    """

    train: Rows
    held_out: Rows
    available: int
    frequency: Mapping[str, int]
    valence: Mapping[str, float]


def gather(folder: Path, settings: DemoSettings) -> Material:
    """Load the bundled data (fetched at first use) and write both sets of pairs to `folder`."""
    pairs = film_reviews.load("train", settings.train_options())
    longest = math.inf if settings.max_words is None else settings.max_words
    short = [row for row in pairs if max(map(_length, answers(row))) <= longest]
    if len(short) < settings.pairs:
        raise UserError(
            f"pairs is {settings.pairs}; accepted: at most {len(short)}, all training pairs of "
            "these settings"
        )
    test = film_reviews.load("test", settings.held_out_options())
    texts = (each.text for each in film_reviews.snippets().kept if each.split == "train")
    return Material(
        train=_saved(folder / "train.jsonl", short[: settings.pairs]),
        held_out=_saved(folder / "held_out.jsonl", test),
        available=len(short),
        frequency=Counter(word for text in texts for word in words_of(text)),
        valence={word: entry.mean for word, entry in lexicon.load().items()},
    )


def answers(row: Mapping[str, Any]) -> tuple[str, str]:
    """Texts of the chosen and the rejected answer of a row of messages."""
    return row["chosen"][-1]["content"], row["rejected"][-1]["content"]


def _length(text: str) -> int:
    return len(text.split())


def _saved(path: Path, rows: Iterable[Mapping[str, Any]]) -> Rows:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Rows that are there already keep their file, and with it all caches of what follows.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return load_rows(path)
