"""One full fine-tuning DPO step, tokenq against TRL: seconds, peak memory, fraction of the bound.

    python -m benchmarks.train_step [--rounds 5] [--shapes 320-40 60-150] [--threads 2]

SmolLM2-135M, fp32, AdamW, on CPU. All contestants of a group are resident and take steps in turn.
Writes results/train_step/{results.json,README.md,figure.png} after every shape; shapes that are
measured again replace the old ones, the others stay.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.contestants import Job
from benchmarks.gate import contestants, take_step
from benchmarks.machine import describe, gemm_rate
from benchmarks.workload import SHAPES, Shape, write_rows

matplotlib.use("Agg")

TARGETS = {"320-40": 4.5, "60-150": 2.0, "180-85": 3.0, "320-40-k4": 4.5}
MEMORY_TARGET, BOUND_TARGET = 0.4, 0.75
GROUPS = ("tokenq-compiled,tokenq,trl", "tokenq-compiled,trl-live")
"""Contestants that are resident together; all of them at once would not fit into 24 GiB."""

OURS = "tokenq-compiled"


def matmul_flops(config: Any, shape: Shape) -> dict[str, float]:
    """FLOPs of one step: 6 per body weight and token, 6 per head weight and response token.

    `attention` is what the products of queries, keys and values add (forward and 2.5 times that
    backward, as the flash kernel recomputes the scores); the bound leaves it out.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads_kv = config.num_key_value_heads * (hidden // config.num_attention_heads)
    layer = 2 * hidden * hidden + 2 * hidden * heads_kv + 3 * hidden * inner
    body = config.num_hidden_layers * layer
    seen = shape.prompt**2 / 2 + shape.answers * (
        shape.response * shape.prompt + shape.response**2 / 2
    )
    return {
        "body": 6.0 * body * shape.packed_tokens,
        "head": 6.0 * hidden * config.vocab_size * shape.response_tokens,
        "attention": 3.5 * 4.0 * config.num_hidden_layers * hidden * seen * shape.lists,
    }


def measure(shape: Shape, group: list[str], args: argparse.Namespace, model: Path) -> Any:
    """Return the step measurements of every contestant of `group`, taken in turn."""
    from transformers import AutoTokenizer

    steps = args.warmup + args.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        write_rows(rows, shape, AutoTokenizer.from_pretrained(model), steps)
        jobs = {
            who: Job(model, rows, shape.pairs, steps, folder / who, args.token_budget)
            for who in group
        }
        taken: dict[str, list[dict[str, float]]] = {who: [] for who in group}
        rates = []
        with contestants(jobs, args.threads) as pipes:
            for step in range(steps):
                for who in group:
                    taken[who].append(take_step(pipes[who]))
                    print(f"  {shape.name} step {step} {who}: {taken[who][-1]}", flush=True)
                rates.append(gemm_rate(shape.packed_tokens, 576, 1536))
    return {who: kept[args.warmup :] for who, kept in taken.items()}, statistics.median(rates)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(
    shape: Shape, flops: dict[str, float], runs: list[Any], command: str
) -> dict[str, Any]:
    """Turn raw steps into medians, pairwise ratios and fractions of the bound."""
    out: dict[str, Any] = {"shape": shape.to_dict(), "command": command, "flops": flops}
    out["contestants"] = {}
    for taken, rate in runs:
        ours = taken[OURS]
        bound = (flops["body"] + flops["head"]) / rate
        for who, steps in taken.items():
            if who in out["contestants"]:
                continue
            out["contestants"][who] = {
                "seconds": spread([s["seconds"] for s in steps]),
                "system_seconds": spread([s["system"] for s in steps]),
                "peak_gib": max(s["peak_gib"] for s in steps),
                "speedup_of_ours": spread(
                    [s["seconds"] / o["seconds"] for s, o in zip(steps, ours, strict=True)]
                ),
                "memory_of_ours": max(o["peak_gib"] for o in ours)
                / max(s["peak_gib"] for s in steps),
                "fraction_of_bound": bound / statistics.median(s["seconds"] for s in steps),
                "gemm_flops": rate,
                "raw": steps,
            }
    best = out["contestants"][OURS]
    with_attention = (sum(flops.values())) / best["gemm_flops"]
    best["fraction_of_bound_with_attention"] = with_attention / best["seconds"]["median"]
    return out


def figure(results: dict[str, Any], path: Path) -> None:
    """Speed-up and memory ratio of every shape, with the targets."""
    import matplotlib.pyplot as plt

    names = [r["shape"]["name"] for r in results["shapes"]]
    fig, (speed, memory) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for offset, who in ((-0.2, "trl"), (0.2, "trl-live")):
        rows = [r["contestants"].get(who) for r in results["shapes"]]
        kept = [(i, row) for i, row in enumerate(rows) if row]
        middle = [row["speedup_of_ours"]["median"] for _, row in kept]
        low = [m - row["speedup_of_ours"]["min"] for m, (_, row) in zip(middle, kept, strict=True)]
        high = [row["speedup_of_ours"]["max"] - m for m, (_, row) in zip(middle, kept, strict=True)]
        speed.bar([i + offset for i, _ in kept], middle, 0.38, yerr=[low, high], capsize=3,
                  label=f"over {who}")  # fmt: skip
        memory.bar([i + offset for i, _ in kept], [row["memory_of_ours"] for _, row in kept], 0.38,
                   label=f"of {who}")  # fmt: skip
    for i, name in enumerate(names):
        speed.hlines(TARGETS[name], i - 0.45, i + 0.45, colors="black", linestyles="dotted")
    memory.axhline(MEMORY_TARGET, color="black", linestyle="dotted")
    speed.set_title("samples/s, times the peer's (dotted: target)")
    memory.set_title("peak memory, fraction of the peer's (dotted: target)")
    for axis in (speed, memory):
        axis.set_xticks(range(len(names)), names)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine = results["machine"]
    lines = [
        "# A DPO step, tokenq against TRL",
        "",
        f"On {machine['processor']}, {machine['threads']} threads, "
        f"{machine['date']}; torch {machine['versions']['torch']}, transformers "
        f"{machine['versions']['transformers']}, trl {machine['versions']['trl']}. "
        "SmolLM2-135M (Q4_1 de-quantised), fp32, full fine-tuning with fused AdamW; contestants in "
        "turn, the first steps (`--warmup`) not counted. Medians, least and greatest in brackets.",
        "",
        *(f"* {r['shape']['name']}: `{r['command']}`" for r in results["shapes"]),
        "",
        "| prompt/response | contestant | s/step | tokenq is faster by | peak GiB | tokenq's share "
        "| of the matmul bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results["shapes"]:
        name, pairs = result["shape"]["name"], result["shape"]["pairs"]
        for who, row in result["contestants"].items():
            s, r = row["seconds"], row["speedup_of_ours"]
            lines.append(
                f"| {name} ({pairs} pairs) | {who} | {s['median']:.2f} [{s['min']:.2f}, "
                f"{s['max']:.2f}] | {r['median']:.2f}x [{r['min']:.2f}, {r['max']:.2f}] | "
                f"{row['peak_gib']:.2f} | {row['memory_of_ours']:.2f} | "
                f"{row['fraction_of_bound']:.2f} |"
            )
    lines += [
        "",
        "The bound counts 6 FLOPs a body weight and packed token and 6 a head weight and response "
        "token, at the matrix-product rate measured between the steps. It is tokenq's own work: "
        "for TRL it says how far it is from what the data needs. Attention's own products are left "
        "out; with them tokenq-compiled stands at "
        + ", ".join(
            f"{r['contestants'][OURS]['fraction_of_bound_with_attention']:.2f} "
            f"({r['shape']['name']})"
            for r in results["shapes"]
        )
        + ". `trl` runs with its precomputed reference and without gradient checkpointing, its "
        "fastest setting here; `trl-live` runs the reference in every step; tokenq always reads "
        "its token-level cache.",
        "",
        "![Speed and memory](figure.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token_budget", type=int, default=800)
    parser.add_argument("--groups", nargs="*", default=GROUPS, help="contestants resident together")
    parser.add_argument("--shapes", nargs="*", default=[s.name for s in SHAPES])
    parser.add_argument("--out", type=Path, default=Path("results/train_step"))
    args = parser.parse_args()
    import torch
    from transformers import AutoConfig

    from tokenq.models.bundled import materialise

    torch.set_num_threads(args.threads)
    model = materialise("smollm2-135m-instruct")
    config = AutoConfig.from_pretrained(model)
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python -m " + " ".join(["benchmarks.train_step", *sys.argv[1:]])
    file = args.out / "results.json"
    measured = json.loads(file.read_text())["shapes"] if file.exists() else []
    by_name = {result["shape"]["name"]: result for result in measured}
    results: dict[str, Any] = {
        "machine": describe(args.threads),
        "targets": {"speedup": TARGETS, "memory": MEMORY_TARGET, "bound": BOUND_TARGET},
    }
    for shape in [s for s in SHAPES if s.name in args.shapes]:
        runs = [measure(shape, group.split(","), args, model) for group in args.groups]
        flops = matmul_flops(config, shape)
        by_name[shape.name] = summarise(shape, flops, runs, command)
        results["shapes"] = [by_name[s.name] for s in SHAPES if s.name in by_name]
        file.write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "README.md").write_text(page(results))
        figure(results, args.out / "figure.png")
    print(page(results))


if __name__ == "__main__":
    main()
