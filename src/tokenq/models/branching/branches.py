"""Several models that read one tree in step: the ground that every search walks on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenq.errors import UserError
from tokenq.models.branching.step_model import StepModel
from tokenq.models.branching.tree import TokenTree
from tokenq.models.packing import Ids

POLICY = "policy"
REFERENCE = "reference"


@dataclass(frozen=True, eq=False)
class Moves:
    """Steps of one token that may be taken.

    parents: [R] nodes
    tokens:  [R] the tokens behind them
    logps:   model -> [R] log-probability of the token, nats
    searched: [R] the token's log-probability under the distribution that is searched
    """

    parents: Tensor
    tokens: Tensor
    logps: Mapping[str, Tensor]
    searched: Tensor

    def __len__(self) -> int:
        return len(self.parents)

    def at(self, rows: Tensor | slice) -> "Moves":
        """Some of the moves, or all in another order."""
        return Moves(
            self.parents[rows],
            self.tokens[rows],
            {name: each[rows] for name, each in self.logps.items()},
            self.searched[rows],
        )


def joined_moves(parts: Sequence[Moves]) -> Moves:
    """All the moves of one part or more, in turn."""
    return Moves(
        torch.cat([part.parents for part in parts]),
        torch.cat([part.tokens for part in parts]),
        {name: torch.cat([part.logps[name] for part in parts]) for name in parts[0].logps},
        torch.cat([part.searched for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Frontier:
    """Nodes that have been read, and what may come behind them.

    nodes:    [R]
    prompts:  [R] which prompt each belongs to
    logps:    model -> [R, V] log pi(. | node), nats, as the model gives it
    searched: [R, V] log of the distribution that is searched: the policy's, unless it is guided
    """

    nodes: Tensor
    prompts: Tensor
    logps: Mapping[str, Tensor]
    searched: Tensor

    def __len__(self) -> int:
        return len(self.nodes)

    def moves(self, rows: Tensor, tokens: Tensor) -> Moves:
        """The moves behind rows [N] of the frontier by tokens [N]."""
        rows, tokens = rows.to(self.searched.device), tokens.to(self.searched.device)
        return Moves(
            self.nodes[rows.cpu()],
            tokens.cpu(),
            {name: each[rows, tokens] for name, each in self.logps.items()},
            self.searched[rows, tokens],
        )


@dataclass(frozen=True)
class Path:
    """The tokens from a prompt to a node and what the models say of each.

    token_ids: T of them, the prompt's not included
    logps:     model -> [T] log-probabilities, nats
    searched:  [T] log-probabilities under the distribution that was searched
    kl:        [T] KL(policy || reference) over the vocabulary in the states where the tokens were
               chosen, nats; None without a reference
    """

    token_ids: list[int]
    logps: dict[str, Tensor]
    searched: Tensor
    kl: Tensor | None


class Guidance(Protocol):
    """A rule that makes the distribution to be searched out of what the models say.

    models: the names of the models that it looks at
    """

    @property
    def models(self) -> Sequence[str]:
        """The names of the models that it looks at."""
        ...

    def __call__(self, branches: "Branches", nodes: Tensor, logps: Mapping[str, Tensor]) -> Tensor:
        """Return log-probabilities [R, V] (-inf: never) behind nodes [R], from logps [R, V]."""
        ...


class Branches:
    """Models that read the branches of one tree in step, and what they said along the way.

    models:   name -> model; "policy" is what is searched without guidance, "reference", if there
              is one, is what log-ratios and divergences are taken to
    prompts:  token ids, each at least one
    guidance: makes the searched distribution; the policy's own if left out

    evaluations, seconds: how many nodes the models have read, and how long they took

    Use as a context manager: models let go of their caches at the end. Raises UserError where the
    models do not score the same number of tokens.
    """

    def __init__(
        self,
        models: Mapping[str, StepModel],
        prompts: Sequence[Ids],
        guidance: Guidance | None = None,
    ) -> None:
        self.models = dict(models)
        self.tree = TokenTree(prompts)
        self.guidance = guidance
        self.evaluations = 0
        self.seconds = 0.0
        _check_vocabularies(self.models)
        self._logps = {name: torch.empty(0) for name in self.models}
        self._searched = torch.empty(0)
        both = {POLICY, REFERENCE} <= set(self.models)
        self._kl: Tensor | None = torch.empty(0) if both else None

    def __enter__(self) -> "Branches":
        return self

    def __exit__(self, *error: object) -> None:
        for model in self.models.values():
            model.close()

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return next(iter(self.models.values())).vocabulary

    def open(self) -> Frontier:
        """Read the prompts."""
        return self._frontier(self.tree.roots, lambda model: model.open(self.tree))

    def extend(self, moves: Moves) -> Frontier:
        """Take the moves and read what comes next: :meth:`place`, then :meth:`read`."""
        return self.read(self.place(moves))

    def place(self, moves: Moves) -> Tensor:
        """Take the moves without asking any model what follows; return the new nodes [R]."""
        nodes = self.tree.add(moves.parents, moves.tokens)
        slots = nodes - len(self.tree.prompts)
        for name, given in moves.logps.items():
            self._logps[name] = _stored(self._logps[name], slots, given, self.tree.slots)
        self._searched = _stored(self._searched, slots, moves.searched, self.tree.slots)
        return nodes

    def read(self, nodes: Tensor) -> Frontier:
        """Ask the models what comes behind placed nodes [R]; each node is read at most once."""
        return self._frontier(nodes, lambda model: model.read(self.tree, nodes))

    def retain(self, nodes: Tensor) -> None:
        """Forget every node but these and their ancestors; they must not be used again."""
        self.tree.retain(nodes)
        for model in self.models.values():
            model.retain(self.tree)

    def path(self, node: int) -> Path:
        """What was said on the way to a node."""
        steps = self.tree.paths(torch.tensor([node]))[0] - len(self.tree.prompts)
        return Path(
            self.tree.response(node),
            {name: each[steps] for name, each in self._logps.items()},
            self._searched[steps],
            None if self._kl is None else self._kl_before(node),
        )

    def total(self, nodes: Tensor, name: str) -> Tensor:
        """[R] sum of a model's log-probabilities of the tokens on the way to each node, nats."""
        steps = self.tree.paths(nodes)
        values = self._logps[name][(steps - len(self.tree.prompts)).clamp_min(0)]
        return torch.where(steps >= 0, values, 0.0).sum(-1)

    def _frontier(self, nodes: Tensor, ask: Callable[[StepModel], Tensor]) -> Frontier:
        with torch.no_grad():
            start = time.perf_counter()
            logps = {name: ask(model) for name, model in self.models.items()}
            if logps and next(iter(logps.values())).is_cuda:
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            self.evaluations += len(nodes)
            if self._kl is not None:
                self._store_kl(nodes, logps)
            guidance = self.guidance
            searched = logps[POLICY] if guidance is None else guidance(self, nodes, logps)
        return Frontier(nodes, self.tree.prompt(nodes), logps, searched)

    def _store_kl(self, nodes: Tensor, logps: Mapping[str, Tensor]) -> None:
        assert self._kl is not None
        ours, theirs = logps[POLICY], logps[REFERENCE]
        kl = (ours.exp() * (ours - theirs)).masked_fill(ours == -torch.inf, 0.0).sum(-1)
        size = self.tree.slots + len(self.tree.prompts)
        self._kl = _stored(self._kl, nodes, kl, size)

    def _kl_before(self, node: int) -> Tensor:
        assert self._kl is not None
        steps = self.tree.paths(torch.tensor([node]))[0]
        return self._kl[self.tree.parent(steps)]


def _stored(table: Tensor, places: Tensor, values: Tensor, size: int) -> Tensor:
    """The table [N, ...] with values [R, ...] at places [R], made `size` long if it is shorter."""
    values = values.cpu()
    if len(table) < size:
        grown = values.new_full((size, *values.shape[1:]), torch.nan)
        grown[: len(table)] = table
        table = grown
    table[places] = values
    return table


def _check_vocabularies(models: Mapping[str, StepModel]) -> None:
    sizes = {name: model.vocabulary for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"the models score different numbers of tokens ({told}); accepted: one")
