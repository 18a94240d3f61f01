"""All identities on many random trees, as a table; and the tree on which the two searches part."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tokenq.mdp.arrays import Array
from tokenq.mdp.identities import FALSE_STATEMENTS, IDENTITIES, Case
from tokenq.mdp.token_mdp import TokenMDP
from tokenq.mdp.tree import PrefixTree

TOLERANCE = 1e-10
TREES_PER_SHAPE = 20
MOST_RESPONSES = 256


@dataclass(frozen=True)
class Check:
    """A statement that must hold.

    identity: what it says
    equation: in arXiv 2404.12358, unless another paper is named
    error:    largest deviation over all trees, states and responses, in units of the reward (or of
              probability)
    trees:    number of random MDPs
    """

    identity: str
    equation: str
    error: float
    trees: int

    @property
    def holds(self) -> bool:
        """Whether the error is within 1e-10."""
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class Control:
    """A statement that must fail.

    refuted:  on how many of the `trees` it is off by more than 1e-6
    smallest: smallest deviation among these
    largest:  largest deviation
    """

    statement: str
    equation: str
    refuted: int
    trees: int
    smallest: float
    largest: float


@dataclass(frozen=True, repr=False)
class Verification:
    """What :func:`verify` found; prints as a table."""

    checks: tuple[Check, ...]
    controls: tuple[Control, ...]

    @property
    def holds(self) -> bool:
        """Whether every identity holds within 1e-10."""
        return all(check.holds for check in self.checks)

    def __repr__(self) -> str:
        rows = [f"{'identity':<46}{'equation':<18}{'max error':>10}{'trees':>8}"]
        rows += [
            f"{check.identity:<46}{check.equation:<18}{check.error:>10.1e}{check.trees:>8}"
            for check in self.checks
        ]
        rows += ["", f"{'must fail':<46}{'equation':<18}{'largest':>10}{'refuted':>8}"]
        rows += [
            f"{control.statement:<46}{control.equation:<18}{control.largest:>10.1e}"
            f"{control.refuted:>8}"
            for control in self.controls
        ]
        return "\n".join(rows)


def verify(trees: int = 1000, seed: int = 0) -> Verification:
    """Measure every identity on random MDPs of varied shape, beta and reward scale.

    Vocabularies of 2 to 6 tokens, 1 to 5 steps, with and without EOS, 1 to 3 prompts; beta between
    0.05 and 5, rewards with a deviation between 0.1 and 3, reference logits between 0.1 and 2.
    Deterministic in `seed`. Raises ValueError for less than one tree.
    """
    if trees < 1:
        raise ValueError(f"trees must be >= 1, got {trees}")
    found: dict[str, list[Array]] = defaultdict(list)
    for case in random_cases(trees, np.random.default_rng(seed)):
        for name, _, measure in (*IDENTITIES, *FALSE_STATEMENTS):
            found[name].append(measure(case))
    errors = {name: np.concatenate(parts) for name, parts in found.items()}
    return Verification(
        tuple(
            Check(name, equation, float(errors[name].max()), trees)
            for name, equation, _ in IDENTITIES
        ),
        tuple(_control(name, equation, errors[name]) for name, equation, _ in FALSE_STATEMENTS),
    )


def random_cases(trees: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield batches of random MDPs, each over one random tree, `trees` MDPs in all."""
    while trees > 0:
        count = min(trees, TREES_PER_SHAPE)
        trees -= count
        mdp = TokenMDP.random(
            random_tree(rng),
            rng,
            batch=(count,),
            reward_scale=_log_uniform(0.1, 3.0, count, rng),
            ref_scale=_log_uniform(0.1, 2.0, count, rng),
        )
        yield Case(mdp, _log_uniform(0.05, 5.0, count, rng), rng)


def random_tree(rng: np.random.Generator) -> PrefixTree:
    """Draw vocabulary, horizon, EOS (or none) and prompts; at most 256 responses to a prompt."""
    while True:
        vocabulary = int(rng.integers(2, 7))
        eos = int(rng.integers(vocabulary)) if rng.random() < 0.75 else None
        tree = PrefixTree(vocabulary, int(rng.integers(1, 6)), eos, int(rng.integers(1, 4)))
        if tree.responses <= MOST_RESPONSES:
            return tree


@dataclass(frozen=True, eq=False)
class CounterExample:
    """An MDP of one prompt on which the likeliest response is not the one of highest return."""

    mdp: TokenMDP
    beta: float
    likeliest: int
    best: int


def counter_example(seed: int = 0, draws: int = 200) -> CounterExample:
    """Look through random trees, smallest first, for one on which the two searches part.

    Trees are ordered by their number of responses. Raises ValueError if none is found.
    """
    rng = np.random.default_rng(seed)
    shapes = [PrefixTree(vocabulary, horizon) for vocabulary in (2, 3) for horizon in (1, 2)]
    for tree in sorted(shapes, key=lambda shape: shape.responses):
        mdp = TokenMDP.random(tree, rng, batch=(draws,))
        likelihood = tree.totals(mdp.solve(1.0).log_policy)[:, 0]
        returns = mdp.returns[:, 0]
        likeliest, best = likelihood.argmax(-1), returns.argmax(-1)
        rows = np.arange(draws)
        lost = returns[rows, best] - returns[rows, likeliest]
        row = int(lost.argmax())
        if lost[row] > 0:
            one = TokenMDP(tree, mdp.reward[row], mdp.ref_logps[row])
            return CounterExample(one, 1.0, int(likeliest[row]), int(best[row]))
    raise ValueError(f"no counter-example in {draws} draws of each tree")


def _control(statement: str, equation: str, deviations: Array) -> Control:
    refuted = deviations[deviations > 1e-6]
    return Control(
        statement,
        equation,
        len(refuted),
        len(deviations),
        float(refuted.min()) if len(refuted) else 0.0,
        float(deviations.max()),
    )


def _log_uniform(low: float, high: float, count: int, rng: np.random.Generator) -> Array:
    return np.exp(rng.uniform(np.log(low), np.log(high), size=count))
