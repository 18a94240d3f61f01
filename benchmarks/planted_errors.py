"""How many errors can be planted, and how far one gets at them without reading the description.

    python -m benchmarks.planted_errors [--seeds 3] [--pairs 600] [--show N]

Counts the items of every split and kind. Then two shortcuts choose between the two summaries of the
test pairs: `words`, a Bradley-Terry model of the summaries' words and word pairs that never sees a
description, trained on as many training pairs as a small model would be; and `copying`, which takes
the summary with fewer words that the description lacks. What a model finds beyond them it found by
reading. `--show` prints random test items instead, to be judged by eye.
Writes results/planted_errors/{results.json,README.md}.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from benchmarks.machine import describe
from tokenq.data import debian, planted
from tokenq.data.planted import KINDS, MODES, SPLITS, PlantedItem
from tokenq.reproduce.statistics import estimate, shown
from tokenq.storage import write_text

Chooser = Callable[[PlantedItem], float]
"""How much more a shortcut likes the chosen than the rejected summary of an item."""


def words_only(items: Sequence[PlantedItem], strength: float = 1.0) -> Chooser:
    """Bradley-Terry on words and pairs of neighbouring words, with an L2 penalty."""
    known: dict[str, int] = {}
    for item in items:
        for text in (item.chosen, item.rejected):
            for feature in _features(text):
                known.setdefault(feature, len(known))
    table = csr_matrix(np.stack([_difference(item, known) for item in items]))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = table @ weights
        wrong = 0.5 * (1 - np.tanh(0.5 * margins))
        value = np.logaddexp(0, -margins).sum() + 0.5 * strength * weights @ weights
        return float(value), strength * weights - table.T @ wrong

    weights = minimize(loss, np.zeros(len(known)), jac=True, method="L-BFGS-B").x
    return lambda item: float(_difference(item, known) @ weights)


def copying(item: PlantedItem) -> float:
    """Words that the description lacks: those of the rejected less those of the chosen."""
    prompt = item.prompt.lower()

    def lacking(text: str) -> int:
        return sum(word.strip(".,:;") not in prompt for word in text.lower().split())

    return lacking(item.rejected) - lacking(item.chosen)


def accuracy(choose: Chooser, items: Sequence[PlantedItem]) -> float:
    """Share of the items whose chosen summary is preferred; ties count half."""
    margins = np.array([choose(item) for item in items])
    return float(((margins > 0) + 0.5 * (margins == 0)).mean())


def measure(seeds: Sequence[int], pairs: int) -> dict[str, Any]:
    """Accuracies on all test items, by mode, shortcut and kind; one number a seed."""
    found: dict[str, Any] = {}
    for mode in MODES:
        rows: dict[str, dict[str, list[float]]] = {"words": {}, "copying": {}}
        for seed in seeds:
            tests = planted.load("test", seed=seed, mode=mode)
            learnt = words_only(planted.load("train", seed=seed, mode=mode, count=pairs))
            for name, choose in (("words", learnt), ("copying", copying)):
                for kind in ("all", *KINDS):
                    asked = [item for item in tests if kind in ("all", item.kind)]
                    rows[name].setdefault(kind, []).append(accuracy(choose, asked))
        found[mode] = rows
    return found


def counts(seed: int = 0) -> dict[str, dict[str, int]]:
    """Items by split and kind."""
    return {
        split: dict(Counter(item.kind for item in planted.load(split, seed=seed)))
        for split in SPLITS
    }


def page(results: dict[str, Any]) -> str:
    """The README of the results."""
    kinds = ("all", *KINDS)
    releases = [
        f"{each.get('label', 'an archive')} {each.get('version', '')} ({each.get('date', '?')})"
        for each in results["releases"]
    ]
    lines = [
        "# Planted errors",
        "",
        f"Written by `python -m benchmarks.planted_errors` on {results['date']}; "
        f"{results['packages']} package descriptions, fetched {results['fetched'][:10]} from "
        f"{', '.join(releases)}.",
        "",
        "Items, by split and kind (seed 0):",
        "",
        "| split | " + " | ".join(KINDS) + " | all |",
        "|---|" + "--:|" * (len(KINDS) + 1),
    ]
    for split, row in results["counts"].items():
        numbers = [row.get(kind, 0) for kind in KINDS]
        lines.append(f"| {split} | " + " | ".join(map(str, [*numbers, sum(numbers)])) + " |")
    lines += [
        "",
        "How often a shortcut that never reads the description (`words`, trained on "
        f"{results['pairs']} pairs), or only looks for words that it lacks (`copying`), prefers "
        "the true summary of a test pair; mean and 95 % interval over "
        f"{len(results['seeds'])} seeds. A half is chance.",
        "",
        "| pairs | shortcut | " + " | ".join(kinds) + " |",
        "|---|---|" + "--:|" * len(kinds),
    ]
    for mode, rows in results["accuracy"].items():
        for name, row in rows.items():
            cells = [shown(estimate(row[kind]), 2) for kind in kinds]
            lines.append(f"| {mode} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def show(count: int, seed: int) -> None:
    """Print random test items with the wrong detail in marks, and the other wordings."""
    for item in planted.load("test", seed=seed, count=4 * count)[:count]:
        (start, end), text = item.error_span, item.erroneous
        print(f"[{item.kind}: {item.sort}] {item.truthful}")
        print(f"    wrong       {text[:start]}>>>{text[start:end]}<<<{text[end:]}")
        print(f"    paraphrase  {item.paraphrase}\n    consistent  {item.consistent}")
        print(f"    described   {item.prompt.partition(chr(10) * 2)[2]!r}\n")


def _features(text: str) -> set[str]:
    words = text.split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _difference(item: PlantedItem, known: dict[str, int]) -> np.ndarray:
    row = np.zeros(len(known))
    for text, sign in ((item.chosen, 1.0), (item.rejected, -1.0)):
        for feature in _features(text):
            if feature in known:
                row[known[feature]] += sign
    return row


def main() -> None:
    """Measure and write, or show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--show", type=int, default=0, metavar="N")
    parser.add_argument("--show_seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/planted_errors"))
    options = parser.parse_args()
    if options.show:
        show(options.show, options.show_seed)
        return
    head = debian.read().head
    results = {
        **describe(threads=1),
        "packages": head["packages"],
        "releases": head["releases"],
        "fetched": head["fetched"],
        "seeds": list(range(options.seeds)),
        "pairs": options.pairs,
        "counts": counts(),
        "accuracy": measure(range(options.seeds), options.pairs),
    }
    write_text(options.out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(options.out / "README.md", page(results))
    print(page(results))


if __name__ == "__main__":
    main()
