"""The packed forward against the plain computation: values and gradients, family by family."""

import copy
import shutil
import warnings

import pytest
import torch
from families import FAMILIES, VOCABULARY, DoubleThroughout, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tokenq.errors import UserError
from tokenq.models.attention import flex_tree_attention, masked_tree_attention, tree_attention
from tokenq.models.forward import (
    causal_lm,
    compile_layers,
    enable_packed,
    pad_rows,
    response_hidden,
    row_hidden,
    tree_hidden,
)
from tokenq.models.head import vocabulary_logps
from tokenq.models.logps import token_logps
from tokenq.models.packing import pack_trees

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 11], [12, 13], [12, 13], [14] * 9, [12, 13]]
RESPONSES = [[20, 21, 22, 23, 2], [30, 31, 2], [40, 2], [41], list(range(50, 64)), [40, 2]]


def plain_logps(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """The textbook way: one forward per row, full logits, log-softmax, gather."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    logps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logps.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


def weighted(rows: list[Tensor]) -> Tensor:
    """A loss with another weight for every token, so that no two gradients can cancel."""
    return sum((row * torch.linspace(0.3, 1.7, len(row), dtype=row.dtype)).sum() for row in rows)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_the_plain_forward(family: str, implementation: str) -> None:
    if implementation == "sdpa" and family.startswith("gemma2"):
        pytest.skip("Gemma 2 caps its scores, which sdpa does not offer")
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    plain = copy.deepcopy(model)
    with DoubleThroughout():
        expected = [plain_logps(plain, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        rows = token_logps(model, PROMPTS, RESPONSES, token_budget=64)
    weighted(expected).backward()
    assert "_tokenq_backbone" not in model.__dict__, "fell back to the plain forward"
    weighted(rows).backward()
    for row, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, want, rtol=0, atol=1e-9)
    for (name, got), want in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_single_precision(family: str) -> None:
    model = tiny_model(family, torch.float32)
    expected = [plain_logps(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    grads = torch.autograd.grad(weighted(expected), list(model.parameters()), allow_unused=True)
    rows = token_logps(model, PROMPTS, RESPONSES)
    assert all(row.dtype == torch.float32 for row in rows)
    got = torch.autograd.grad(weighted(rows), list(model.parameters()), allow_unused=True)
    for row, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, want, rtol=0, atol=1e-4)
    for a, b in zip(got, grads, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
@pytest.mark.parametrize("targets", ["attention", "head"])
def test_under_peft_and_gradient_checkpointing(family: str, targets: str) -> None:
    model = tiny_model(family)
    modules = "all-linear" if targets == "attention" else ["lm_head", "embed_out", "dense"]
    if targets == "head" and family == "llama":
        modules = ["lm_head", "q_proj"]
    config = LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, config).double().eval()
    trained = [p for p in peft.parameters() if p.requires_grad]
    expected = [plain_logps(peft, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    want = torch.autograd.grad(weighted(expected), trained)
    peft.enable_input_require_grads()
    peft.gradient_checkpointing_enable({"use_reentrant": False})
    peft.train()
    rows = token_logps(peft, PROMPTS, RESPONSES, token_budget=40)
    got = torch.autograd.grad(weighted(rows), trained)
    for row, value in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, value, rtol=0, atol=1e-5)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt-neox"])
def test_mixed_precision(family: str) -> None:
    model = tiny_model(family, torch.float32)
    expected = token_logps(model, PROMPTS, RESPONSES)
    want = torch.autograd.grad(weighted(expected), list(model.parameters()), allow_unused=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = token_logps(model, PROMPTS, RESPONSES)
    got = torch.autograd.grad(weighted(rows), list(model.parameters()), allow_unused=True)
    for row, value in zip(rows, expected, strict=True):
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, value, rtol=0.1, atol=0.3)
    for a, b in zip(got, want, strict=True):
        if b is not None:
            assert (a - b).norm() <= 0.15 * b.norm()


def test_logits_changed_in_an_unknown_way_are_refused() -> None:
    model = tiny_model("llama")
    original = type(model).forward

    class Shouting(type(model)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            output = original(self, *args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    model.__class__ = Shouting
    for _ in range(2):
        with pytest.raises(UserError, match="Shouting: changes its logits"):
            token_logps(model, PROMPTS, RESPONSES)


def test_attention_dropout_is_refused_in_training() -> None:
    model = tiny_model("llama").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(UserError, match="attention dropout cannot be packed"):
        token_logps(model, PROMPTS, RESPONSES)


def test_ordinary_calls_and_copies_are_unchanged() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    before = model(input_ids=ids, attention_mask=mask).logits
    generated = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=5, do_sample=False)
    enable_packed(model)
    enable_packed(model)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    again = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, again)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(input_ids=ids, attention_mask=mask).logits, before)
    rows = token_logps(twin, PROMPTS, RESPONSES)
    torch.testing.assert_close(rows[0], plain_logps(twin, PROMPTS[0], RESPONSES[0]))


def test_a_saved_model_says_nothing_of_us(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model("llama")
    enable_packed(model)
    model.save_pretrained(tmp_path)
    assert "tokenq" not in (tmp_path / "config.json").read_text()


class ForgetfulAttention(nn.Module):
    """Stands for an architecture whose attention ignores what the interface is told."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, tree=None, **kwargs):  # type: ignore[no-untyped-def]
        kwargs["attention_mask"] = None
        return self.inner(*args, **kwargs)


def test_a_model_that_cannot_share_runs_row_by_row(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    for layer in model.model.layers:
        layer.self_attn = ForgetfulAttention(layer.self_attn)
    expected = [plain_logps(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    rows = token_logps(model, PROMPTS, RESPONSES)
    assert "cannot be shared" in caplog.text
    for row, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, want, rtol=0, atol=1e-9)


def test_a_recurrent_model_runs_row_by_row(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    ).eval()
    expected = [plain_logps(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    rows = token_logps(model, PROMPTS, RESPONSES)
    assert "cannot be shared" in caplog.text
    for row, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, want, rtol=0, atol=1e-4)


token_ids = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(token_ids, min_size=1, max_size=3),
    data=st.data(),
    token_budget=st.integers(1, 80),
)
def test_grouping_does_not_matter(prompts: list[list[int]], data, token_budget: int) -> None:  # type: ignore[no-untyped-def]
    model = _shared_model()
    rows = data.draw(
        st.lists(st.tuples(st.sampled_from(prompts), token_ids), min_size=1, max_size=7)
    )
    order = data.draw(st.permutations(range(len(rows))))
    alone = [token_logps(model, [p], [r])[0] for p, r in rows]
    together = token_logps(
        model, [rows[i][0] for i in order], [rows[i][1] for i in order], token_budget=token_budget
    )
    for i, row in zip(order, together, strict=True):
        torch.testing.assert_close(row, alone[i], rtol=0, atol=1e-6)


def _shared_model(_cache: list[nn.Module] = []) -> nn.Module:  # noqa: B006
    if not _cache:
        _cache.append(tiny_model("llama"))
    return _cache[0].requires_grad_(False)


def test_absolute_positions_do_not_depend_on_the_batch() -> None:
    model = tiny_model("gpt2").requires_grad_(False)
    alone = token_logps(model, PROMPTS[:1], RESPONSES[:1])[0]
    together = token_logps(model, PROMPTS, RESPONSES)[0]
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)


def test_three_attentions_agree() -> None:
    torch.manual_seed(0)
    pack = pack_trees(PROMPTS, RESPONSES, 200)[0]
    layout, length = pack.layout, len(pack.input_ids)
    query = torch.randn(1, 4, length, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, length, 8, dtype=torch.float64).unbind(0)
    blocks = tree_attention(query, key, value, layout.trees, layout.responses, 0.3)[0]
    product = masked_tree_attention(query, key, value, layout, 0.3, None, None)
    flex = flex_tree_attention(query, key, value, layout, 0.3, None, None)
    torch.testing.assert_close(blocks, product)
    torch.testing.assert_close(flex, product)
    for softcap, window in ((2.0, None), (None, 4), (1.5, 3)):
        product = masked_tree_attention(query, key, value, layout, 0.3, softcap, window)
        flex = flex_tree_attention(query, key, value, layout, 0.3, softcap, window)
        torch.testing.assert_close(flex, product)


def test_block_attention_passes_gradcheck_and_opcheck() -> None:
    torch.manual_seed(0)
    layout = pack_trees(PROMPTS[:3], RESPONSES[:3], 200)[0].layout
    length = len(layout.segment)
    query = torch.randn(1, 4, length, 4, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 2, length, 4, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 2, length, 4, dtype=torch.float64, requires_grad=True)
    args = (query, key, value, layout.trees, layout.responses, 0.5)
    assert torch.autograd.gradcheck(lambda q, k, v: tree_attention(q, k, v, *args[3:])[0], args[:3])
    torch.library.opcheck(torch.ops.tokenq.tree_attention.default, args)


def test_response_hidden_gives_the_same_distribution() -> None:
    model = tiny_model("gemma2").requires_grad_(False)
    states = response_hidden(model, PROMPTS, RESPONSES)
    rows = token_logps(model, PROMPTS, RESPONSES)
    for state, row, response in zip(states, rows, RESPONSES, strict=True):
        full = vocabulary_logps(model, state)
        assert full.shape == (len(response), VOCABULARY)
        torch.testing.assert_close(full.exp().sum(-1), torch.ones(len(response)).double())
        torch.testing.assert_close(full.gather(-1, torch.tensor(response)[:, None])[:, 0], row)


def test_pad_rows() -> None:
    padded, mask = pad_rows(torch.arange(1.0, 7.0), [1, 3, 2])
    assert padded.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    assert mask.tolist() == [[True, False, False], [True] * 3, [True, True, False]]


def test_row_hidden_matches_tree_hidden() -> None:
    model = tiny_model("qwen3").requires_grad_(False)
    enable_packed(model)
    pack = pack_trees(PROMPTS, RESPONSES, 200)[0]
    states = row_hidden(causal_lm(model), pack)
    assert states.shape == (sum(pack.distinct), 32)
    torch.testing.assert_close(tree_hidden(causal_lm(model), pack), states, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_layers_give_the_same_values_and_gradients() -> None:
    model = tiny_model("llama", torch.float32)
    expected = token_logps(model, PROMPTS, RESPONSES)
    want = torch.autograd.grad(weighted(expected), list(model.parameters()))
    compile_layers(model)
    for budget in (15, 64):
        rows = token_logps(model, PROMPTS, RESPONSES, token_budget=budget)
        got = torch.autograd.grad(weighted(rows), list(model.parameters()))
        for row, value in zip(rows, expected, strict=True):
            torch.testing.assert_close(row, value, rtol=0, atol=1e-4)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
