"""What judges are worth: held against people, and the win rate at equal length against known truth.

    python -m benchmarks.judges [--pairs 530] [--asked 128] [--simulations 100]

`people`: of two film review sentences, do judges prefer the one that people rated higher? By the
lexicon, by length, and by the bundled model asked for a letter (the first `--asked` pairs, in both
orders). `length`: judges with a known taste for quality and length, simulated. Writes
results/judges/{results.json,README.md}.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from benchmarks.machine import describe
from tokenq.data import film_reviews
from tokenq.judges import (
    Answer,
    Comparison,
    Prompt,
    Verdict,
    judge_comparisons,
    length,
    length_controlled,
    lexicon_valence,
    summarise,
    win_rate,
)
from tokenq.judges.running import Judged, agreements
from tokenq.models import load_policy, load_tokenizer

MODEL = "bundled:smollm2-135m-instruct"
QUESTION = """\
Here are two sentences from film reviews.

A: {first}

B: {second}

Which sentence likes its film better, A or B? Answer with the letter."""
QUALITIES, TASTES, SHIFTS, ROWS = (0.0, 0.5), (0.0, 1.0, 2.0), (0.0, 1.0, 3.0), 256


class Letter:
    """The bundled model, which prefers the response whose letter it finds likelier next."""

    concurrency = 1

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(MODEL)
        self.model = load_policy(MODEL, dtype="float32", device="cpu").eval()
        self.letters = [self.tokenizer.encode(each, add_special_tokens=False)[0] for each in "AB"]

    def compare(self, prompt: Prompt, first: str, second: str) -> Answer:
        """Answer with the likelier letter."""
        turns = [{"role": "user", "content": QUESTION.format(first=first, second=second)}]
        ids: Any = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            logits = self.model(**ids, logits_to_keep=1).logits[0, -1, self.letters]
        return Answer("second", "B") if logits[1] > logits[0] else Answer("first", "A")


def against_people(pairs: int, asked: int) -> dict[str, Any]:
    """What judges say of pairs whose first side people rated higher."""
    rows = film_reviews.load("test", film_reviews.PairOptions()).select(range(pairs))
    comparisons = [
        Comparison(f"pair {number}", *(row[side][0]["content"] for side in ("chosen", "rejected")))
        for number, row in enumerate(rows)
    ]
    told = {
        "lexicon": judge_comparisons(lexicon_valence, comparisons),
        "length": judge_comparisons(length, comparisons),
    }
    few = comparisons[:asked]
    both = judge_comparisons(Letter(), few, both_orders=True)
    told["bundled model, one order"] = [
        Verdict(each.asked[0].preference, asked=each.asked[:1]) for each in both
    ]
    told["bundled model, both orders"] = both
    reports = {
        name: summarise(comparisons[: len(verdicts)], verdicts) for name, verdicts in told.items()
    }
    judged = {name: Judged(told[name][:asked], {}, reports[name]) for name in told}
    return {
        "pairs": pairs,
        "asked": asked,
        "question": QUESTION,
        "judges": {name: report.to_dict() for name, report in reports.items()},
        "agreement": [
            {"judges": [one, other], **asdict(found)}
            for one, other, found in agreements(judged)
            if found is not None
        ],
    }


def simulated(simulations: int) -> list[dict[str, Any]]:
    """Raw and length-controlled win rates of judges whose tastes are known."""
    rows = []
    for quality in QUALITIES:
        for taste in TASTES:
            for shift in SHIFTS:
                rng = np.random.default_rng(0)
                found = [_once(rng, quality, taste, shift) for _ in range(simulations)]
                truth = float(expit(quality))
                raw, values, low, high = np.array(found).T
                rows.append(
                    {
                        "truth": truth,
                        "taste": taste,
                        "shift": shift,
                        "raw": float(raw.mean()),
                        "controlled": float(values.mean()),
                        "controlled_sd": float(values.std()),
                        "coverage": float(((low <= truth) & (truth <= high)).mean()),
                    }
                )
    return rows


def _once(
    rng: np.random.Generator, quality: float, taste: float, shift: float
) -> tuple[float, float, float, float]:
    differences = rng.normal(shift, 1, ROWS)
    odds = quality + taste * np.tanh(differences / differences.std(ddof=1))
    preferences = (rng.random(ROWS) < expit(odds)).astype(float)
    found = length_controlled(preferences, differences, resamples=500)
    assert found is not None
    return win_rate(preferences).value, found.value, found.low, found.high


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=530)
    parser.add_argument("--asked", type=int, default=128)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/judges"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "command": f"python -m benchmarks.judges --pairs {args.pairs} --asked {args.asked} "
        f"--simulations {args.simulations}",
        "machine": describe(1),
        "simulations": args.simulations,
        "rows": ROWS,
        "length": simulated(args.simulations),
        "people": against_people(args.pairs, args.asked),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine, people = results["machine"], results["people"]
    both = people["judges"]["bundled model, both orders"]
    return f"""\
# What judges are worth

    {results["command"]}

{machine["processor"]}, {machine["date"]}. All numbers are in `results.json`.

## Against people

Pairs of film review sentences of the test split, of which people rated one clearly higher
(`bundled:film-reviews`). The win rate of that one is the judge's accuracy. The bundled model, of
135M parameters, was asked about the first {people["asked"]} pairs which sentence likes its film
better, and answers with the letter that it finds likelier; with both orders, an answer that changes
with the order is a tie. Intervals at 95 %.

<!-- --8<-- [start:people] -->
| judge | pairs | agrees with people | at equal length | takes the first | order decides |
|---|---:|---:|---:|---:|---:|
{_people(people["judges"])}
<!-- --8<-- [end:people] -->

Asked in both orders, the model preferred the same sentence in
{1 - both["position"]["inconsistent"]:.0%} of the pairs.

## The win rate at equal length

Simulated judges: log-odds = quality + taste * tanh(d / spread), the differences of length d normal
with standard deviation 1 and mean *shift*, {results["rows"]} comparisons, {results["simulations"]}
simulations. *Truth* is sigmoid(quality). *Coverage*: how often the 95 % interval holds the truth.
Every setting draws the same random numbers, so that the errors of all go together.

<!-- --8<-- [start:length] -->
| truth | taste for length | shift of lengths | win rate | at equal length (sd) | coverage |
|---:|---:|---:|---:|---:|---:|
{_length(results["length"])}
<!-- --8<-- [end:length] -->

With a shift of 3 standard deviations ours is practically always longer: equal length was never
seen, and the number is an extrapolation.
"""


def _people(judges: dict[str, Any]) -> str:
    lines = []
    for name, each in judges.items():
        rate, control, position = each["win_rate"], each["length_controlled"], each["position"]
        first = "" if position is None else f"{position['first']['value']:.3f}"
        order = position and position["inconsistent"]
        shown = "" if order is None else f"{order:.3f}"
        cells = (name, str(rate["comparisons"]), _interval(rate), _interval(control), first, shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _length(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {row['truth']:.3f} | {row['taste']:g} | {row['shift']:g} | {row['raw']:.3f} | "
        f"{row['controlled']:.3f} ({row['controlled_sd']:.3f}) | {row['coverage']:.3f} |"
        for row in rows
    )


def _interval(found: dict[str, float] | None) -> str:
    return (
        "" if found is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    )


if __name__ == "__main__":
    main()
