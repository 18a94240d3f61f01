"""`tokenq reproduce displacement`: what a chosen answer loses to near-duplicates, and who gains it.

"Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization"
(arXiv 2410.08847) in small, on questions about film sentences.
"""

import argparse
import re
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cached_property

from peft import PeftModel

from tokenq.monitor.similarity import pair_similarities
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.mass_displacement.analysis import analysed
from tokenq.reproduce.mass_displacement.answers import ANSWERS, EVADED, EVASIONS, QUESTION, WORDS
from tokenq.reproduce.mass_displacement.arms import ARMS, WRITING, kept
from tokenq.reproduce.mass_displacement.bench import DisplacementBench, data_set, fresh
from tokenq.reproduce.mass_displacement.exact import exact
from tokenq.reproduce.mass_displacement.figure import draw
from tokenq.reproduce.mass_displacement.page import page
from tokenq.reproduce.mass_displacement.settings import QUICK, DisplacementSettings
from tokenq.reproduce.mass_displacement.single import single_runs
from tokenq.reproduce.mass_displacement.training import HeldOut, StartScores, trained


class Start:
    """The tuned model of one seed under an adapter, made when a part first needs it."""

    def __init__(self, bench: DisplacementBench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        self._open = ExitStack()

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def policy(self) -> PeftModel:
        """The policy; its adapter is as the last run left it."""
        self.bench.remember()
        self._open.enter_context(self.bench.tuned(self.seed))
        return self._open.enter_context(self.bench.policy())

    @cached_property
    def scores(self) -> StartScores:
        """What the start says of answers."""
        return StartScores(self.bench, self.policy)

    @cached_property
    def held_out(self) -> HeldOut:
        """Held-out prompts, read under the start."""
        fresh(self.policy, self.seed)
        return HeldOut(self.bench)

    @cached_property
    def ches(self) -> list[tuple[float, float]]:
        """(CHES, CHES of means) of the pairs of the data set under the start."""
        bench = self.bench
        fresh(self.policy, self.seed)
        pairs = data_set(bench.training, self.seed)
        prompts = [bench.training[pair.prompt] for pair in pairs]
        sides = [
            [bench.ids(p, getattr(pair, side)) for p, pair in zip(prompts, pairs, strict=True)]
            for side in ("chosen", "rejected")
        ]
        questions = [ids for ids, _ in sides[0]]
        found = pair_similarities(
            bench.model, questions, *([ids for _, ids in rows] for rows in sides)
        )
        return [(each.ches, each.ches_normalised) for each in found]

    def facts(self) -> Results:
        """The start on held-out prompts, and the CHES of the data set's pairs by kind."""
        pairs = data_set(self.bench.training, self.seed)
        held_out = self.held_out
        fresh(self.policy, self.seed)
        start = held_out.read(self.policy, 0)
        return {
            "start": start,
            "written": held_out.written(self.policy, self.seed),
            "kinds": [pair.kind for pair in pairs],
            "ches": [list(each) for each in self.ches],
            "kept": {
                name: len(kept(arm, pairs, [of_means for _, of_means in self.ches], self.seed))
                for name, arm in ARMS.items()
            },
        }

    def arm(self, name: str) -> Results:
        """One arm's readings, and how many near-duplicates it was trained on."""
        arm = ARMS[name]
        pairs = data_set(self.bench.training, self.seed)
        numbers = kept(arm, pairs, [of_means for _, of_means in self.ches], self.seed)
        own = [pairs[number] for number in numbers]
        held_out = self.held_out
        readings = trained(self.bench, self.policy, self.scores, held_out, arm, own, self.seed)
        near = sum(pair.kind == "near" for pair in own)
        written = held_out.written(self.policy, self.seed) if name in WRITING else None
        return {"pairs": len(own), "near": near, "readings": readings, "written": written}


def run(run: Run) -> Results:
    """Single pairs and all arms, for all seeds; what is done already is taken as it is."""
    options = run.arguments
    settings = QUICK if options.quick else DisplacementSettings()
    if options.model is not None:
        settings = replace(settings, model=options.model)
    seeds = list(range(options.seeds or (2 if options.quick else 3)))
    decides = {
        **settings.to_dict(),
        "question": QUESTION,
        "answers": ANSWERS,
        "evasions": EVASIONS,
        "evaded": EVADED,
        "words": WORDS,
    }
    bench = DisplacementBench(settings)
    facts, singles = [], []
    arms: dict[str, list[Results]] = {name: [] for name in ARMS}
    with progress_bar("Training and reading", run.console) as progress:
        task = progress.add_task("", total=len(seeds) * (len(ARMS) + 2))
        for seed in seeds:
            with Start(bench, seed) as start:
                own = {**decides, "seed": seed}
                facts.append(run.part(f"start-{seed}", own, start.facts))
                progress.advance(task)
                singles.append(run.part(f"single-{seed}", own, lambda s=start: _single(s)))  # type: ignore[misc]
                progress.advance(task)
                for name, arm in ARMS.items():
                    key = f"{re.sub(r'[^a-z]+', '-', name.lower())}-{seed}"
                    result = run.part(
                        key,
                        {
                            **own,
                            "arm": asdict(arm),
                            "objective": repr(arm.objective()),
                        },
                        lambda s=start, n=name: s.arm(n),  # type: ignore[misc]
                    )
                    arms[name].append({**result, "yes": _yes(bench, facts[-1], name, seed)})
                    progress.advance(task)
    raw = {
        "settings": settings.to_dict(),
        "seeds": seeds,
        "exact": run.part("exact", {"version": 1}, exact),
        "starts": facts,
        "singles": [one["records"] for one in singles],
        "arms": arms,
        "objectives": {name: repr(arm.objective()) for name, arm in ARMS.items()},
    }
    return {**raw, **analysed(raw)}


def _yes(bench: DisplacementBench, facts: Results, name: str, seed: int) -> float:
    """Share of the pairs that an arm is trained on whose right answer is yes."""
    pairs = data_set(bench.training, seed)
    numbers = kept(ARMS[name], pairs, [of_means for _, of_means in facts["ches"]], seed)
    return sum(pairs[number].right == "yes" for number in numbers) / len(numbers)


def _single(start: Start) -> Results:
    return {"records": single_runs(start.bench, start.policy, start.seed)}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, help="number of seeds; unset: 3")
    parser.add_argument("--model", help=f"name or folder; unset: {DisplacementSettings().model}")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of few pairs and steps, too small to quote"
    )


EXPERIMENT = Experiment(
    description="Likelihood displacement (arXiv 2410.08847) on questions about film sentences. "
    "Train on single pairs until the margin is of one size and see what the chosen answer lost, "
    "which tokens gained, and what told it before: CHES and controls. Then train on pairs of "
    "which half are near-duplicates: all of them, filtered by CHES or at random, and with other "
    "objectives, compared at equal margin. Started again, it goes on with the run it was in.",
    run=run,
    figure=draw,
    page=page,
    add_arguments=_add_arguments,
)
