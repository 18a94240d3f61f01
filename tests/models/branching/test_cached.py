"""A shared tree of keys and values against one plain forward of every sequence."""

import copy
import functools
import logging
from collections.abc import Callable

import pytest
import torch
from families import FAMILIES, VOCABULARY, DoubleThroughout, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from plain_reading import plain_rows
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    GptOssConfig,
    GraniteConfig,
    MambaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
    StableLmConfig,
    Starcoder2Config,
)

from tokenq.models.branching.cached import CachedModel, branching_problem, step_model
from tokenq.models.branching.rereading import RereadingModel
from tokenq.models.branching.step_model import StepModel
from tokenq.models.branching.tree import TokenTree
from tokenq.models.forward import enable_packed
from tokenq.models.reference import AdapterOff

PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13],
    [14, 15],
    [5, 6, 7, 8, 9, 10, 11, 12, 13],
    [16] * 12,
]


def grow(model: StepModel, tree: TokenTree, exact: Callable[[Tensor, Tensor], None]) -> None:
    """Read a tree that forks, leaves branches behind and comes back to them, nine tokens deep.

    `exact` is handed nodes and what the model says behind them.
    """
    draw = torch.Generator().manual_seed(1)

    def read(parents: Tensor) -> Tensor:
        tokens = torch.randint(3, VOCABULARY, (len(parents),), generator=draw)
        nodes = tree.add(parents, tokens)
        nodes = nodes[torch.argsort(tree.prompt(nodes), stable=True)]
        exact(nodes, model.read(tree, nodes))
        return nodes

    exact(tree.roots, model.open(tree))
    first = read(torch.tensor([0, 0, 0, 1, 2, 3, 3]))
    second = read(first[[2, 0, 2, 6, 3]])
    leaf = second[-1:]
    for _ in range(7):  # the deepest ends nine tokens behind its prompt: windows of six hide it
        leaf = read(leaf)
    read(torch.cat([first[[1, 4]], second[[0]], leaf, torch.tensor([3])]))


def check(
    model: nn.Module, tolerance: float, tree: TokenTree
) -> tuple[list[float], Callable[[Tensor, Tensor], None]]:
    worst: list[float] = []

    def exact(nodes: Tensor, logps: Tensor) -> None:
        want = plain_rows(model, tree, nodes)
        assert logps.shape == want.shape
        worst.append(float((logps - want).abs().max()))
        torch.testing.assert_close(logps, want, rtol=0, atol=tolerance)

    return worst, exact


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_double_precision(family: str, implementation: str) -> None:
    if implementation == "sdpa" and family.startswith("gemma2"):
        pytest.skip("Gemma 2 caps its scores, which sdpa does not offer")
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    tree = TokenTree(PROMPTS)
    with DoubleThroughout():
        reader = step_model(model)
        assert isinstance(reader, CachedModel)
        grow(reader, tree, check(model, 1e-9, tree)[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "mistral-sliding"])
def test_single_precision(family: str) -> None:
    model = tiny_model(family, torch.float32)
    tree = TokenTree(PROMPTS)
    reader = step_model(model)
    assert isinstance(reader, CachedModel)
    grow(reader, tree, check(model, 2e-4, tree)[1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_half_precision(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager")
    model = model.to(torch.bfloat16).eval()
    tree = TokenTree(PROMPTS)
    reader = step_model(model)
    assert isinstance(reader, CachedModel)
    grow(reader, tree, check(model, 0.05, tree)[1])


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
FURTHER: dict[str, tuple[PreTrainedConfig, bool]] = {
    # a configuration, and whether its branches share a cache
    "olmo2": (Olmo2Config(**_SMALL), True),
    "phi3": (Phi3Config(**_SMALL), True),
    "cohere": (CohereConfig(**_SMALL), True),
    "granite": (GraniteConfig(**_SMALL, logits_scaling=2.0, attention_multiplier=0.3), True),
    "starcoder2": (Starcoder2Config(**_SMALL, sliding_window=6), True),
    "stablelm": (StableLmConfig(**_SMALL), False),
    "mixtral": (MixtralConfig(**_EXPERTS), True),
    "falcon": (FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2,
                            num_attention_heads=4), False),
    "falcon-alibi": (FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=4, alibi=True), False),
    "opt": (OPTConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, ffn_dim=48,
                      num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=32,
                      dropout=0.0), True),
    "gpt-oss": (GptOssConfig(**_EXPERTS, head_dim=8, sliding_window=6), False),
    "phimoe": (PhimoeConfig(**_EXPERTS, sliding_window=64), False),
    "mamba": (MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
              False),
    "recurrent-gemma": (RecurrentGemmaConfig(vocab_size=VOCABULARY, hidden_size=32, lru_width=32,
                                             num_hidden_layers=3, num_attention_heads=4,
                                             intermediate_size=48, attention_window_size=6), False),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
def test_other_architectures_share_or_are_read_anew_and_are_exact(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, shares = FURTHER[name]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    tree = TokenTree(PROMPTS)
    reader = step_model(model)
    assert isinstance(reader, CachedModel if shares else RereadingModel), caplog.text
    assert ("branches cannot share a cache" in caplog.text) != shares
    grow(reader, tree, check(model, 1e-3, tree)[1])


def test_a_kind_of_layer_that_is_not_known_is_not_shared() -> None:
    model = tiny_model("llama")
    enable_packed(model)
    assert branching_problem(model) is None
    model.config = copy.deepcopy(model.config)
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert branching_problem(model) == "layer 1 is of type chunked_attention"


def test_a_model_is_probed_and_complained_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_config(FURTHER["gpt-oss"][0]).eval()
    model.train()
    for _ in range(3):
        assert isinstance(step_model(model), RereadingModel)
    said = [each for each in caplog.records if "branches cannot" in each.message]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    assert model.training, "the model is left as it was found"


@pytest.mark.parametrize("budget", [1, 10, 21, 4096])
def test_how_prompts_are_grouped_for_reading_does_not_matter(budget: int) -> None:
    model = tiny_model("mistral-sliding")
    tree = TokenTree(PROMPTS)
    with DoubleThroughout():
        step_model(model)
        grow(CachedModel(model, prefill_budget=budget), tree, check(model, 1e-9, tree)[1])


def test_policy_and_the_base_under_its_adapter_read_one_tree() -> None:
    base = tiny_model("llama")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(base, config).double().eval()
    reference = AdapterOff(policy)
    tree = TokenTree(PROMPTS)
    readers = step_model(policy), step_model(reference)
    assert all(isinstance(reader, CachedModel) for reader in readers)
    nodes = tree.roots
    for step in range(3):
        ours, theirs = (
            reader.read(tree, nodes) if step else reader.open(tree) for reader in readers
        )
        with reference.active() as model:
            torch.testing.assert_close(theirs, plain_rows(model, tree, nodes), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours, plain_rows(policy, tree, nodes), rtol=0, atol=1e-5)
        assert (ours - theirs).abs().max() > 0.1
        nodes = tree.add(nodes.repeat_interleave(2), torch.arange(3, 3 + 2 * len(nodes)))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_of_prompts_that_are_done_with_are_let_go(family: str) -> None:
    model = tiny_model(family)
    tree = TokenTree([*PROMPTS, [17, 18, 19]])
    with DoubleThroughout():
        reader = step_model(model)
        assert isinstance(reader, CachedModel)
        _, exact = check(model, 1e-9, tree)
        reader.open(tree)
        nodes = tree.add(torch.arange(5), torch.arange(20, 25))
        exact(nodes, reader.read(tree, nodes))
        sizes = []
        for kept in ([1, 2, 3, 4], [2, 4], [2]):
            tree.retain(nodes[kept])
            reader.retain(tree)
            sizes.append(len(reader._layers[0].prompt_keys))
            more = tree.add(nodes[kept], torch.arange(len(kept)))
            exact(more, reader.read(tree, more))
        # Prompts 0 and 2 are one text: 4 blocks for 5 prompts, 2 once half of them can go, then 1.
        assert sizes == [4, 2, 1]


@functools.cache
def _model(family: str) -> PreTrainedModel:
    return tiny_model(family)


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["llama", "gemma3", "gpt2"]),
    prompts=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=9), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_tree_in_any_order(family: str, prompts: list[list[int]], data: st.DataObject) -> None:
    model = _model(family)
    tree = TokenTree(prompts)
    with DoubleThroughout():
        reader = step_model(model)
        _, exact = check(model, 1e-9, tree)
        exact(tree.roots, reader.open(tree))
        alive = tree.roots.tolist()
        for _ in range(data.draw(st.integers(1, 6))):
            parents = data.draw(st.lists(st.sampled_from(alive), min_size=1, max_size=5))
            tokens = data.draw(
                st.lists(st.integers(3, 96), min_size=len(parents), max_size=len(parents))
            )
            nodes = tree.add(torch.tensor(parents), torch.tensor(tokens))
            order = torch.argsort(tree.prompt(nodes), stable=True)
            exact(nodes[order], reader.read(tree, nodes[order]))
            alive += nodes.tolist()
            if data.draw(st.booleans()):
                kept = data.draw(st.lists(st.sampled_from(alive), min_size=1, max_size=4))
                tree.retain(torch.tensor(kept))
                reader.retain(tree)
                ways = tree.paths(torch.tensor(kept)).flatten()
                active = tree.active.nonzero().flatten().tolist()
                alive = sorted({*ways[ways >= 0].tolist(), *active})


def test_what_a_closed_reader_held_is_free() -> None:
    reader = step_model(tiny_model("llama"))
    assert isinstance(reader, CachedModel)
    reader.open(TokenTree(PROMPTS))
    assert reader._layers
    reader.close()
    assert not reader._layers
