"""Searching with one prompt cache beside `transformers`' generate: time and memory.

    python -m benchmarks.search [--rounds 3] [--threads 2] [--new_tokens 64]

SmolLM2-135M, fp32, on CPU, random prompts, no end token, so that both sides read and say the same
number of tokens; beams must find the same sequences. Ours and theirs take turns in one process.
Memory: how far the peak of a process of its own rises above the loaded, once used model. Beside
them the floor: every step reads the weights once, at the rate at which they can be read, and the
prompt is a matrix product. Writes results/search/{results.json,README.md,figure.png}.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, gemm_rate
from tokenq.errors import UserError

BEAMS, SAMPLES = 5, 16
SIMULATIONS, TREE_TOKENS = 64, 8
"""Of a tree search: visits before each token, and tokens."""
TARGETS: dict[str, tuple[str, float]] = {
    # workload -> which ratio, and what it shall be
    "beam-512": ("at least", 2.5),
    "beam-64": ("at least", 1.3),
    "sample-512": ("at least", 2.0),
    "log-ratio-512": ("at most", 2.2),
}
MEMORY_TARGET = 0.35
"""Of transformers' extra memory, for a beam behind 512 tokens."""
MODEL_SHARE_TARGET = 0.8
"""Of a tree search's time."""


def prompt_of(length: int, vocabulary: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(100, vocabulary, (length,), generator=generator).tolist()


def ours(kind: str, given: Any, length: int, new_tokens: int) -> Any:
    """Search behind one prompt; results of `tokenq.search`."""
    from tokenq import search

    prompts = [prompt_of(length, _vocabulary(given))]
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_token_id": ()}
    if kind == "beam":
        return search.beam_search(given, prompts, BEAMS, **options)
    if kind == "log-ratio":
        return search.beam_search(given, prompts, BEAMS, score="log_ratio", **options)
    if kind == "sample":
        return search.sample(given, prompts, SAMPLES, **options)
    options["max_new_tokens"] = min(TREE_TOKENS, new_tokens)
    return search.mcts(given, prompts, simulations=SIMULATIONS, **options)


def _vocabulary(given: Any) -> int:
    model = given["policy"] if isinstance(given, dict) else given
    return int(model.config.vocab_size)


def theirs(kind: str, model: Any, length: int, new_tokens: int) -> Any:
    """`generate` of transformers behind the same prompt: sequences and their scores."""
    ids = torch.tensor([prompt_of(length, model.config.vocab_size)])
    ways: dict[str, dict[str, Any]] = {
        "beam": {"num_beams": BEAMS, "num_return_sequences": BEAMS, "do_sample": False},
        "sample": {"do_sample": True, "num_return_sequences": SAMPLES, "top_k": 0},
    }
    torch.manual_seed(0)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        output_scores=kind == "beam",
        **ways[kind],
    )


def load(folder: str) -> Any:
    """The model; nothing ends its texts."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def same_beams(found: Any, expected: Any, length: int) -> dict[str, Any]:
    """How many of the sequences are the same, in order, and how far their scores lie apart."""
    sequences = expected.sequences[:, length:].tolist()
    same = sum(a.token_ids == b for a, b in zip(found[0], sequences, strict=True))
    scores = torch.tensor([each.score for each in found[0]])
    apart = float((scores - expected.sequences_scores).abs().max())
    return {"same_sequences": same, "sequences": len(sequences), "score_difference": apart}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all workloads, ours and theirs by turns."""
    policy, peer, other = load(args.model), load(args.model), load(args.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    pair = {"policy": policy, "reference": other}
    ours("beam", pair["policy"], 8, 2), theirs("beam", peer, 8, 2)
    found = []
    for name in args.workloads:
        kind, _, length_text = name.rpartition("-")
        length = int(length_text)
        given = pair if kind in ("log-ratio", "mcts") else policy
        beside = "beam" if kind == "log-ratio" else kind
        ways: dict[str, Callable[[], Any]] = {
            "tokenq": lambda k=kind, g=given, n=length: ours(k, g, n, args.new_tokens)
        }
        if kind == "log-ratio":
            ways["likelihood"] = lambda n=length: ours("beam", policy, n, args.new_tokens)
        elif kind != "mcts":
            ways["transformers"] = lambda k=beside, n=length: theirs(k, peer, n, args.new_tokens)
        seconds: dict[str, list[float]] = {who: [] for who in ways}
        cpu: dict[str, list[float]] = {who: [] for who in ways}
        results: dict[str, Any] = {}
        for _ in range(args.rounds):
            for who, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                results[who] = way()
                seconds[who].append(time.perf_counter() - wall)
                cpu[who].append(time.process_time() - processor)
                print(f"{name} {who}: {seconds[who][-1]:.1f} s", file=sys.stderr, flush=True)
        entry: dict[str, Any] = {
            "workload": name,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "statistics": dict(results["tokenq"].statistics),
        }
        if len(ways) == 2:
            # transformers / ours where they are beside us; log-ratio search / likelihood search.
            last = list(ways)[1]
            pair_of = ("tokenq", last) if kind == "log-ratio" else (last, "tokenq")
            entry["ratio"] = _ratio(seconds[pair_of[0]], seconds[pair_of[1]])
            entry["cpu_ratio"] = _ratio(cpu[pair_of[0]], cpu[pair_of[1]])
        if kind == "beam":
            entry["agreement"] = same_beams(results["tokenq"], results["transformers"], length)
        if "transformers" in results:
            said = results["transformers"].sequences.shape[1] - length
            if said != args.new_tokens:
                raise RuntimeError(f"{name}: transformers said {said} tokens")
        found.append(entry)
    return found


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def memory(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """MiB above the loaded model, of either side's beams behind each prompt, in own processes."""
    found: dict[str, dict[str, float]] = {}
    for name in (each for each in args.workloads if each.startswith(("beam", "sample"))):
        found[name] = {}
        for who in ("tokenq", "transformers"):
            command = [sys.executable, "-m", "benchmarks.search", "--peak_of", name, who]
            command += ["--threads", str(args.threads), "--new_tokens", str(args.new_tokens)]
            command += ["--model", args.model]
            finished = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name][who] = float(finished.stdout.splitlines()[-1])
            print(f"{name} {who}: {found[name][who]:.0f} MiB", file=sys.stderr, flush=True)
        found[name]["ratio"] = found[name]["tokenq"] / found[name]["transformers"]
    return found


def peak_of(name: str, who: str, args: argparse.Namespace) -> float:
    """MiB that one run adds to the peak of this process."""
    model = load(args.model)
    kind, _, length = name.rpartition("-")
    way = ours if who == "tokenq" else theirs
    way(kind, model, 8, 2)
    before = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    way(kind, model, int(length), args.new_tokens)
    return (_memory_kib("VmHWM") - before) / 1024


def _memory_kib(field: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))


def floor(folder: str, new_tokens: int) -> dict[str, float]:
    """Seconds to read all weights once, and a second's FLOP: what no search can go below."""
    model = load(folder)
    weights = [each.detach() for each in model.parameters()]
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for weight in weights:
            weight.sum()
        times.append(time.perf_counter() - start)
    size = sum(each.numel() for each in weights)
    return {
        "weights": size,
        "read_seconds": min(times),
        "flop_per_second": gemm_rate(512, 576, 1536),
        "steps_seconds": new_tokens * min(times),
    }


def layouts(length: int = 512, own: int = 32, layers: int = 30) -> dict[str, dict[str, float]]:
    """Attention of one step of 5 branches with three ways to keep keys and values.

    tree:     the prompt's block shared, own tokens gathered by node (what is used)
    gathered: all of a branch's keys and values gathered by node into rows at every step
    expanded: a row a branch, reordered and grown at every step, as `DynamicCache` does
    """
    from tokenq.models.branching.kv_tree import BranchReading, LayerKV

    heads, width, group, slots = 3, 64, 3, 256
    torch.manual_seed(0)
    query = torch.randn(1, heads * group, BEAMS, width)
    key, value = torch.randn(2, 1, heads, BEAMS, width).unbind(0)
    paths = torch.randint(0, slots, (BEAMS, own))
    order = torch.randint(0, BEAMS, (BEAMS,))
    attention = torch.nn.functional.scaled_dot_product_attention

    tables = [torch.randn(2, heads, length + slots, width) for _ in range(layers)]
    trees = {
        number: LayerKV(*table[:, None, :, :length], *table[:, :, length:].contiguous(), None)
        for number, table in enumerate(tables)
    }
    rows = [torch.randn(2, BEAMS, heads, length + own - 1, width) for _ in range(layers)]

    def tree() -> None:
        slot = paths[:, -1]
        reading = BranchReading(
            trees, slot, slots, paths, torch.zeros(BEAMS, dtype=torch.long),
            torch.tensor([length]), torch.device("cpu"),
        )  # fmt: skip
        for number in range(layers):
            reading.attend(number, query, key, value, 0.125, None, None)

    def gathered() -> None:
        prompt = torch.arange(length).expand(BEAMS, -1)
        flat = torch.cat([prompt, length + paths], dim=1).flatten()
        for table in tables:
            keys, values = (
                each.index_select(1, flat).view(heads, BEAMS, -1, width).transpose(0, 1)
                for each in table
            )
            attention(query[0].transpose(0, 1)[:, :, None], keys, values, enable_gqa=True)

    def expanded() -> None:
        asked, new = query[0].transpose(0, 1)[:, :, None], key[0].transpose(0, 1)[:, :, None]
        for row in rows:
            keys, values = (torch.cat([each.index_select(0, order), new], dim=2) for each in row)
            attention(asked, keys, values, enable_gqa=True)

    sizes = {
        "tree": length + slots,
        "gathered": length + slots + BEAMS * (length + own) / layers,
        "expanded": BEAMS * (length + own) * (1 + 1 / layers),
    }
    found: dict[str, dict[str, float]] = {}
    for name, way in {"tree": tree, "gathered": gathered, "expanded": expanded}.items():
        times = []
        for _ in range(12):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        mib = sizes[name] * heads * width * 2 * 4 * layers / 2**20
        found[name] = {"step_ms": 1e3 * statistics.median(times[2:]), "mib": mib}
    return found


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine, bound = results["machine"], results["floor"]
    lines = [
        "# Searching with one prompt cache",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['threads']} threads, "
        f"{machine['date']}, torch {machine['versions']['torch']}, transformers "
        f"{machine['versions']['transformers']}. SmolLM2-135M, fp32, one prompt, "
        f"{results['new_tokens']} new tokens, {BEAMS} beams, {SAMPLES} samples. Ours and theirs by "
        "turns; medians over rounds, ratios with their range. "
        f"{results['load'][0]:.1f} processes wanted to run on the machine's two cores when it "
        f"began and {results['load'][1]:.1f} when it ended: above 2, other work slowed it down.",
        "",
        "| workload | tokenq s | beside it s | tokenq tokens/s | ratio | of CPU seconds | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results["workloads"]:
        if "ratio" not in each:
            continue
        medians = {who: statistics.median(times) for who, times in each["seconds"].items()}
        other = next(who for who in medians if who != "tokenq")
        count = SAMPLES if each["workload"].startswith("sample") else 1
        speed = count * results["new_tokens"] / medians["tokenq"]
        target = TARGETS.get(each["workload"])
        told = "-" if target is None else f"{target[0]} {target[1]}"
        lines.append(
            f"| {each['workload']} | {medians['tokenq']:.2f} | {medians[other]:.2f} ({other}) "
            f"| {speed:.1f} | {_told(each['ratio'])} | {_told(each['cpu_ratio'])} | {told} |"
        )
    lines += [
        "",
        "The number behind a workload's name is the prompt's length. The ratio is theirs over "
        "ours; for log-ratio search, which reads two models, its time over that of likelihood "
        "search.",
        "",
    ]
    for each in results["workloads"]:
        if "agreement" in each:
            agreement = each["agreement"]
            lines.append(
                f"{each['workload']}: {agreement['same_sequences']} of {agreement['sequences']} "
                "sequences are those of transformers, in order; scores differ by at most "
                f"{agreement['score_difference']:.0e}."
            )
        if each["workload"].startswith("mcts"):
            read = each["statistics"]
            share = read["model_seconds"] / read["seconds"]
            lines.append(
                f"{each['workload']}: {read['expansions'] / read['seconds']:.1f} nodes a second "
                f"expanded by policy and reference, {share:.2f} of the time in the models (target "
                f"{MODEL_SHARE_TARGET})."
            )
    lines += [
        "",
        f"Floor: the {bound['weights'] / 1e6:.0f} million weights are read once in "
        f"{1e3 * bound['read_seconds']:.0f} ms, {bound['steps_seconds']:.1f} s for all steps; the "
        f"prompt runs at {bound['flop_per_second'] / 1e9:.0f} GFLOP/s at best.",
        "",
        f"| extra memory, MiB | tokenq | transformers | ratio (target {MEMORY_TARGET} for beams "
        "behind 512) |",
        "|---|---|---|---|",
    ]
    for name, peaks in results["memory"].items():
        lines.append(
            f"| {name} | {peaks['tokenq']:.0f} | {peaks['transformers']:.0f} "
            f"| {peaks['ratio']:.2f} |"
        )
    lines += [
        "",
        f"Ways to keep keys and values, attention of 30 layers in one step of {BEAMS} branches, 32 "
        "tokens behind a prompt of 512. *tree*: the prompt's block is shared, a branch's own "
        "tokens are gathered by node (this is used). *gathered*: a branch's whole row is gathered "
        "by node at every step. *expanded*: a row a branch, reordered and grown at every step, as "
        "transformers does.",
        "",
        "| layout | ms a step | MiB |",
        "|---|---|---|",
    ]
    for name, cost in results["layouts"].items():
        lines.append(f"| {name} | {cost['step_ms']:.1f} | {cost['mib']:.0f} |")
    return "\n".join([*lines, ""])


def _told(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds of both sides, workload by workload, with the floor of the steps."""
    from matplotlib.figure import Figure

    shown = [each for each in results["workloads"] if "transformers" in each["seconds"]]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for offset, who, colour in ((-0.2, "transformers", "#9aa5b1"), (0.2, "tokenq", "#1f6feb")):
        heights = [statistics.median(each["seconds"][who]) for each in shown]
        places = [place + offset for place in range(len(shown))]
        axes.bar(places, heights, 0.38, color=colour, label=who)
    axes.axhline(results["floor"]["steps_seconds"], color="black", lw=0.8, ls="--")
    axes.text(-0.45, results["floor"]["steps_seconds"], "weights read once a step", va="bottom")
    axes.set_xticks(range(len(shown)), [each["workload"] for each in shown])
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    names = ["beam-512", "beam-64", "sample-512", "sample-64", "log-ratio-512", "mcts-64"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--model", help="folder; default: the bundled model")
    parser.add_argument("--peak_of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    args = parser.parse_args(arguments)
    try:
        for name in ("rounds", "threads", "new_tokens"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} is {getattr(args, name)}; accepted: at least 1")
        if args.model is None:
            from tokenq.models.bundled import materialise

            args.model = str(materialise("smollm2-135m-instruct"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_of(*args.peak_of, args))
        return 0
    import os

    load_before = os.getloadavg()[0]
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.search --rounds {args.rounds} --threads {args.threads} "
        f"--new_tokens {args.new_tokens} --workloads {' '.join(args.workloads)}",
        "machine": describe(args.threads),
        "new_tokens": args.new_tokens,
        "memory": memory(args),
        "floor": floor(args.model, args.new_tokens),
        "layouts": layouts(),
        "workloads": measure(args),
    }
    results["load"] = [load_before, os.getloadavg()[0]]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page(results))
    draw(results, args.out / "figure.png")
    print(page(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
