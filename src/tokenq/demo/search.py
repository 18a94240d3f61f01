"""The policy writes on from the first words of held-out sentences, by several ways of searching.

What is written is judged by the valence that people gave to words, which no search has seen. A look
at searching, with few beginnings; `tokenq reproduce beam` is the measurement.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenq.data.encoding import encode_prompt
from tokenq.demo.material import Material, answers
from tokenq.demo.settings import DemoSettings
from tokenq.judges import WinRate, lexicon_valence, win_rate
from tokenq.models.pair import Pair, reference_of
from tokenq.search import SearchResult, SearchResults, beam_search, best_of_n, greedy
from tokenq.storage import write_text

NEW_TOKENS = 20
_WORDS = 4
_BASELINE = "before training, greedy"


@dataclass(frozen=True)
class Written:
    """What one way of searching wrote; `texts` with their beginnings.

    valence:   mean human valence of the words of what was added, -4..4
    tokens:    mean number of new tokens
    log_ratio: mean log pi/pi_ref, nats; None for the reference itself
    wins:      against what the reference wrote greedily, by that valence; None for itself
    """

    texts: list[str]
    valence: float
    tokens: float
    log_ratio: float | None
    wins: WinRate | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types, without the texts."""
        return {
            "valence": self.valence,
            "tokens": self.tokens,
            "log_ratio": self.log_ratio,
            "wins": None if self.wins is None else vars(self.wins),
        }


def search_and_judge(
    pair: Pair, material: Material, settings: DemoSettings, path: Path
) -> dict[str, Written]:
    """Continue beginnings in every way; write all texts to `path`, a line a beginning."""
    starts, prompts = _beginnings(pair, material, settings.beginnings)
    found = {name: search(pair, prompts, settings).best for name, search in _WAYS.items()}
    added = {name: [each.text or "" for each in best] for name, best in found.items()}
    valences = {name: lexicon_valence(starts, texts) for name, texts in added.items()}
    written = {
        name: Written(
            [start + text for start, text in zip(starts, added[name], strict=True)],
            sum(valences[name]) / len(starts),
            sum(len(each.token_ids) for each in best) / len(starts),
            None if name == _BASELINE else _mean_log_ratio(best),
            None if name == _BASELINE else _wins(valences[name], valences[_BASELINE]),
        )
        for name, best in found.items()
    }
    lines = [
        {"beginning": start, **{name: each.texts[number] for name, each in written.items()}}
        for number, start in enumerate(starts)
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return written


def show_written(console: Console, written: dict[str, Written]) -> None:
    """Print how each way did, and what each wrote for the first beginning."""
    beginnings = len(next(iter(written.values())).texts)
    table = Table(title=f"{beginnings} beginnings, written on", box=None, pad_edge=False)
    table.add_column("written by")
    for name in ("valence of words", "new tokens", "log pi/pi_ref", "better than before training"):
        table.add_column(name, justify="right")
    for name, each in written.items():
        ratio = "" if each.log_ratio is None else f"{each.log_ratio:+.1f}"
        wins = ""
        if each.wins is not None:
            wins = f"{each.wins.value:.2f} ({each.wins.low:.2f} to {each.wins.high:.2f})"
        table.add_row(name, f"{each.valence:+.2f}", f"{each.tokens:.1f}", ratio, wins)
    table.caption = "valence: people's, of single words; wins with 95 % intervals, ties half"
    console.print(table)
    for name, each in written.items():
        console.print(f"  {name}: {each.texts[0]}", style="dim", markup=False, soft_wrap=True)


def _greedy(pair: Pair, prompts: list[list[int]], settings: DemoSettings) -> SearchResults:
    return greedy(pair, prompts, NEW_TOKENS)


def _reference_greedy(
    pair: Pair, prompts: list[list[int]], settings: DemoSettings
) -> SearchResults:
    alone = Pair(reference_of(pair), None, pair.tokenizer, "the reference")  # type: ignore[arg-type]
    return greedy(alone, prompts, NEW_TOKENS)


def _beam(pair: Pair, prompts: list[list[int]], settings: DemoSettings) -> SearchResults:
    return beam_search(pair, prompts, 5, NEW_TOKENS, num_return_sequences=1)


def _best_of(pair: Pair, prompts: list[list[int]], settings: DemoSettings) -> SearchResults:
    return best_of_n(pair, prompts, 5, max_new_tokens=NEW_TOKENS, seed=settings.seed)


_WAYS: dict[str, Callable[[Pair, list[list[int]], DemoSettings], SearchResults]] = {
    _BASELINE: _reference_greedy,
    "greedy": _greedy,
    "beam of 5": _beam,
    "best of 5, implicit reward": _best_of,
}


def _beginnings(pair: Pair, material: Material, count: int) -> tuple[list[str], list[list[int]]]:
    """First words of held-out texts, and the tokens of prompt and these words."""
    starts: dict[str, list[int]] = {}
    for row in material.held_out.dataset:
        prompt = encode_prompt(pair.tokenizer, row["prompt"])
        for text in answers(row):
            start = " ".join(text.split()[:_WORDS])
            words = pair.tokenizer(start, add_special_tokens=False).input_ids
            starts.setdefault(start, [*prompt, *words])
    kept = list(starts)[:count]
    return kept, [starts[start] for start in kept]


def _mean_log_ratio(best: Sequence[SearchResult]) -> float:
    return sum(each.log_ratio or 0.0 for each in best) / len(best)


def _wins(ours: Sequence[float], theirs: Sequence[float]) -> WinRate:
    return win_rate([(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)])
