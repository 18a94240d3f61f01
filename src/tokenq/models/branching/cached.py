"""Branches for a transformers model whose keys and values can be shared: the fast way."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.models.branching.kv_tree import BranchReading, LayerKV, PromptReading
from tokenq.models.branching.narrow import narrow_products
from tokenq.models.branching.rereading import RereadingModel
from tokenq.models.branching.step_model import StepModel, end_tokens
from tokenq.models.branching.tree import TokenTree
from tokenq.models.forward import (
    causal_lm,
    embedding_weight,
    enable_packed,
    row_states,
    shares_prompts,
    tolerance,
)
from tokenq.models.head import vocabulary_logps, vocabulary_size
from tokenq.models.packing import Ids, TreeLayout
from tokenq.models.reference import AdapterOff, scoring

logger = logging.getLogger(__name__)

_VERDICT = "_tokenq_branching_problem"


def step_model(model: nn.Module | AdapterOff) -> StepModel:
    """Return the model as one whose branches can be searched.

    With a shared cache where a probe shows that this gives the plain forward's states; else, with a
    warning, reading every sequence from its start.
    """
    with scoring(model) as active:
        enable_packed(active)
        inner = causal_lm(active)
        if _VERDICT not in inner.__dict__:
            inner.__dict__[_VERDICT] = branching_problem(inner)
            if inner.__dict__[_VERDICT] is not None:
                logger.warning(
                    "%s: branches cannot share a cache (%s); every step reads whole sequences, "
                    "which is slower and exact",
                    type(inner).__name__,
                    inner.__dict__[_VERDICT],
                )
        if inner.__dict__[_VERDICT] is not None:
            return RereadingModel(model)
    return CachedModel(model)


class CachedModel:
    """A :class:`StepModel` that computes every token once; for models that `step_model` admits.

    prefill_budget: prompt tokens of one forward; bounds memory, does not change the result
    """

    def __init__(self, model: nn.Module | AdapterOff, prefill_budget: int = 4096) -> None:
        self._model = model
        self._budget = prefill_budget
        self._layers: dict[int, LayerKV] = {}
        self._row_of = torch.empty(0, dtype=torch.long)
        self._lengths = torch.empty(0, dtype=torch.long)
        with scoring(model) as active:
            inner = causal_lm(active)
            self.vocabulary = vocabulary_size(inner)
            self.eos_token_ids = end_tokens(inner)

    def open(self, tree: TokenTree) -> Tensor:
        """See :class:`StepModel`."""
        with scoring(self._model) as active:
            inner = causal_lm(active)
            return vocabulary_logps(inner, self.open_states(inner, tree))

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """See :class:`StepModel`."""
        with scoring(self._model) as active:
            inner = causal_lm(active)
            with narrow_products(inner):
                return vocabulary_logps(inner, self.read_states(inner, tree, nodes))

    def retain(self, tree: TokenTree) -> None:
        """See :class:`StepModel`; a prompt's block goes when half of the prompts are done with."""
        rows = self._row_of[tree.active].unique()
        if not len(rows) or 2 * len(rows) > len(self._lengths):
            return
        moved = torch.full((len(self._lengths),), -1)
        moved[rows] = torch.arange(len(rows))
        self._row_of = torch.where(self._row_of >= 0, moved[self._row_of], self._row_of)
        self._lengths = self._lengths[rows]
        for layer in self._layers.values():
            layer.keep_prompts(rows.to(layer.keys.device), int(self._lengths.max()))

    def close(self) -> None:
        """See :class:`StepModel`."""
        self._layers = {}

    def open_states(self, inner: PreTrainedModel, tree: TokenTree) -> Tensor:
        """Read the prompts; return the hidden state [P, hidden] behind each."""
        distinct: dict[tuple[int, ...], int] = {}
        self._row_of = torch.tensor(
            [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in tree.prompts]
        )
        prompts = list(distinct)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts])
        self._layers = {}
        device = embedding_weight(inner).device
        parts = []
        for rows in _groups(prompts, self._budget):
            ids, layout = _prompts_layout([prompts[row] for row in rows], device)
            reading = PromptReading(
                self._layers, layout, rows, len(prompts), int(self._lengths.max())
            )
            states = _states(inner, ids, layout.positions, reading)
            parts.append(states[layout.trees[:, 1].to(device) - 1])
        return torch.cat(parts)[self._row_of.to(device)]

    def read_states(self, inner: PreTrainedModel, tree: TokenTree, nodes: Tensor) -> Tensor:
        """Read the last token of each node [R]; return the hidden state [R, hidden] behind it."""
        device = embedding_weight(inner).device
        prompts = tree.prompt(nodes)
        roots = len(tree.prompts)
        paths = tree.paths(nodes)
        # Prompts that are the same text share a row, so their branches must stand together.
        rows = self._row_of[prompts]
        order = torch.argsort(rows, stable=True)
        reading = BranchReading(
            self._layers,
            nodes[order] - roots,
            tree.slots,
            torch.where(paths >= 0, paths - roots, paths)[order],
            rows[order],
            self._lengths,
            device,
        )
        positions = (tree.prompt_lengths[prompts] + tree.depth(nodes) - 1)[order]
        ids = tree.token(nodes)[order]
        states = _states(inner, ids.to(device), positions.to(device), reading)
        return states[torch.argsort(order).to(device)]

    def untold_window(self, inner: PreTrainedModel) -> str | None:
        """Say which layer sees less than it told here, or None; after :meth:`open_states`.

        A probe shorter than the window cannot show it.
        """
        config = inner.config.get_text_config()
        window = getattr(config, "sliding_window", None) or None
        types = getattr(config, "layer_types", None)
        for number, layer in self._layers.items():
            kind = "sliding_attention" if types is None else types[number]
            if kind not in ("full_attention", "sliding_attention"):
                return f"layer {number} is of type {kind}"
            if layer.window != (window if kind == "sliding_attention" else None):
                return f"layer {number} has a window that its attention is not told"
        return None


def branching_problem(model: PreTrainedModel) -> str | None:
    """Say why branches over a shared cache do not reproduce plain forwards, or None if they do.

    Two prompts with two branches each, of which two share their first token, are read step by step
    and, sequence by sequence, at once; hidden states must agree as in `sharing_problem`.
    """
    if not shares_prompts(model):
        return "its prompts cannot be shared"
    generator = torch.Generator().manual_seed(0)
    size = min(model.config.get_text_config().vocab_size, len(embedding_weight(model)))

    def ids(count: int) -> list[int]:
        return torch.randint(size, (count,), generator=generator).tolist()

    tree = TokenTree([ids(9), ids(5)])
    with scoring(model):
        try:
            reader = CachedModel(model)
            shared = [reader.open_states(model, tree)]
            nodes = tree.add(torch.tensor([0, 0, 1]), torch.tensor(ids(3)))
            shared.append(reader.read_states(model, tree, nodes))
            leaves = tree.add(nodes[[0, 0, 1, 2]], torch.tensor(ids(4)))
            shared.append(reader.read_states(model, tree, leaves))
            untold = reader.untold_window(model)
        except Exception as error:  # modelling code that we do not know may raise anything
            return f"{type(error).__name__}: {error}"
        if untold is not None:
            return untold
        sequences = tree.prompts + [tree.sequence(node) for node in [*nodes, *leaves]]
        plain = torch.stack([row_states(model, ids)[-1] for ids in sequences]).float()
    difference = float((plain - torch.cat(shared).float()).norm() / plain.norm())
    if not difference <= tolerance(next(model.parameters()).dtype):
        return f"a probe differed by {difference:.1e} of its size"
    return None


def _states(inner: PreTrainedModel, ids: Tensor, positions: Tensor, reading: object) -> Tensor:
    # A mask with four axes counts as ready-made in transformers: none is built for the packed row.
    ready_made = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    states: Tensor = inner.base_model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=ready_made,
        use_cache=False,
        tree=reading,
    ).last_hidden_state[0]
    return states


def _groups(prompts: Sequence[Ids], budget: int) -> list[range]:
    """Consecutive prompts whose lengths add up to at most `budget`, or one that is longer."""
    groups, start, size = [], 0, 0
    for number, prompt in enumerate(prompts):
        if size and size + len(prompt) > budget:
            groups.append(range(start, number))
            start, size = number, 0
        size += len(prompt)
    return [*groups, range(start, len(prompts))]


def _prompts_layout(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, TreeLayout]:
    """The prompts one behind the other, [T], none of which sees another."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ends = torch.cumsum(lengths, 0)
    segment = torch.repeat_interleave(torch.arange(len(prompts)), lengths).to(device)
    layout = TreeLayout(
        trees=torch.stack([ends - lengths, ends, ends], dim=1),
        responses=torch.empty(0, 2, dtype=torch.long),
        segment=segment,
        prompt=segment,
        positions=torch.cat([torch.arange(length) for length in lengths.tolist()]).to(device),
        longest=int(lengths.max()),
    )
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    return ids, layout
