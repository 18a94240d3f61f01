"""Reading a data set's tokens against the bare forward of the same backbones.

    python -m benchmarks.credit_scoring [--rounds 5] [--pairs 16] [--threads 2]

SmolLM2-135M, fp32, on CPU, policy and reference both run. `credit` is `credit_dataset` from text to
JSON lines (no alternatives, an empty reference cache), `credit-cached` the same when the reference
has been read before, `backbone` the two models' transformer layers alone on the same packed tokens,
`plain` one padded forward with full logits a response, as a script would do it.
Writes results/credit_scoring/{results.json,README.md}.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.workload import SHAPES, Shape, write_rows

TARGET = 0.85


def contestants(
    pair: Any, shape: Shape, pairs: int, folder: Path, token_budget: int
) -> dict[str, Callable[[int], None]]:
    """Return the four ways, each a function of the round's number."""
    from tokenq.credit import credit_dataset
    from tokenq.credit.dataset import CreditOptions
    from tokenq.data import encode, load_rows
    from tokenq.models.forward import causal_lm, enable_packed, tree_hidden
    from tokenq.models.packing import pack_trees

    source = folder / "rows.jsonl"
    write_rows(source, shape, pair.tokenizer, pairs // shape.lists)
    rows = load_rows(source)
    options = CreditOptions(alternatives=0, token_budget=token_budget)
    texts = [(r["prompt"], r[side]) for r in rows.dataset for side in ("chosen", "rejected")]
    encoded = [encode(pair.tokenizer, *text) for text in texts]
    packs = pack_trees(
        [e.prompt_ids for e in encoded], [e.response_ids for e in encoded], token_budget
    )
    models = [causal_lm(pair.policy), causal_lm(pair.reference)]
    for model in models:
        enable_packed(model)

    def credit(turn: int) -> None:
        os.environ["TOKENQ_HOME"] = str(folder / f"home-{turn}")
        credit_dataset(pair, rows, folder / f"credit-{turn}", options)

    def cached(turn: int) -> None:
        os.environ["TOKENQ_HOME"] = str(folder / f"home-{turn}")
        credit_dataset(pair, rows, folder / f"cached-{turn}", options)

    @torch.no_grad()
    def backbone(_turn: int) -> None:
        for model in models:
            for pack in packs:
                tree_hidden(model, pack)

    @torch.no_grad()
    def plain(_turn: int) -> None:
        for model in models:
            for each in encoded:
                ids = torch.tensor([[*each.prompt_ids, *each.response_ids]])
                logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
                logps.gather(-1, ids[0, 1:, None])[len(each.prompt_ids) - 1 :].tolist()

    return {"credit": credit, "credit-cached": cached, "backbone": backbone, "plain": plain}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token_budget", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("results/credit_scoring"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from tokenq import load_pair
    from tokenq.allocator import keep_freed_memory
    from tokenq.models.bundled import materialise

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
        f"--pairs {args.pairs} --threads {args.threads} --token_budget {args.token_budget}",
        "machine": describe(args.threads),
        "target": TARGET,
        "shapes": [],
    }
    for shape in [s for s in SHAPES if s.answers == 2]:
        seconds: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as name:
            ways = contestants(pair, shape, args.pairs, Path(name), args.token_budget)
            for turn in range(args.rounds):
                for who, way in ways.items():
                    if who == "plain" and turn:
                        continue
                    start = time.perf_counter()
                    way(turn)
                    seconds.setdefault(who, []).append(time.perf_counter() - start)
        against = [b / a for a, b in zip(seconds["credit"], seconds["backbone"], strict=True)]
        results["shapes"].append(
            {
                "shape": shape.name,
                "pairs": args.pairs,
                "seconds": {who: statistics.median(v) for who, v in seconds.items()},
                "speed_against_backbone": statistics.median(against),
                "speed_against_backbone_range": [min(against), max(against)],
                "speed_against_plain": seconds["plain"][0] / statistics.median(seconds["credit"]),
                "raw": seconds,
            }
        )
        print(json.dumps(results["shapes"][-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page(results))
    print(page(results))


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine = results["machine"]
    lines = [
        "# Reading the tokens of a data set",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['threads']} threads, "
        f"{machine['date']}, torch {machine['versions']['torch']}. SmolLM2-135M (Q4_1 "
        "de-quantised), fp32, policy and reference both run; medians, `plain` once. `backbone`: "
        "the transformer layers of both alone, on the same packed tokens. `plain`: a forward with "
        "full logits a response.",
        "",
        "| prompt/response | credit, s | reference cached, s | backbone, s | plain, s "
        "| speed against backbone (target 0.85) | against plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results["shapes"]:
        s, (low, high) = r["seconds"], r["speed_against_backbone_range"]
        lines.append(
            f"| {r['shape']} ({r['pairs']} pairs) | {s['credit']:.2f} | {s['credit-cached']:.2f} | "
            f"{s['backbone']:.2f} | {s['plain']:.2f} | {r['speed_against_backbone']:.2f} "
            f"[{low:.2f}, {high:.2f}] | {r['speed_against_plain']:.2f}x |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
