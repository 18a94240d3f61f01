"""Random exact token MDPs to search, and the law of every response to their prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenq.mdp.arrays import Array, log_softmax
from tokenq.mdp.tree import PrefixTree
from tokenq.search.tabular import TabularModel, tabular_models


@dataclass(frozen=True)
class Case:
    """A policy and a reference over one tree, float64."""

    tree: PrefixTree
    tables: dict[str, Array]

    @property
    def models(self) -> dict[str, TabularModel]:
        return dict(tabular_models(self.tree, **self.tables))

    @property
    def prompts(self) -> list[Any]:
        return [[prompt] for prompt in range(self.tree.prompts)]

    def law(self, name: str = "policy", warped: Any = None) -> list[dict[tuple[int, ...], float]]:
        """For each prompt, response -> log-probability; `warped` acts on the rows of the table."""
        table = self.tables[name] if warped is None else warped(self.tables[name])
        totals = self.tree.totals(table)
        return [
            {self.tree.response(r): float(row[r]) for r in range(self.tree.responses)}
            for row in totals
        ]


def random_case(
    seed: int,
    vocabulary: int = 4,
    horizon: int = 3,
    eos: int | None = 0,
    prompts: int = 2,
    sharpness: float = 1.0,
) -> Case:
    tree = PrefixTree(vocabulary, horizon, eos, prompts)
    generator = np.random.default_rng(seed)
    size = (tree.states, vocabulary)
    tables = {
        name: log_softmax(sharpness * generator.normal(size=size))
        for name in ("policy", "reference")
    }
    return Case(tree, tables)
