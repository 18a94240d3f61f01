"""A reference beside the packed forward: KL over the vocabulary against plain forwards."""

import copy
import warnings

import pytest
import torch
from families import DoubleThroughout, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from tokenq.models.forward import enable_packed, reference_predictions
from tokenq.models.head import CHUNK, Extras
from tokenq.models.packing import Pack, pack_trees
from tokenq.models.reference import AdapterOff, scoring

# The last two rows are one answer to one prompt: computed once, told twice.
PROMPTS = [[5, 6, 7, 8], [5, 6, 7, 8], [12, 13], [14] * 9, [12, 13]]
RESPONSES = [[20, 21, 22, 23, 2], [30, 31, 2], [40, 2], list(range(50, 64)), [40, 2]]


def moved(model: nn.Module, by: float = 0.05) -> nn.Module:
    """A copy of `model` with other weights."""
    torch.manual_seed(1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def full_logps(model: nn.Module, pack: Pack) -> Tensor:
    """[N, V] log-probabilities of every row in pack order, one plain forward a row."""
    parts = []
    for row in pack.rows:
        prompt, response = PROMPTS[row], RESPONSES[row]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
        parts.append(torch.log_softmax(logits, -1)[len(prompt) - 1 : -1])
    return torch.cat(parts)


def divergence(policy: Tensor, reference: Tensor) -> Tensor:
    return (reference.exp() * (reference - policy)).sum(-1)


def one_pack() -> Pack:
    (pack,) = pack_trees(PROMPTS, RESPONSES, 200)
    return pack


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_kl_and_its_gradients_equal_plain_forwards(family: str) -> None:
    reference = tiny_model(family)
    policy = moved(reference)
    plain, pack = copy.deepcopy(policy), one_pack()
    weights = torch.linspace(0.3, 1.7, sum(pack.lengths), dtype=torch.float64)
    with DoubleThroughout():
        with torch.no_grad():
            expected = full_logps(copy.deepcopy(reference), pack)
        logps = full_logps(plain, pack)
        enable_packed(policy)
        extras = Extras(collision=True, reference=reference_predictions(reference, pack))
        got = policy(packed=pack, extras=extras)
    want = divergence(logps, expected)
    targets = pack.for_every_row(pack.targets)[:, None]
    torch.testing.assert_close(got.kl, want, rtol=0, atol=1e-9)
    torch.testing.assert_close(got.collision, (2 * logps).logsumexp(-1), rtol=0, atol=1e-9)
    torch.testing.assert_close(got.logps, logps.gather(1, targets)[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(got.ref_logps, expected.gather(1, targets)[:, 0], rtol=0, atol=1e-9)
    (got.kl * weights).sum().backward()
    (want * weights).sum().backward()
    for (name, a), b in zip(policy.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9, msg=name)
    assert all(p.grad is None for p in reference.parameters())


def adapted(modules: list[str]) -> PeftModel:
    config = LoraConfig(r=4, target_modules=modules, init_lora_weights=False, lora_dropout=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(tiny_model("llama"), config).double().train()


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "lm_head"]])
def test_the_base_under_an_adapter_is_its_reference(modules: list[str]) -> None:
    peft, pack = adapted(modules), one_pack()
    with scoring(peft), peft.disable_adapter():
        expected = full_logps(peft, pack)
    with scoring(peft):
        logps = full_logps(peft, pack)
    off = AdapterOff(peft)
    enable_packed(peft)
    predictions = reference_predictions(off, pack)
    peft.eval()
    got = peft(packed=pack, extras=Extras(reference=predictions))
    torch.testing.assert_close(got.kl, divergence(logps, expected), rtol=0, atol=1e-5)
    targets = pack.for_every_row(pack.targets)[:, None]
    torch.testing.assert_close(got.logps, logps.gather(1, targets)[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.ref_logps, expected.gather(1, targets)[:, 0], rtol=0, atol=1e-5)
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert trained
    gradients = torch.autograd.grad(got.kl.sum(), trained)
    assert any(bool(g.abs().sum() > 0) for g in gradients)


def test_a_policy_that_starts_at_its_reference_has_no_divergence() -> None:
    model, pack = tiny_model("llama", torch.float32), one_pack()
    enable_packed(model)
    got = model(packed=pack, extras=Extras(reference=reference_predictions(model, pack)))
    torch.testing.assert_close(got.kl, torch.zeros_like(got.kl), rtol=0, atol=1e-6)
    assert torch.equal(got.ref_logps, got.logps)
    (got.kl.sum()).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mixed_precision(family: str) -> None:
    """More positions than a chunk, so that the backward pass computes both heads again."""
    reference = tiny_model(family, torch.float32)
    policy = moved(reference)
    enable_packed(policy)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 97, (16, 45), generator=generator).tolist()
    (pack,) = pack_trees([row[:5] for row in rows], [row[5:] for row in rows], 10_000)
    assert len(pack.targets) > CHUNK
    results = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            extras = Extras(collision=True, reference=reference_predictions(reference, pack))
            output = policy(packed=pack, extras=extras)
        gradients = torch.autograd.grad(output.kl.sum(), policy.get_output_embeddings().weight)
        results.append((output.kl, output.collision, output.entropy, *gradients))
    assert all(values.dtype == torch.float32 for values in results[1])
    for single, mixed in zip(*results, strict=True):
        assert (single - mixed).norm() < 0.05 * single.norm()
