"""How well token signals find the tokens that are wrong, and what each of them costs, in one run.

    python -m benchmarks.credit_localisation [--task planted|summedits|qa]
        [--policy P [--reference R]] [--texts 40] [--timed 6] [--rounds 3] [--threads 1]

The texts are those of `tokenq reproduce credit` that hold an error; which tokens are wrong is
known and no model is told. Every signal reads all of them: area under the ROC curve and average
precision within a text, and whether the highest token is wrong, with bootstrap intervals over
texts. The first `--timed` texts are read again by each signal alone, for its CPU time, its memory
and its ratio to one plain forward of one model; other packages that score tokens (reward-lens,
inseq) read these too, and their values are compared with ours. Without `--policy` a small DPO
adapter is trained as that experiment does, seed 0, and the untrained model is the reference.
Writes results/credit_localisation/{results.json,README.md}.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.credit_contestants import Texts
from benchmarks.machine import describe
from tokenq.credit.localisation import (
    Bootstrap,
    Marked,
    mean_auroc,
    mean_average_precision,
    tokens_within,
    top1_hit,
)
from tokenq.errors import UserError
from tokenq.storage import check_writable, write_text

if TYPE_CHECKING:
    from tokenq.credit.sources import TokenSource
    from tokenq.models.pair import Pair
    from tokenq.reproduce.localisation.material import Task, TestText

TASKS = ("planted", "summedits", "qa")
METRICS = (mean_auroc, mean_average_precision, top1_hit)
SLOW = ("gradient x input (log-prob)", "gradient x input (log-ratio)")
"""Signals that are timed in the first round only, as other packages are."""
PLAIN = "implicit reward"


@dataclass(frozen=True)
class Material:
    """The texts as the models read them: conversations where the tokenizer has a chat template."""

    prompts: list[Any]
    responses: list[Any]
    tests: list["TestText"]

    @classmethod
    def of(cls, tests: Sequence["TestText"], tokenizer: Any) -> "Material":
        """For one tokenizer."""
        tests = list(tests)
        if tokenizer.chat_template is None:
            prompts = [
                each.prompt if isinstance(each.prompt, str) else each.prompt[-1]["content"] + "\n"
                for each in tests
            ]
            return cls(prompts, [each.text for each in tests], tests)
        responses = [
            each.text
            if isinstance(each.prompt, str)
            else [{"role": "assistant", "content": each.text}]
            for each in tests
        ]
        return cls([each.prompt for each in tests], responses, tests)

    def part(self, count: int) -> "Material":
        """The first so many."""
        return Material(self.prompts[:count], self.responses[:count], self.tests[:count])

    def texts(self, tokenizer: Any) -> Texts:
        """As plain text with token ids, for those who take nothing else."""
        from tokenq.data.encoding import encode

        rows = [
            encode(tokenizer, prompt, response)
            for prompt, response in zip(self.prompts, self.responses, strict=True)
        ]
        return Texts(
            [tokenizer.decode(row.prompt_ids) for row in rows],
            [each.text for each in self.tests],
            [row.prompt_ids for row in rows],
            [row.response_ids for row in rows],
        )


@dataclass(frozen=True)
class Read:
    """What one signal says of the texts: [T_i] each, higher is more suspicious."""

    offsets: list[tuple[tuple[int, int], ...]]
    blame: list[Tensor]


# --- texts and models -------------------------------------------------------------------------


def erroneous(task: str, count: int) -> tuple["Task", list["TestText"]]:
    """The task, and its first `count` test texts that hold an error.

    Raises UserError where there are fewer, or where the task's data cannot be had.
    """
    from tokenq.reproduce.localisation.settings import Settings
    from tokenq.reproduce.localisation.tasks import task_of

    options = getattr(Settings(), task)
    made = task_of(task, replace(options, tests=max(options.tests, count)))
    tests = [each for each in made.tests() if each.errors]
    if len(tests) < count:
        raise UserError(f"--texts is {count}; accepted: up to {len(tests)}, texts with an error")
    return made, tests[:count]


def trained_pair(task: str, material: "Task") -> "Pair":
    """A policy trained by DPO on the task's pairs, seed 0, and the untrained model."""
    from tokenq.models import load_policy
    from tokenq.models.pair import load_pair
    from tokenq.reproduce.localisation.arms import DPO, chosen_arms
    from tokenq.reproduce.localisation.bench import Bench, first
    from tokenq.reproduce.localisation.settings import Settings

    settings = Settings()
    bench = Bench(settings.model, settings.layers)
    [arm] = chosen_arms(task, [DPO.name])
    pairs = first(arm, material.pairs(0, arm.variant))
    with bench.trained(arm, pairs, getattr(settings, task).recipe, 0) as policy:
        trained = load_policy(settings.model, dtype="float32", device="cpu")
        take_weights(trained, bench.model, policy)
    untrained = load_policy(settings.model, dtype="float32", device="cpu")
    pair = load_pair(trained, untrained, tokenizer=bench.tokenizer)
    pair.policy_name, pair.reference_name = f"DPO on {len(pairs)} pairs", settings.model
    return pair


def take_weights(plain: Any, trunked: Any, policy: Any) -> None:
    """Copy what an adapter on a model with a frozen trunk has learnt into an ordinary model."""
    policy.merge_adapter()
    upper = trunked.base_model.layers[1:]
    with torch.no_grad():
        for taught, own in zip(upper, plain.base_model.layers[-len(upper) :], strict=True):
            merged = [each for name, each in taught.named_parameters() if "lora_" not in name]
            for weight, value in zip(own.parameters(), merged, strict=True):
                weight.copy_(value)
    policy.unmerge_adapter()


def loaded_pair(policy: str, reference: str | None) -> "Pair":
    """The two models as ordinary ones, adapters merged, so that every package can read them."""
    from peft import PeftModel

    from tokenq.models.pair import Pair, load_pair
    from tokenq.models.reference import AdapterOff

    pair = load_pair(policy, reference, device="cpu", dtype="float32")
    other: Any = pair.reference
    if isinstance(other, AdapterOff):
        other = deepcopy(other.peft_model).unload()
    elif isinstance(other, PeftModel):
        other = other.merge_and_unload()
    own: Any = pair.policy
    if isinstance(own, PeftModel):
        own = own.merge_and_unload()
    return Pair(own, other, pair.tokenizer, pair.policy_name, pair.reference_name)


# --- signals ----------------------------------------------------------------------------------


def sources(pair: "Pair", beta: float) -> list["TokenSource"]:
    """tokenq's signals, those that share a forward of the same models."""
    from tokenq.credit.sources import (
        Entropy,
        GradientInput,
        ImplicitReward,
        LanguageModel,
        Length,
        Position,
        PromptInformation,
        Surprisal,
    )

    policy, reference = LanguageModel.policy_of(pair), LanguageModel.reference_of(pair)
    tokenizer = pair.tokenizer
    # Something has to stand before the first token where no template and no BOS does.
    bare = tokenizer.chat_template is None and tokenizer.bos_token is None
    empty = tokenizer.eos_token if bare else None
    return [
        ImplicitReward(pair, beta, PLAIN),
        Surprisal(reference, "surprisal (reference)"),
        Surprisal(policy, "surprisal (policy)"),
        Entropy(reference, "entropy (reference)"),
        Entropy(policy, "entropy (policy)"),
        PromptInformation(reference, empty, "prompt information (reference)"),
        GradientInput(pair, "log-ratio", beta=beta, name=SLOW[1]),
        GradientInput(pair, "log-prob", name=SLOW[0]),
        Position(pair.tokenizer),
        Length(pair.tokenizer),
    ]


def estimated(pair: "Pair", beta: float) -> list["TokenSource"]:
    """The estimators of credit other than the plain one, each a source."""
    from tokenq.credit.estimators import ESTIMATORS
    from tokenq.credit.sources import Estimated

    return [Estimated(pair, name, beta) for name in ESTIMATORS if name != "plain"]


def read_all(pair: "Pair", material: Material, beta: float) -> dict[str, Read]:
    """All of tokenq's signals of all texts; each model runs as rarely as it can."""
    from tokenq.credit.api import credit
    from tokenq.credit.estimators import ESTIMATORS
    from tokenq.credit.sources import shared_forwards

    found: dict[str, Read] = {}
    with shared_forwards():
        for source in sources(pair, beta):
            scores = source.score(material.prompts, material.responses)
            found[source.name] = Read([s.offsets for s in scores], [s.blame for s in scores])
            _say(f"{source.name}: {len(scores)} texts")
    offsets = found[PLAIN].offsets
    credits = [
        credit(pair, prompt, response, beta)
        for prompt, response in zip(material.prompts, material.responses, strict=True)
    ]
    _say(f"estimators: {len(credits)} texts")
    for source in estimated(pair, beta):
        name = source.name.rpartition(", ")[2]
        found[source.name] = Read(offsets, [-ESTIMATORS[name].read(c).float() for c in credits])
    return found


def quality(
    found: Mapping[str, Read], tests: Sequence["TestText"], resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """Metrics of each signal with their intervals; tokens without a visible character left out."""
    bootstrap = Bootstrap((each.group for each in tests), resamples=resamples)
    return {
        name: {
            metric.name: bootstrap([list(_marked(read, tests))], metric).to_dict()
            for metric in METRICS
        }
        for name, read in found.items()
    }


def _marked(read: Read, tests: Sequence["TestText"]) -> Iterator[Marked]:
    for offsets, blame, test in zip(read.offsets, read.blame, tests, strict=True):
        there = np.array([bool(test.text[start:end].strip()) for start, end in offsets])
        truth = tokens_within(test.text, offsets, test.errors or ())
        yield Marked(blame.double().numpy()[there], truth[there], test.group)


# --- cost -------------------------------------------------------------------------------------


@torch.no_grad()
def plain_forward(model: Any, texts: Texts) -> None:
    """One forward with full logits a text, and the log-probs of its tokens."""
    for prompt, response in zip(texts.prompt_ids, texts.response_ids, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        logps.gather(-1, ids[0, 1:, None])


def timed(
    ways: Mapping[str, Callable[[], Any]], once: Sequence[str], rounds: int, tokens: int
) -> dict[str, dict[str, Any]]:
    """CPU seconds per 1,000 tokens of each way, ways in turn in every round; extra memory, MiB."""
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float | None] = {}
    for turn in range(rounds):
        for name, way in ways.items():
            if turn and name in once:
                continue
            before = _resident() if _forget_peak() else None
            started = time.process_time()
            way()
            seconds.setdefault(name, []).append(1000 * (time.process_time() - started) / tokens)
            if before is not None:
                extra = (_resident("VmHWM") or before) - before
                memory[name] = max(memory.get(name) or 0.0, extra)
            _say(f"round {turn + 1}, {name}: {seconds[name][-1]:.1f} CPU-s per 1,000 tokens")
    return {
        name: {
            "cpu_seconds": statistics.median(values),
            "raw": values,
            "extra_mib": memory.get(name),
        }
        for name, values in seconds.items()
    }


def _forget_peak() -> bool:
    """Let the kernel count the process's peak memory anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _resident() is not None


def _resident(field: str = "VmRSS") -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) / 1024 if found else None


# --- other packages ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A signal of another package: the one of ours that claims the same, and how to read it.

    sign: what turns its values into blame
    """

    package: str
    ours: str
    sign: int
    read: Callable[[], list[Tensor | None]]


def peers(pair: "Pair", texts: Texts, beta: float) -> dict[str, Peer]:
    """By the name that the table shows."""
    from benchmarks import localisation_contestants as others

    plain: tuple[Any, Any] = (pair.reference, pair.policy)
    tokenizer = pair.tokenizer
    return {
        "reward-lens: per_token_rewards": Peer(
            "reward-lens", PLAIN, -1, partial(others.implicit_rewards, pair, texts, beta)
        ),
        "inseq: probability": Peer(
            "inseq",
            "surprisal (reference)",
            1,
            partial(others.surprisals, plain[0], tokenizer, texts),
        ),
        "inseq: input_x_gradient": Peer(
            "inseq", SLOW[0], -1, partial(others.gradient_inputs, plain[1], tokenizer, texts)
        ),
    }


def agreement(peer: Peer, theirs: Sequence[Tensor | None], ours: Read) -> dict[str, Any]:
    """How far a peer's values are from ours, on the texts that it reads as the same tokens."""
    differences = [
        float((peer.sign * each - own[: len(each)]).abs().max())
        for each, own in zip(theirs, ours.blame[: len(theirs)], strict=True)
        if each is not None
    ]
    return {
        "same_as": peer.ours,
        "texts": len(theirs),
        "same_tokens": len(differences),
        "largest_difference": max(differences, default=None),
        "largest_value": max(float(each.abs().max()) for each in ours.blame[: len(theirs)]),
    }


# --- the run ----------------------------------------------------------------------------------


def measure(
    pair: "Pair", tests: Sequence["TestText"], beta: float, timed_texts: int, rounds: int
) -> dict[str, Any]:
    """All signals on `tests`: how well they find errors, what they cost, what peers say."""
    from importlib.metadata import PackageNotFoundError, version

    material = Material.of(tests, pair.tokenizer)
    found = read_all(pair, material, beta)
    few = material.part(timed_texts)
    texts = few.texts(pair.tokenizer)
    tokens = sum(map(len, texts.response_ids))
    ways: dict[str, Callable[[], Any]] = {
        "plain forward": partial(plain_forward, pair.reference, texts)
    }
    for source in (*sources(pair, beta), *estimated(pair, beta)):
        ways[source.name] = partial(source.score, few.prompts, few.responses)
    said: dict[str, Any] = {}
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    others = peers(pair, texts, beta)
    for name, peer in others.items():
        try:
            versions[peer.package] = version(peer.package)
            __import__(peer.package.replace("-", "_"))
        except (PackageNotFoundError, ImportError) as error:
            missing[peer.package] = f"{type(error).__name__}: {error}"
            continue
        ways[name] = partial(_attempt, name, peer.read, said, missing)
    cost = timed(ways, (*SLOW, *others), rounds, tokens)
    base = cost["plain forward"]["raw"]
    for each in cost.values():
        ratios = [a / b for a, b in zip(each["raw"], base, strict=False)]
        each["ratio"] = statistics.median(ratios)
        each["ratio_range"] = [min(ratios), max(ratios)]
    signals = quality(found, tests)
    wrong = [marked.truth for marked in _marked(found[PLAIN], tests)]
    return {
        "texts": len(tests),
        "tokens": sum(map(len, wrong)),
        "wrong_tokens": int(sum(each.sum() for each in wrong)),
        "timed_texts": timed_texts,
        "timed_tokens": tokens,
        "quality": signals,
        "cost": cost,
        "peers": {
            name: {
                "package": others[name].package,
                "version": versions[others[name].package],
                **agreement(others[name], values, found[others[name].ours]),
            }
            for name, values in said.items()
        },
        "missing": missing,
    }


def _attempt(
    name: str, read: Callable[[], Any], said: dict[str, Any], missing: dict[str, str]
) -> None:
    """Keep what another package says, or why it says nothing: it ends no run."""
    try:
        said[name] = read()
    except Exception as error:
        missing[name] = f"{type(error).__name__}: {error}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- page -------------------------------------------------------------------------------------


def page(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    machine = results["machine"]
    lines = [
        "# Finding wrong tokens, and what it costs",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['threads']} thread(s), "
        f"{machine['date']}, torch {machine['versions']['torch']}, transformers "
        f"{machine['versions']['transformers']}. Policy: {results['policy']}; reference: "
        f"{results['reference']}; task `{results['task']}`: {results['texts']} texts with an "
        f"error, {results['tokens']} tokens, of which {results['wrong_tokens']} are wrong. No "
        "model was told which.",
        "",
        "Within each text: area under the ROC curve, average precision, and how often the most "
        "suspicious token is a wrong one; means with 95 % bootstrap intervals over texts. CPU "
        "seconds per 1,000 response tokens, each signal by itself, median over rounds (gradients "
        "and other packages: one round), also as a ratio to one plain forward of one model with "
        f"its full logits; extra memory is the peak above what the process held. Timed on "
        f"{results['timed_texts']} of the texts, {results['timed_tokens']} tokens.",
        "",
        "| signal | AUROC | AP | top-1 | CPU-s per 1,000 tokens | of a forward | extra MiB |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    table = results["quality"]
    best_first = sorted(table, key=lambda name: -(table[name][mean_auroc.name]["value"] or 0))
    for name in best_first:
        cells = " | ".join(_interval(table[name][metric.name]) for metric in METRICS)
        lines.append(f"| {name} | {cells} | {_cost(results['cost'][name])} |")
    for name, peer in results["peers"].items():
        same = f"as {peer['same_as']}"
        lines.append(f"| {name} | {same} | | | {_cost(results['cost'][name])} |")
    lines.append(f"| plain forward | | | | {_cost(results['cost']['plain forward'])} |")
    lines += [
        "",
        "Guessing has an AUROC of 0.5. `implicit "
        "reward` is the plain estimator; the others named so are further estimators of the same "
        "pair. Those need the whole distribution of both models and are read one text after the "
        "other here. With one policy and its reference alone, the contrast of the two models is "
        "the implicit reward without beta, so it has no row.",
        "",
    ]
    if results["peers"]:
        lines += [
            "Other packages, on the timed texts, against the signal of ours that claims the same:",
            "",
            "| package | texts read as the same tokens | largest difference | largest value |",
            "|---|---|--:|--:|",
        ]
    for name, peer in results["peers"].items():
        largest = peer["largest_difference"]
        shown = "" if largest is None else f"{largest:.1e}"
        lines.append(
            f"| {name} {peer['version']} | {peer['same_tokens']} of {peer['texts']} | {shown} "
            f"| {peer['largest_value']:.2f} |"
        )
    if results["peers"]:
        lines.append("")
    for package, reason in results["missing"].items():
        lines += [f"`{package}` is not in this run ({reason}).", ""]
    lines += [
        "reward-lens gives no number to the end token; inseq runs the model once for every token. "
        "`lm-polygraph`'s claim-conditioned probability needs a language-inference model and its "
        "Focus a keyword model, which no package registry offers, so that neither is here; "
        "re-scoring every prefix, as reward-bench's script does, needs a reward model and is "
        "timed on the pair in [Credit of a data set](../credit_scoring/README.md).",
        "",
    ]
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _cost(cost: Mapping[str, Any]) -> str:
    memory = "" if cost["extra_mib"] is None else f"{cost['extra_mib']:.0f}"
    return f"{cost['cpu_seconds']:.2f} | {cost['ratio']:.2f} | {memory}"


# --- command line -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 2 for input that does not fit, said in one line."""
    try:
        _run(_arguments(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.credit_localisation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--task", choices=TASKS, default="planted")
    parser.add_argument("--policy", help="a checkpoint or PEFT adapter; default: trained here")
    parser.add_argument("--reference", help="of --policy; an adapter's base if left out")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--texts", type=int, default=40, help="texts with an error")
    parser.add_argument("--timed", type=int, default=6, help="of them, those that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/credit_localisation"))
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for what can be known to be wrong before data or models are read."""
    from tokenq.cli.arguments import check_reference

    for name in ("texts", "timed", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; accepted: 1 or more")
    if options.timed > options.texts:
        raise UserError(f"--timed is {options.timed}; accepted: up to --texts, {options.texts}")
    if not 0 < options.beta < float("inf"):
        raise UserError(f"--beta is {options.beta}; accepted: a number above 0")
    if options.policy is None and options.reference is not None:
        raise UserError("--reference without --policy; accepted: both, or neither")
    if options.policy is not None:
        check_reference(options)
    check_writable(options.out, "--out")


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    _check(options)
    task, tests = erroneous(options.task, options.texts)
    command = (
        f"python -m benchmarks.credit_localisation --task {options.task} --texts {options.texts} "
        f"--timed {options.timed} --rounds {options.rounds} --threads {options.threads}"
    )
    if options.policy is None:
        _say("training a policy")
        pair = trained_pair(options.task, task)
    else:
        pair = loaded_pair(options.policy, options.reference)
        command += f" --policy {options.policy}"
        command += f" --reference {options.reference}" if options.reference else ""
    results = {
        "command": command,
        "machine": describe(options.threads),
        "task": options.task,
        "policy": pair.policy_name,
        "reference": pair.reference_name,
        "beta": options.beta,
        **measure(pair, tests, options.beta, options.timed, options.rounds),
    }
    write_text(options.out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(options.out / "README.md", page(results))
    print(page(results))


if __name__ == "__main__":
    sys.exit(main())
