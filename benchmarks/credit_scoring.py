"""Reading a data set's tokens: what it costs, beside the bare models and beside other readers.

    python -m benchmarks.credit_scoring [--rounds 5] [--pairs 16] [--threads 2]

SmolLM2-135M, fp32, on CPU, policy and reference both run; everything from text to JSON lines.
Without alternatives (`credit`, an empty reference cache), with them (`alternatives`), with all that
can be kept (`everything`), with a reference that has been read before (`cached`). Beside them:
`backbone`, the two models' transformer layers alone on the same packed tokens, and the readers of
`benchmarks.credit_contestants`, whose numbers are compared with ours token by token. Memory: the
peak of a process that scores so many pairs, and four times as many, with a small model over the
same vocabulary. Writes results/credit_scoring/{results.json,README.md}.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.credit_contestants import CONTESTANTS, Texts
from benchmarks.machine import describe
from benchmarks.workload import SHAPES, Shape, write_rows

BETA = 0.1
SPEED_TARGET = 0.85
"""Of the backbone's speed, without alternatives."""
ALTERNATIVES_TARGET = 1.2
"""Times the cost of scoring without."""
CACHED_TARGET = 0.55
"""Of the first scoring's cost; half of it, and what reading and writing take."""
MEMORY_TARGET = 1.05
"""Times the peak, for four times the rows."""
SINGLE = ("plain", "reward-lens", "prefixes")
"""Ways that are timed in the first round only."""
PREFIX_RESPONSES = 1
"""Responses that are re-scored prefix by prefix; the result is scaled to all."""


def ours(
    pair: Any, rows: Any, texts: Texts, folder: Path, token_budget: int
) -> dict[str, Callable[[int], None]]:
    """Return the ways that are ours, each a function of the round's number."""
    from tokenq.credit import credit_dataset
    from tokenq.credit.dataset import CreditOptions
    from tokenq.models.forward import causal_lm, enable_packed, tree_hidden
    from tokenq.models.packing import pack_trees

    bare = CreditOptions(alternatives=0, token_budget=token_budget)
    listing = CreditOptions(alternatives=3, token_budget=token_budget)
    every = CreditOptions(
        alternatives=3, facts=True, estimators=("centred_words",), token_budget=token_budget
    )
    packs = pack_trees(texts.prompt_ids, texts.response_ids, token_budget)
    models = [causal_lm(pair.policy), causal_lm(pair.reference)]
    for model in models:
        enable_packed(model)

    def scoring(name: str, options: Any, home: str) -> Callable[[int], None]:
        def score(turn: int) -> None:
            os.environ["TOKENQ_HOME"] = str(folder / f"home-{home}-{turn}")
            credit_dataset(pair, rows, folder / f"{name}-{turn}", options)

        return score

    @torch.no_grad()
    def backbone(_turn: int) -> None:
        for model in models:
            for pack in packs:
                tree_hidden(model, pack)

    return {
        "credit": scoring("credit", bare, "bare"),
        "alternatives": scoring("alternatives", listing, "listing"),
        "everything": scoring("everything", every, "every"),
        "cached": scoring("cached", bare, "bare"),
        "backbone": backbone,
    }


def texts_of(pair: Any, rows: Any) -> Texts:
    """All responses of a data set of pairs, with their ids."""
    from tokenq.data import encode

    found = [(row["prompt"], row[side]) for row in rows.dataset for side in ("chosen", "rejected")]
    encoded = [encode(pair.tokenizer, *text) for text in found]
    prompts, responses = (list(column) for column in zip(*found, strict=True))
    return Texts(
        prompts,
        responses,
        [each.prompt_ids for each in encoded],
        [each.response_ids for each in encoded],
    )


def measure(pair: Any, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Time all ways on rows of one shape."""
    from tokenq.data import load_rows

    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def timed(who: str, way: Callable[[], Any], times: float = 1.0) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = way()
        seconds.setdefault(who, []).append(times * (time.perf_counter() - wall))
        cpu.setdefault(who, []).append(times * (time.process_time() - processor))
        print(f"{shape.name} {who}: {seconds[who][-1]:.1f} s", file=sys.stderr, flush=True)
        return result

    agreement = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", shape, pair.tokenizer, args.pairs // shape.lists)
        rows = load_rows(folder / "rows.jsonl")
        texts = texts_of(pair, rows)
        ways = ours(pair, rows, texts, folder, args.token_budget)
        for turn in range(args.rounds):
            for who, way in ways.items():
                timed(who, partial(way, turn))
        found = [
            torch.tensor(side["rewards"][:-1])
            for line in (folder / "credit-0" / "credit.jsonl").read_text().splitlines()
            for side in json.loads(line)["responses"].values()
        ]
        for who in SINGLE:
            count = PREFIX_RESPONSES if who == "prefixes" else len(texts.prompts)
            way = partial(CONTESTANTS[who], pair, texts.part(count), BETA)
            try:
                theirs = timed(who, way, len(texts.prompts) / count)
            except ImportError as error:
                print(f"{who} is left out: {error}", file=sys.stderr)
                continue
            agreement[who] = max(
                float((one - other).abs().max())
                for one, other in zip(found[:count], theirs, strict=True)
            )
    return {
        "shape": shape.name,
        "pairs": args.pairs,
        "seconds": {who: statistics.median(times) for who, times in seconds.items()},
        "cpu_seconds": {who: statistics.median(times) for who, times in cpu.items()},
        "speed_against_backbone": _ratio(cpu["backbone"], cpu["credit"]),
        "cost_of_alternatives": _ratio(cpu["alternatives"], cpu["credit"]),
        "cost_of_everything": _ratio(cpu["everything"], cpu["credit"]),
        "cost_with_cached_reference": _ratio(cpu["cached"], cpu["credit"]),
        "times_faster_than": {
            who: cpu[who][0] / statistics.median(cpu["credit"]) for who in SINGLE if who in cpu
        },
        "largest_difference": agreement,
        "raw": {"seconds": seconds, "cpu_seconds": cpu},
    }


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and range over rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def memory(pairs: int, threads: int) -> dict[str, Any]:
    """Peak memory of processes that score `pairs` and 4 * `pairs` streamed pairs."""
    peaks = []
    for count in (pairs, 4 * pairs):
        command = [sys.executable, "-m", "benchmarks.credit_scoring", "--peak_of", str(count)]
        command += ["--threads", str(threads)]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append({"pairs": count, **json.loads(finished.stdout.splitlines()[-1])})
        print(peaks[-1], file=sys.stderr, flush=True)
    return {"peaks": peaks, "growth": peaks[1]["peak_mib"] / peaks[0]["peak_mib"]}


def peak_of(count: int) -> dict[str, float]:
    """Score `count` pairs with a small model, and say how much memory the process has had."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tokenq import load_pair
    from tokenq.allocator import keep_freed_memory
    from tokenq.credit import credit_dataset
    from tokenq.credit.dataset import CreditOptions
    from tokenq.credit.parquet import write_parquet
    from tokenq.data import load_rows
    from tokenq.models.bundled import materialise
    from tokenq.models.loading import load_tokenizer

    keep_freed_memory()
    tokenizer = load_tokenizer(materialise("smollm2-135m-instruct"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(config).eval() for _ in range(2)]
    pair = load_pair(*models, tokenizer=tokenizer)
    shape = Shape("60-40", "short answers", 60, 40)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TOKENQ_HOME"] = str(folder / "home")
        write_rows(folder / "rows.jsonl", shape, tokenizer, count // shape.lists)
        before = _peak_mib()
        rows = load_rows(folder / "rows.jsonl", streaming=True)
        run = credit_dataset(pair, rows, folder / "out", CreditOptions(facts=True))
        write_parquet(run.records(), folder / "credit.parquet")
        written = run.path.stat().st_size / 2**20
    return {"peak_mib": _peak_mib(), "before_mib": before, "written_mib": written}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16, help="of each shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token_budget", type=int, default=2048)
    parser.add_argument("--shapes", nargs="+", default=[s.name for s in SHAPES if s.answers == 2])
    parser.add_argument("--memory_pairs", type=int, default=200)
    parser.add_argument("--peak_of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/credit_scoring"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(peak_of(args.peak_of)))
        return
    from tokenq import load_pair
    from tokenq.allocator import keep_freed_memory
    from tokenq.models.bundled import materialise

    # Before this process grows: a new one begins with the peak of the one that starts it.
    peaks = memory(args.memory_pairs, args.threads)
    keep_freed_memory()
    folder = str(materialise("smollm2-135m-instruct"))
    pair = load_pair(folder, reference=folder)
    pair.tokenizer.chat_template = None
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pair.policy.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.credit_scoring --rounds {args.rounds} "
        f"--pairs {args.pairs} --threads {args.threads} --token_budget {args.token_budget} "
        f"--memory_pairs {args.memory_pairs} --shapes {' '.join(args.shapes)}",
        "machine": describe(args.threads),
        "targets": {
            "speed_against_backbone": SPEED_TARGET,
            "cost_of_alternatives": ALTERNATIVES_TARGET,
            "cost_with_cached_reference": CACHED_TARGET,
            "memory_growth": MEMORY_TARGET,
        },
        "memory": peaks,
        "shapes": [measure(pair, s, args) for s in SHAPES if s.name in args.shapes],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page(results))
    print(page(results))


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine, targets = results["machine"], results["targets"]
    lines = [
        "# Reading the tokens of a data set",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['threads']} threads, "
        f"{machine['date']}, torch {machine['versions']['torch']}. SmolLM2-135M (Q4_1 "
        "de-quantised), fp32, policy and reference both run, from text to JSON lines. Ratios are "
        "of the process's CPU seconds, medians over rounds with their range.",
        "",
        "| prompt-response | pairs | CPU-s | speed against the bare layers "
        f"(target {targets['speed_against_backbone']}) | cost with alternatives "
        f"(target {targets['cost_of_alternatives']}) | with facts and an estimator too "
        f"| reference read before (target {targets['cost_with_cached_reference']}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results["shapes"]:
        names = ("alternatives", "everything", "with_cached_reference")
        columns = [each["speed_against_backbone"], *(each[_cost(name)] for name in names)]
        cells = " | ".join(f"{c['median']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in columns)
        lines.append(
            f"| {each['shape']} | {each['pairs']} | {each['cpu_seconds']['credit']:.2f} | {cells} |"
        )
    lines += [
        "",
        "Other readers of the same rewards, in CPU seconds over ours without alternatives, and the "
        "largest difference of any token's reward (beta 0.1):",
        "",
        "| prompt-response | reader | times our cost | largest difference |",
        "|---|---|---|---|",
    ]
    for each in results["shapes"]:
        for who, ratio in each["times_faster_than"].items():
            difference = each["largest_difference"][who]
            lines.append(f"| {each['shape']} | {who} | {ratio:.2f} | {difference:.1e} |")
    peaks = results["memory"]["peaks"]
    lines += [
        "",
        "`plain`: one forward with full logits a response and model. `reward-lens`: "
        "`ImplicitRM.per_token_rewards` of that package. `prefixes`: every prefix scored anew, as "
        "reward-bench's script reads a scalar reward model (our code, "
        f"{PREFIX_RESPONSES} response, scaled to all). These three give rewards only, and none to "
        "the end token.",
        "",
        f"Memory (a small model with the same vocabulary, {peaks[0]['pairs']} and "
        f"{peaks[1]['pairs']} streamed pairs, alternatives and facts, JSON lines and Parquet of "
        f"{peaks[0]['written_mib']:.0f} and {peaks[1]['written_mib']:.0f} MiB): peak "
        f"{peaks[0]['peak_mib']:.0f} and {peaks[1]['peak_mib']:.0f} MiB, "
        f"{results['memory']['growth']:.3f} times as much for four times the rows "
        f"(target {targets['memory_growth']}).",
        "",
    ]
    return "\n".join(lines)


def _cost(name: str) -> str:
    return f"cost_{name}" if name.startswith("with") else f"cost_of_{name}"


if __name__ == "__main__":
    main()
