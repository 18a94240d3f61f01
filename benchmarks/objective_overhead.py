"""What each objective adds to a training step, beside the step's forward and backward.

    python -m benchmarks.objective_overhead [--rounds 3] [--repeats 20]

SmolLM2-135M, fp32, on CPU, one thread, CPU seconds (which other jobs on the machine disturb least).
`objective`: from the log-probs of a packed forward to their gradient, padding and metrics included.
`model`: the packed forward to log-probs and the backward from them, all weights.
Writes results/objective_overhead/{results.json,README.md}.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.workload import SHAPES, Shape
from tokenq.objectives import OBJECTIVES
from tokenq.training.batches import Batch
from tokenq.training.scores import VIEWS, Scores
from tokenq.training.scoring import as_leaves, differentiable

TARGET = 0.02


def batch_of(shape: Shape, kind: str, vocabulary: int) -> Batch:
    """Return a step's rows of random ids, as an objective of `kind` would be given them."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=draw).tolist()

    rows = tuple(range(shape.lists))
    prompts = tuple(ids(shape.prompt) for _ in rows)
    answers = tuple((ids(shape.response), ids(shape.response)) for _ in rows)
    mismatched = tuple(ids(shape.response) for _ in rows) if kind == "unpaired" else ()
    return Batch(rows, prompts, answers, "preference", mismatched=mismatched)


def random_scores(batch: Batch) -> Scores:
    """Return scores of every kind for the batch's answers."""
    draw = torch.Generator().manual_seed(1)
    _, responses = batch.flat()
    own = [response for (_, number), response in zip(batch.places(), responses, strict=True)
           if number >= 0]  # fmt: skip

    def normal(rows: list[list[int]], shift: float) -> list[torch.Tensor]:
        return [torch.randn(len(row), generator=draw) * 0.3 + shift for row in rows]

    features = {
        "kl": [row.abs() for row in normal(own, 0.1)],
        "collision": normal(own, -1.0),
        "logits": normal(own, 8.0),
        "rewards": normal(own, 0.0),
        "edits": [torch.arange(len(row)) % 4 == 0 for row in own],
        "segments": [torch.arange(len(row)) // 20 for row in own],
    }
    return Scores(batch, normal(responses, -2.0), normal(responses, -2.0), features)


def objective_seconds(name: str, batch: Batch, repeats: int) -> list[float]:
    """Return CPU seconds from log-probs to their gradient, once a repeat."""
    objective = OBJECTIVES[name]()
    scores = random_scores(batch)
    needed = {n: rows for n, rows in scores.features.items() if n in objective.needs}
    scores = Scores(batch, scores.logps, scores.ref_logps, needed)

    def once() -> None:
        leaves = as_leaves(scores)
        loss, _ = objective(VIEWS[objective.kind, batch.kind](leaves))
        torch.autograd.grad(loss, differentiable(leaves), allow_unused=True)

    return timed(once, repeats)


def model_seconds(model: Any, batch: Batch, rounds: int) -> list[float]:
    """Return CPU seconds of the packed forward and backward, once a round."""
    pack = batch.pack()

    def once() -> None:
        model.zero_grad(set_to_none=True)
        model(packed=pack).logps.sum().backward()

    return timed(once, rounds)


def timed(once: Callable[[], None], count: int) -> list[float]:
    """Return CPU seconds of `count` calls, after one that does not count."""
    once()
    seconds = []
    for _ in range(count):
        start = time.process_time()
        once()
        seconds.append(time.process_time() - start)
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/objective_overhead"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    from tokenq.allocator import keep_freed_memory
    from tokenq.models import load_policy
    from tokenq.models.forward import enable_packed

    keep_freed_memory()
    model = load_policy("bundled:smollm2-135m-instruct", dtype="float32", device="cpu")
    enable_packed(model)
    shapes = []
    for shape in (s for s in SHAPES if s.answers == 2):
        step = model_seconds(model, batch_of(shape, "preference", 49152), args.rounds)
        whole = statistics.median(step)
        objectives = {}
        for name, class_ in OBJECTIVES.items():
            batch = batch_of(shape, class_.kind, 49152)
            seconds = objective_seconds(name, batch, args.repeats)
            objectives[name] = {
                "seconds": statistics.median(seconds),
                "range": [min(seconds), max(seconds)],
                "share": statistics.median(seconds) / whole,
            }
        shapes.append({"shape": shape.to_dict(), "model_seconds": step, "objectives": objectives})
        worst = max(objectives, key=lambda name: objectives[name]["share"])
        print(f"{shape.name}: model {whole:.2f} CPU-s; most: {worst} "
              f"{objectives[worst]['share']:.3%}", flush=True)  # fmt: skip
    results = {
        "command": f"python -m benchmarks.objective_overhead --rounds {args.rounds} "
        f"--repeats {args.repeats}",
        "machine": describe(1),
        "target": TARGET,
        "shapes": shapes,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine = results["machine"]
    shapes = results["shapes"]
    lines = [
        "# What an objective adds to a training step",
        "",
        f"`{results['command']}` on {machine['processor']}, one thread, {machine['date']}, torch "
        f"{machine['versions']['torch']}. SmolLM2-135M (Q4_1 de-quantised), fp32, 4 pairs a step; "
        "median CPU seconds from the log-probs to their gradient (padding and metrics included) "
        "over those of the packed forward and backward. Bound: "
        f"{results['target']:.0%}. The whole-vocabulary values that some objectives ask for are "
        "part of the forward, not of this table.",
        "",
        "| objective | " + " | ".join(s["shape"]["name"] for s in shapes) + " |",
        "|---" * (len(shapes) + 1) + "|",
    ]
    for name in shapes[0]["objectives"]:
        shares = (s["objectives"][name] for s in shapes)
        cells = " | ".join(f"{x['seconds'] * 1e3:.1f} ms, {x['share']:.2%}" for x in shares)
        lines.append(f"| {name} | {cells} |")
    steps = " | ".join(f"{statistics.median(s['model_seconds']):.2f} s" for s in shapes)
    lines.append(f"| the model's forward and backward | {steps} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
