"""How often the monitor's findings are wrong, and how often they miss what was made for them.

    python -m benchmarks.alarms [--healthy 300] [--each 10] [--seeds 20] [--failing 4]

Two kinds of runs. *Made* histories move a table of probabilities in one chosen way
(`tests/support/histories.py`); `--healthy` runs without a fault are judged after every probe, as a
user would see them, and `--each` run of every fault at its end. *Trained* runs are real ones: a
tiny transformer learns a small language, then `PreferenceTrainer` trains it on pairs with the
monitor on; `--seeds` runs with good settings, `--failing` of each bad setting. A false alarm is a
run without a fault in which any rule says more than a note at any probe.
Each run's outcome is appended to results/alarms/runs.jsonl, and a benchmark that was stopped goes
on from there; then results.json, README.md and figure.png are written. Run it from the root of the
repository.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from scipy import stats
from tests.support.histories import KINDS, STEPS, cut, made_history
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.machine import describe
from tokenq.monitor.findings.finding import Finding
from tokenq.monitor.findings.rules import RULES, findings
from tokenq.monitor.journal import MonitorFolder
from tokenq.monitor.readings import History
from tokenq.report.progress import progress_bar
from tokenq.storage import atomic_file, write_text
from tokenq.training import PreferenceConfig, PreferenceTrainer

MADE_FOR: Mapping[str, set[str]] = {
    "expected_decline": {"expected_decline"},
    "displacement": {"displacement"},
    "toward_rejected": {"mass_toward_rejected"},
    "rejected_only": {"rejected_side_only"},
    "shared_prefix": {"shared_prefix_falls"},
    "squeezing": {"squeezing"},
    "overfitting": {"overfitting"},
    "length_drift": {"length_drift"},
    "shortening": {"length_drift"},
    "never_ending": {"stops_ending"},
    "repetition": {"repetition_drift"},
    "wrong_reference": {"identity_broken"},
    "start_gap": {"start_gap"},
    "sft_gap": {"sft_gap"},
    "near_duplicates": {"similar_pairs"},
    "overconfident": {"overconfident_pairs"},
    "kl_budget": {"kl_budget"},
    "ranking": {"ranking_falls"},
    "not_learning": {"not_learning"},
    "unstable": {"gradient_spikes"},
    "not_finite": {"not_finite"},
    "leak": {"separable_pairs"},
    "saturated": {"saturated_margin"},
    "loss_rises": {"loss_rises"},
}
"""Fault of a made history -> the rule that should say so."""

WORDS, TOPICS, PAD, END, START = 24, 20, 0, 1, 2
FIRST_WORD = 3
FIRST_TOPIC = FIRST_WORD + WORDS
VOCABULARY = FIRST_TOPIC + 2 * TOPICS
LONGEST = 16

FIRST_SEED = 1000
"""Of made runs: others than those that the rules' tests look at."""
Job = tuple[str, str, int]
"""Group ("made", "trained"), kind or setting, seed."""


@dataclass(frozen=True)
class Setting:
    """A trained run. `expects`: rules of which at least one should speak; empty: none should."""

    says: str
    expects: set[str] = field(default_factory=set)
    changes: Mapping[str, Any] = field(default_factory=dict)
    pairs: str = "best_worst"
    other_reference: bool = False
    base_knows: bool = True


FAR = {"kl_budget", "entropy_collapse", "squeezing", "displacement", "overconfident_pairs",
       "overconfident_tokens", "repetition_drift", "not_finite", "loss_rises"}  # fmt: skip
SETTINGS: Mapping[str, Setting] = {
    "healthy": Setting("beta 0.1, learning rate 5e-4, the reference wrote the pairs"),
    "other reference": Setting(
        "the reference is another model", {"start_gap"}, other_reference=True
    ),
    "rate too high": Setting("learning rate 0.03", FAR, {"learning_rate": 0.03}),
    "hardly any KL": Setting(
        "beta 0.001, learning rate 5e-3", FAR, {"beta": 0.001, "learning_rate": 5e-3}
    ),
    "near duplicates": Setting(
        "answers differ in one word, learning rate 1e-3",
        {"similar_pairs", "displacement"},
        {"learning_rate": 1e-3},
        pairs="near_duplicates",
    ),
    "no SFT": Setting("the reference knows another language", {"sft_gap"}, base_knows=False),
}


class Language:
    """Word follows word by a random table that the two topics of a prompt tilt."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng([seed, 1])
        self.follow = draw.normal(0, 1.2, (WORDS + 1, WORDS + 1))
        self.follow[:, WORDS] -= 0.3
        self.tilt = draw.normal(0, 0.5, (2, TOPICS, WORDS + 1))
        self.quality = draw.normal(0, 1, WORDS)

    def prompt(self, draw: np.random.Generator) -> list[int]:
        """Start and two topics."""
        one, two = draw.integers(TOPICS, size=2)
        return [START, FIRST_TOPIC + int(one), FIRST_TOPIC + TOPICS + int(two)]

    def law(self, prompt: Sequence[int], word: int) -> np.ndarray:
        """Probabilities of the next word; the last is the end."""
        one, two = prompt[1] - FIRST_TOPIC, prompt[2] - FIRST_TOPIC - TOPICS
        logits = self.follow[word] + self.tilt[0, one] + self.tilt[1, two]
        law = np.exp(logits - logits.max())
        return np.asarray(law / law.sum())

    def answer(self, prompt: Sequence[int], draw: np.random.Generator) -> list[int]:
        """Words, then the end token; never empty."""
        words: list[int] = []
        while len(words) < LONGEST:
            word = int(draw.choice(WORDS + 1, p=self.law(prompt, words[-1] if words else WORDS)))
            if word == WORDS and words:
                break
            if word < WORDS:
                words.append(word)
        return [FIRST_WORD + word for word in words] + [END]

    def goodness(self, answer: Sequence[int]) -> float:
        """Sum of its words' qualities."""
        return float(self.quality[np.array(answer[:-1]) - FIRST_WORD].sum())

    def best_worst(self, draw: np.random.Generator) -> dict[str, list[int]]:
        """The best and the worst of four answers."""
        prompt = self.prompt(draw)
        while True:
            answers = sorted((self.answer(prompt, draw) for _ in range(4)), key=self.goodness)
            if answers[0] != answers[-1]:
                return {
                    "prompt_ids": prompt, "chosen_ids": answers[-1], "rejected_ids": answers[0]
                }  # fmt: skip

    def near_duplicates(self, draw: np.random.Generator) -> dict[str, list[int]]:
        """An answer, and the same with one word exchanged for a worse likely one, or a better."""
        prompt = self.prompt(draw)
        answer: list[int] = []
        while len(answer) < 6:
            answer = self.answer(prompt, draw)
        at = int(draw.integers(1, len(answer) - 2))
        law = self.law(prompt, answer[at - 1] - FIRST_WORD)[:WORDS].copy()
        law[answer[at] - FIRST_WORD] = 0
        other = [*answer[:at], FIRST_WORD + int(np.argmax(law)), *answer[at + 1 :]]
        both = sorted((answer, other), key=self.goodness)
        return {"prompt_ids": prompt, "chosen_ids": both[1], "rejected_ids": both[0]}


def rows(language: Language, kind: str, count: int, seed: int) -> datasets.Dataset:
    """Preference rows as token ids."""
    draw = np.random.default_rng([seed, 2])
    make: Callable[[np.random.Generator], dict[str, list[int]]] = getattr(language, kind)
    return datasets.Dataset.from_list([make(draw) for _ in range(count)])


def tokenizer() -> PreTrainedTokenizerFast:
    """Names for the ids: the trainer wants a tokenizer to save."""
    words = {f"<{number}>": number for number in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<0>", eos_token="<1>")


def base_model(language: Language, seed: int, steps: int = 150) -> PreTrainedModel:
    """A tiny transformer that has learnt the language from its answers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    draw = np.random.default_rng([seed, 3])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for _ in range(steps):
        prompts = [language.prompt(draw) for _ in range(32)]
        texts = [(prompt, language.answer(prompt, draw)) for prompt in prompts]
        ids = torch.full((32, 3 + LONGEST + 1), PAD)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(texts):
            ids[row, : 3 + len(answer)] = torch.tensor([*prompt, *answer])
            labels[row, 3 : 3 + len(answer)] = torch.tensor(answer)
        optimiser.zero_grad()
        model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def trained(setting: Setting, seed: int, bases: dict[Any, Any], steps: int) -> History:
    """One run of PreferenceTrainer, read every fifth of it."""
    language = Language(seed % 4)
    own = Language(seed % 4 if setting.base_knows else 100 + seed % 4)
    key = (seed % 4, setting.base_knows)
    if key not in bases:
        bases[key] = base_model(own, seed % 4).state_dict()
    model = base_model(own, seed % 4, steps=0)
    model.load_state_dict(bases[key])
    reference = base_model(language, 50 + seed % 4, steps=30) if setting.other_reference else None
    data = rows(language, setting.pairs, 352, seed)
    with tempfile.TemporaryDirectory() as folder:
        plain = {
            "output_dir": folder, "per_device_train_batch_size": 16, "max_steps": steps,
            "learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_steps": 4, "beta": 0.1,
            "logging_steps": 2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "use_cpu": True, "seed": seed, "monitor_steps": max(1, steps // 5),
            "precompute_ref_log_probs": reference is None,
            "reference_cache_dir": f"{folder}/reference",
        }  # fmt: skip
        trainer = PreferenceTrainer(
            model,
            reference,
            args=PreferenceConfig(**{**plain, **setting.changes}),
            train_dataset=data.select(range(320)),
            eval_dataset=data.select(range(320, 352)),
            processing_class=tokenizer(),
        )
        trainer.train()
        return MonitorFolder.of(Path(folder)).history()


def ever(history: History) -> dict[str, Finding]:
    """What any rule has said after any probe, the first time that it did."""
    said: dict[str, Finding] = {}
    for reading in history.readings:
        for finding in findings(cut(history, reading.step)):
            said.setdefault(finding.name, finding)
    return said


def rate(hits: int, runs: int) -> dict[str, float]:
    """Share with its 95 % Wilson interval."""
    low, high = stats.binomtest(hits, runs).proportion_ci(0.95, "wilson")
    return {"hits": hits, "runs": runs, "rate": hits / runs, "low": low, "high": high}


def outcome(job: Job, bases: dict[Any, Any], steps: int) -> dict[str, Any]:
    """What the rules said of one run: a line of `runs.jsonl`."""
    group, name, seed = job
    state = None
    if group == "trained":
        history = trained(SETTINGS[name], seed, bases, steps)
        said, state = ever(history), _state(history)
    else:
        history = made_history(name, FIRST_SEED + seed)
        said = ever(history) if name == "healthy" else {f.name: f for f in findings(history)}
    rules = {rule: [finding.severity, finding.since] for rule, finding in said.items()}
    return {"group": group, "name": name, "seed": seed, "rules": rules, "state": state}


def all_jobs(healthy: int, each: int, seeds: int, failing: int) -> list[Job]:
    """Every run, spread evenly, so that a benchmark that is stopped has some of all."""
    counts = {
        ("made", "healthy"): healthy,
        **{("made", kind): each for kind in MADE_FOR},
        **{("trained", name): seeds if name == "healthy" else failing for name in SETTINGS},
    }
    jobs = [
        ((seed + 0.5) / count, (group, name, seed))
        for (group, name), count in counts.items()
        for seed in range(count)
    ]
    return [job for _, job in sorted(jobs)]


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates of all runs so far."""
    made: dict[str, Any] = {}
    real: dict[str, Any] = {}
    for group, name in dict.fromkeys((line["group"], line["name"]) for line in lines):
        runs = [line for line in lines if (line["group"], line["name"]) == (group, name)]
        wanted = MADE_FOR.get(name, set()) if group == "made" else SETTINGS[name].expects
        hits = [run for run in runs if _hit(run, wanted, notes=group == "made")]
        since = [run["rules"][rule][1] for run in hits for rule in wanted & set(run["rules"])]
        counts = Counter(rule for run in runs for rule in run["rules"])
        (made if group == "made" else real)[name] = {
            **rate(len(hits), len(runs)),
            "wanted": sorted(wanted),
            "since": float(np.median(since)) if since else None,
            "rules": dict(counts.most_common()),
            "noted": sum(any(one[0] == "note" for one in run["rules"].values()) for run in runs),
            "state": [run["state"] for run in runs if run["state"]],
        }
    return {"made": made, "trained": real}


def _hit(run: Mapping[str, Any], wanted: set[str], *, notes: bool) -> bool:
    """Whether a wanted rule spoke; where none is wanted, whether any said more than a note."""
    if wanted:
        return any(
            rule in wanted and (notes or severity != "note")
            for rule, (severity, _) in run["rules"].items()
        )
    return any(severity != "note" for severity, _ in run["rules"].values())


def _watched(items: Sequence[Any], title: str) -> Iterator[Any]:
    """The items, with a bar."""
    with progress_bar(title, Console(stderr=True)) as bar:
        yield from bar.track(items)


def _state(history: History) -> dict[str, float | None]:
    """Where a run ended: to see that it was what its setting says."""
    assert history.setup is not None
    last, kept = history.readings[-1], len(history.readings)
    ratios = (last.pairs.logps - history.setup.baseline.ref_logps).sum(axis=1)
    held = np.array([pair.source == "held_out" for pair in history.setup.probe.pairs])
    values = {
        "probes": kept,
        "chosen": float(ratios[0, held].mean()),
        "margin": float((ratios[0] - ratios[1])[held].mean()),
        "accuracy": float((ratios[0] > ratios[1])[held].mean()),
        "divergence": float(last.responses.divergence.mean()),
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def page(results: Mapping[str, Any]) -> str:
    """The README of the results."""
    made, real, machine = results["made"], results["trained"], results["machine"]
    lines = [
        "# How often the monitor is wrong",
        "",
        f"Written by `{results['command']}` on {machine['date']}, {machine['processor']}. "
        f"{results['done']} of its {results['planned']} runs are done. Intervals are "
        "Wilson's, 95 %. A false alarm is a run without a fault in which any of the "
        f"{results['rules']} rules says more than a note after any probe.",
        "",
        "![Rates with intervals](figure.png)",
        "",
        "## Runs without a fault",
        "",
        "| runs | false alarms | with a note | rules that spoke, in how many runs |",
        "|---|---|--:|---|",
    ]
    for word, group in (("made", made), ("trained", real)):
        if "healthy" in group:
            row = group["healthy"]
            lines.append(f"| {word} | {_shown(row)} | {row['noted']} | {_counts(row['rules'])} |")
    lines += [
        "",
        f"Made runs have {len(STEPS)} probes. Their faultless kind learns: margins grow, the "
        "chosen answers neither rise nor fall much.",
        "",
    ]
    if real:
        lines += _trained_page(real, results["steps"])
    lines += [
        "## Faults, made",
        "",
        "One effect each, in tables of probabilities that are known exactly "
        "(`tests/support/histories.py`), judged at the end. *Since* is the median of the step that "
        f"the finding names; the runs have {STEPS[-1]} steps.",
        "",
        "| fault | rule | found | since | all rules, in how many runs |",
        "|---|---|---|--:|---|",
    ]
    for name in MADE_FOR:
        if row := made.get(name):
            since = "" if row["since"] is None else f"{row['since']:.0f}"
            rule = " or ".join(f"`{one}`" for one in row["wanted"])
            counts = _counts(row["rules"])
            lines.append(f"| {name} | {rule} | {_shown(row)} | {since} | {counts} |")
    lines += [
        "",
        "Other rules mostly name true side effects: a policy thrown far from its reference is also "
        "overconfident, and an answer that falls out of line is displaced, whatever the cause. "
        "`identity_broken` in a run that is not `wrong_reference` is false.",
        "",
    ]
    return "\n".join(lines)


def _trained_page(real: Mapping[str, Any], steps: int) -> list[str]:
    lines = [
        "## Faults, trained",
        "",
        f"A two-layer transformer that has learnt a small language, then {steps} steps of DPO with "
        "`PreferenceTrainer` and its monitor. *Found*: at least one of the rules that should speak "
        "did so, as a warning or an alarm, after some probe.",
        "",
        "| setting | | should speak | found | rules that spoke, in how many runs |",
        "|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        if setting.expects and name in real:
            row, wanted = real[name], ", ".join(f"`{one}`" for one in sorted(setting.expects))
            counts = _counts(row["rules"])
            lines.append(f"| {name} | {setting.says} | {wanted} | {_shown(row)} | {counts} |")
    lines += [
        "",
        "Where the runs ended (means; nats, on held-out pairs and the reference's responses):",
        "",
        "| setting | chosen | margin | accuracy | KL(ref, policy) |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in SETTINGS:
        if name in real:
            keys = ("chosen", "margin", "accuracy", "divergence")
            means = [_mean(real[name]["state"], key) for key in keys]
            lines.append(f"| {name} | " + " | ".join(means) + " |")
    return [*lines, ""]


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A PNG of all rates: false alarms, trained faults, made faults."""
    from matplotlib.figure import Figure

    rows = [(f"no fault, {word}", results[word]["healthy"], "C3") for word in ("made", "trained")
            if "healthy" in results[word]]  # fmt: skip
    rows += [(name, results["trained"][name], "C0") for name in SETTINGS
             if SETTINGS[name].expects and name in results["trained"]]  # fmt: skip
    rows += [(name.replace("_", " "), results["made"][name], "C2") for name in MADE_FOR
             if name in results["made"]]  # fmt: skip
    figure = Figure(figsize=(6.4, 0.24 * len(rows) + 1), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (_, row, color) in enumerate(rows):
        axes.plot([row["low"], row["high"]], [-place, -place], color=color, lw=1.4)
        axes.plot(row["rate"], -place, "o", ms=4, color=color)
    axes.set_yticks([-place for place in range(len(rows))], [name for name, _, _ in rows])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(
        xlim=(-0.02, 1.02),
        xlabel="share of runs, 95 %",
        title="Red: false alarms; blue: trained faults found; green: made faults found",
    )
    axes.title.set_size(8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _shown(row: Mapping[str, float]) -> str:
    return (
        f"{row['hits']:.0f} of {row['runs']:.0f}: {100 * row['rate']:.1f} % "
        f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    )


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"`{name}` {count}" for name, count in ordered) or "none"


def _mean(states: Sequence[Mapping[str, float | None]], key: str) -> str:
    values = [value for state in states if (value := state[key]) is not None]
    return f"{np.mean(values):.2f}" if values else "not finite"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--healthy", type=int, default=300, help="made runs without a fault")
    parser.add_argument("--each", type=int, default=10, help="made runs of each fault")
    parser.add_argument("--seeds", type=int, default=20, help="trained runs without a fault")
    parser.add_argument("--failing", type=int, default=4, help="trained runs of each fault")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of a trained run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--out", type=Path, default=Path("results/alarms"))
    options = parser.parse_args()
    assert set(MADE_FOR) == set(KINDS) - {"healthy"}
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "runs.jsonl"
    lines = (
        [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    )
    done = {(line["group"], line["name"], line["seed"]) for line in lines}
    jobs = all_jobs(options.healthy, options.each, options.seeds, options.failing)
    bases: dict[Any, Any] = {}
    end = time.monotonic() + options.minutes * 60
    for job in _watched([job for job in jobs if job not in done], "runs"):
        if time.monotonic() > end:
            break
        lines.append(outcome(job, bases, options.steps))
        with journal.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
    results = {
        "command": f"python -m benchmarks.alarms --healthy {options.healthy} --each "
        f"{options.each} --seeds {options.seeds} --failing {options.failing} "
        f"--steps {options.steps}",
        "machine": describe(1),
        "rules": len(RULES),
        "planned": len(jobs),
        "done": len(lines),
        "steps": options.steps,
        **summary(lines),
    }
    write_text(options.out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(options.out / "README.md", page(results))
    draw(results, options.out / "figure.png")
    print(page(results))


if __name__ == "__main__":
    main()
