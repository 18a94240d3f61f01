"""The theory as measured numbers: identities on random trees, and what tabular DPO learns.

Identities are in `tokenq.mdp.identities`. Training is on the exact expected loss over all pairs of
responses, so what it ends in is what DPO converges to: with Bradley-Terry labels, with labels
without noise, with responses that stand in no pair, and with a finite number of labels.
"""

import argparse
from collections.abc import Callable

import numpy as np
from rich.table import Table

from tokenq.mdp import (
    CounterExample,
    PrefixTree,
    TokenMDP,
    bradley_terry,
    counter_example,
    equivalence,
    sample_comparisons,
    uniform_pairs,
    verify,
)
from tokenq.mdp.arrays import Array, log_sum_exp
from tokenq.objectives import DPO
from tokenq.report.progress import progress_bar
from tokenq.reproduce.experiment import Experiment, Results, Run
from tokenq.reproduce.tabular import Fit, divergence, train
from tokenq.reproduce.theory_figure import figure
from tokenq.reproduce.theory_page import page

TREE = PrefixTree(vocabulary=3, horizon=3, eos=2, prompts=2)
BETA = 0.5
ITERATIONS = 400
COVERED = 10
"""Responses to each prompt that pairs are made of where coverage is partial; 15 in all."""
STARTS = 5
LABELS = (1_000, 10_000, 100_000, 1_000_000)


def run(run: Run) -> Results:
    """Verify the identities, then train on random MDPs."""
    arguments = run.arguments
    trees, seeds = (100, 1) if arguments.quick else (arguments.trees, arguments.seeds)
    settings = {"trees": trees, "seed": arguments.seed}
    with run.console.status(f"identities on {trees} random trees"):
        identities = run.part("identities", settings, lambda: _identities(trees, arguments.seed))
    run.console.print(_table(identities["checks"]))
    trained = []
    with progress_bar("tabular training", run.console) as bar:
        for seed in bar.track(range(arguments.seed, arguments.seed + seeds)):
            trained.append(run.part(f"training-{seed}", _settings(seed), _training(seed)))
    return {
        **identities,
        "counter_example": _described(counter_example()),
        "beta": BETA,
        "trained": trained,
    }


def _identities(trees: int, seed: int) -> Results:
    found = verify(trees, seed)
    return {
        "checks": [{**vars(check), "holds": check.holds} for check in found.checks],
        "controls": [vars(control) for control in found.controls],
    }


def _table(checks: list[Results]) -> Table:
    table = Table("identity", "equation", "max error", "trees", "")
    for check in checks:
        table.add_row(
            check["identity"],
            check["equation"],
            f"{check['error']:.1e}",
            str(check["trees"]),
            "holds" if check["holds"] else "[bold]fails[/]",
        )
    return table


def _settings(seed: int) -> Results:
    return {
        "seed": seed,
        "beta": BETA,
        "iterations": ITERATIONS,
        "covered": COVERED,
        "starts": STARTS,
        "labels": LABELS,
    }


def _training(seed: int) -> Callable[[], Results]:
    def make() -> Results:
        rng = np.random.default_rng(seed)
        mdp = TokenMDP.random(TREE, rng)
        return {
            "bradley_terry": _all_pairs(mdp),
            "deterministic": _without_noise(mdp),
            "uncovered": _partly_covered(mdp, rng),
            "sampled": [_sampled_labels(mdp, count, rng) for count in LABELS],
        }

    return make


def _fit(mdp: TokenMDP, preferences: Array, pairs: Array, start: Array | None = None) -> Fit:
    start = mdp.ref_logps if start is None else start
    return train(DPO(beta=BETA), mdp, preferences, pairs, start, ITERATIONS)


def _all_pairs(mdp: TokenMDP) -> Results:
    """Labels as the theory has them: pi*, and dense rewards up to shaping."""
    solution = mdp.solve(BETA)
    fit = _fit(mdp, bradley_terry(mdp.returns), uniform_pairs(TREE).numpy())
    learned = BETA * (fit.log_policy - mdp.ref_logps)
    return {
        **_distance(mdp, solution.log_policy, fit),
        "shaping_error": float(equivalence(TREE, mdp.reward, learned).error),
        "correlation_advantage": _correlation(learned, solution.advantage),
        "correlation_reward": _correlation(learned, mdp.reward),
        "advantage": solution.advantage.ravel().tolist(),
        "reward": mdp.reward.ravel().tolist(),
        "learned": learned.ravel().tolist(),
    }


def _without_noise(mdp: TokenMDP) -> Results:
    """The response of higher return always wins: the loss has no finite minimum."""
    fit = _fit(mdp, (np.sign(_gaps(mdp.returns)) + 1) / 2, uniform_pairs(TREE).numpy())
    law = np.exp(TREE.totals(fit.log_policy))
    target = mdp.solve(BETA).log_policy
    learned = BETA * (fit.log_policy - mdp.ref_logps)
    on_best = np.take_along_axis(law, mdp.returns.argmax(-1)[:, None], -1)
    return {
        **_distance(mdp, target, fit),
        "loss": fit.loss,
        "on_best": float(on_best.mean()),
        "best_under_target": float(np.exp(TREE.totals(target)).max(-1).mean()),
        "shaping_error": float(equivalence(TREE, mdp.reward, learned).error),
    }


def _partly_covered(mdp: TokenMDP, rng: np.random.Generator) -> Results:
    """Some responses are in no pair: their mass is what the start made it."""
    covered = np.zeros((TREE.prompts, TREE.responses), dtype=bool)
    for row in covered:
        row[rng.choice(TREE.responses, COVERED, replace=False)] = True
    pairs = (covered[:, :, None] & covered[:, None, :]).astype(np.float64)
    target = mdp.solve(BETA).log_policy
    starts = [mdp.ref_logps]
    starts += [rng.normal(size=mdp.reward.shape) for _ in range(STARTS - 1)]
    fits = [_fit(mdp, bradley_terry(mdp.returns), pairs, start) for start in starts]
    masses = [_mass(fit.log_policy, ~covered) for fit in fits]
    return {
        **_distance(mdp, target, fits[0]),
        "loss_range": float(np.ptp([fit.loss for fit in fits])),
        "kl_within_covered": max(_kl_within(target, fit.log_policy, covered) for fit in fits),
        "exact_mass": _mass(target, ~covered),
        "reference_mass": _mass(mdp.ref_logps, ~covered),
        "masses": masses,
        "learned_mass": masses[0],
        "mass_range": float(np.ptp(masses)),
    }


def _sampled_labels(mdp: TokenMDP, count: int, rng: np.random.Generator) -> Results:
    """A finite number of Bradley-Terry labels on uniform pairs."""
    drawn = sample_comparisons(mdp.returns, count, rng)
    wins = np.zeros((TREE.prompts, TREE.responses, TREE.responses))
    np.add.at(wins, (drawn.prompts, drawn.winners, drawn.losers), 1.0)
    asked = wins + wins.swapaxes(-1, -2)
    fit = _fit(mdp, wins / np.maximum(asked, 1), asked)
    return {"labels": count, "kl": divergence(mdp, mdp.solve(BETA).log_policy, fit.log_policy)}


def _gaps(returns: Array) -> Array:
    return returns[..., :, None] - returns[..., None, :]


def _distance(mdp: TokenMDP, target: Array, fit: Fit) -> Results:
    """KL to the target along the way, in the end, and at its lowest."""
    path = [divergence(mdp, target, policy) for policy in fit.policies]
    return {"kl_path": path, "kl": path[-1], "lowest_kl": min(path)}


def _mass(log_policy: Array, responses: np.ndarray) -> float:
    """Probability of the marked responses [P, R], mean over prompts."""
    return float((np.exp(TREE.totals(log_policy)) * responses).sum(-1).mean())


def _kl_within(target: Array, log_policy: Array, covered: np.ndarray) -> float:
    """KL between the laws of the responses given that they are covered, mean over prompts."""
    own, other = (
        np.where(covered, TREE.totals(policy), -np.inf) for policy in (target, log_policy)
    )
    own, other = (laws - log_sum_exp(laws)[:, None] for laws in (own, other))
    terms = np.exp(own[covered]) * (own[covered] - other[covered])
    return float(terms.sum() / TREE.prompts)


def _correlation(first: Array, second: Array) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _described(example: CounterExample) -> Results:
    """A counter-example with all its numbers."""
    mdp, tree = example.mdp, example.mdp.tree
    solution = mdp.solve(example.beta)
    columns = {
        "return": mdp.returns[0],
        "log_ref": tree.totals(mdp.ref_logps)[0],
        "log_policy": tree.totals(solution.log_policy)[0],
        "log_ratio": tree.totals(solution.advantage)[0] / example.beta,
    }
    return {
        "vocabulary": tree.vocabulary,
        "horizon": tree.horizon,
        "beta": example.beta,
        "start_value": float(solution.v[0]),
        "likeliest": example.likeliest,
        "best": example.best,
        "responses": [
            {
                "tokens": tree.response(index),
                **{name: float(v[index]) for name, v in columns.items()},
            }
            for index in range(tree.responses)
        ],
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trees", type=int, default=10_000, help="random trees (default: 10000)")
    parser.add_argument("--seeds", type=int, default=10, help="MDPs to train on (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--quick", action="store_true", help="100 trees, 1 MDP: seconds")


EXPERIMENT = Experiment(
    description="every identity of the token MDP on random trees, and tabular DPO against pi*",
    run=run,
    figure=figure,
    page=page,
    add_arguments=_add_arguments,
)
