"""What the demonstration measures, from scored test pairs, and the files it is written to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenq.credit.dataset import CreditRun
from tokenq.data import film_reviews, lexicon
from tokenq.demo.material import Material, answers
from tokenq.demo.search import Written
from tokenq.demo.settings import MODEL, DemoSettings
from tokenq.demo.timing import Clock
from tokenq.demo.words import (
    Agreement,
    WordScore,
    agreement,
    log_odds,
    occurrences,
    score_words,
    words_of,
)
from tokenq.environment import PACKAGES, installed_version
from tokenq.judges import Accuracy, PairReport, PairScore, ResponseScore, count_wins, judge_pairs
from tokenq.storage import write_text

BAG_OF_WORDS = "log-odds of words in the training pairs"
HUMAN_LEXICON = "human valence of words, summed"


@dataclass(frozen=True)
class Results:
    """pairs:       of the test pairs, with the controls that need a model
    texts:       accuracy of two controls that need none: see `BAG_OF_WORDS`, `HUMAN_LEXICON`
    words:       agreement with human valence, over all lexicon words in the test texts
    unseen:      over those of them that no training pair holds; None if there are too few
    vocabulary:  the words themselves
    """

    pairs: PairReport
    texts: dict[str, Accuracy]
    words: Agreement
    unseen: Agreement | None
    vocabulary: list[WordScore]


def measure(
    records: Sequence[dict[str, Any]], material: Material, settings: DemoSettings
) -> Results:
    """Measure everything from the lines of `credit.jsonl`."""
    chosen, rejected = zip(*map(answers, material.train.dataset), strict=True)
    odds = log_odds(chosen, rejected)
    sides = [side for record in records for side in record["responses"].values()]
    found = occurrences(sides, material.valence, material.frequency, odds)
    fresh = [each for each in found if each.word not in odds]
    unseen = None
    if len({each.word for each in fresh}) >= 3:
        unseen = agreement(fresh, material.valence, seed=settings.seed)
    return Results(
        pairs=judge_pairs(list(map(pair_score, records)), settings.beta, seed=settings.seed),
        texts={
            BAG_OF_WORDS: _text_accuracy(records, odds),
            HUMAN_LEXICON: _text_accuracy(records, material.valence),
        },
        words=agreement(found, material.valence, seed=settings.seed),
        unseen=unseen,
        vocabulary=score_words(found, material.valence, odds),
    )


def pair_score(record: dict[str, Any]) -> PairScore:
    """The sums of a scored pair's tokens."""
    sides = record["responses"]
    return PairScore(record["row"], *(_response_score(sides[s]) for s in ("chosen", "rejected")))


def write_results(
    out: Path,
    results: Results,
    read: CreditRun,
    written: Mapping[str, Written],
    material: Material,
    settings: DemoSettings,
    clock: Clock,
) -> None:
    """Write `words.jsonl` and `summary.json`."""
    lines = (json.dumps(asdict(each), ensure_ascii=False) for each in results.vocabulary)
    write_text(out / "words.jsonl", "".join(f"{line}\n" for line in lines))
    summary = {
        "settings": asdict(settings),
        "model": MODEL,
        "policy_hash": read.settings["policy_hash"],
        "reference_hash": read.settings["reference_hash"],
        "data": {
            "train_pairs": settings.pairs,
            "train_pairs_available": material.available,
            "train_fingerprint": material.train.fingerprint,
            "held_out_pairs": results.pairs.pairs,
            "held_out_fingerprint": material.held_out.fingerprint,
            "held_out_tokens": read.summary.tokens,
            "about": {"pairs": film_reviews.ABOUT, "words": lexicon.ABOUT},
        },
        "training": json.loads((out / "model" / "train_results.json").read_text("utf-8")),
        "pairs": results.pairs.to_dict(),
        "pairs_without_model": {name: asdict(each) for name, each in results.texts.items()},
        "words": results.words.to_dict(),
        "words_not_in_training": None if results.unseen is None else results.unseen.to_dict(),
        "search": {name: each.to_dict() for name, each in written.items()},
        "timings": {"stages": clock.seconds, "total": clock.total()},
        "versions": {name: installed_version(name) for name in PACKAGES},
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")


def _response_score(side: dict[str, Any]) -> ResponseScore:
    return ResponseScore(sum(side["logps"]), sum(side["ref_logps"]), len(side["token_ids"]))


def _text_accuracy(records: Sequence[dict[str, Any]], worth: Mapping[str, float]) -> Accuracy:
    """Accuracy of the sum of the words' worth, 0 for words that have none."""
    sums = [
        {
            name: sum(worth.get(word, 0.0) for word in words_of(side["response"]))
            for name, side in record["responses"].items()
        }
        for record in records
    ]
    return count_wins([each["chosen"] - each["rejected"] for each in sums])
