"""The chunked head against the plain log-softmax, values and gradients."""

import pytest
import torch
from torch import Tensor, nn

from tokenq.errors import UserError
from tokenq.models.head import Extras, Head, Predictions, TokenLogps, token_logps_of


def plain(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head.module(hidden) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.parametrize("chunk", [3, 7, 10, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 2.0), (3.0, 1.5)])
def test_values_and_gradients(chunk: int, bias: bool, scale: float, softcap: float | None) -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(5, 23, bias=bias, dtype=torch.float64), scale, softcap)
    hidden = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(23, (10,))
    weights = torch.linspace(0.2, 2.0, 10, dtype=torch.float64)
    inputs = [hidden, *head.module.parameters()]
    want = plain(head, hidden, targets)
    got = token_logps_of(head, hidden, targets, chunk).logps
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    for a, b in zip(grads, torch.autograd.grad((want * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_the_sweep_tells_besides() -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(5, 23, bias=False))
    hidden, targets = torch.randn(40, 5), torch.randint(23, (40,))
    logits = head.module(hidden)
    targets[::2] = logits.argmax(-1)[::2]
    got = token_logps_of(head, hidden, targets, chunk=16)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(got.entropy, entropy)
    torch.testing.assert_close(got.logits, logits.mean(-1))
    assert got.correct.tolist() == (logits.argmax(-1) == targets).tolist()
    assert not got.entropy.requires_grad


def test_a_wrapped_head_is_recomputed_and_exact() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 23, dtype=torch.float64)
    hidden = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(23, (10,))
    want = token_logps_of(Head(linear), hidden, targets)
    got = token_logps_of(Head(nn.Sequential(linear)), hidden, targets, chunk=4)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    grads = [torch.autograd.grad(x.logps.sum(), [hidden, linear.weight]) for x in (got, want)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_is_normalised_in_single() -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(8, 500, dtype=torch.bfloat16))
    hidden, targets = torch.randn(20, 8, dtype=torch.bfloat16), torch.randint(500, (20,))
    got = token_logps_of(head, hidden, targets).logps
    assert got.dtype == torch.float32
    want = torch.log_softmax(head.module(hidden).float(), -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("with_reference", [False, True])
def test_no_tensor_of_all_positions_and_the_vocabulary(with_reference: bool) -> None:
    vocabulary, positions, chunk = 500, 64, 8
    head = Head(nn.Linear(4, vocabulary, bias=False))
    reference = Predictions(Head(nn.Linear(6, vocabulary)), torch.randn(positions, 6))
    extras = Extras(collision=True, reference=reference) if with_reference else Extras()
    hidden = torch.randn(positions, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (positions,))
    greatest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal greatest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    greatest = max(greatest, tensor.numel())
            return out

    with Watch():
        got = token_logps_of(head, hidden, targets, chunk, extras)
        (got.logps if got.kl is None else got.kl).sum().backward()
    assert greatest == chunk * vocabulary


def dense(
    head: Head, hidden: Tensor, targets: Tensor, theirs: Head, states: Tensor
) -> dict[str, Tensor]:
    def finished(h: Head, x: Tensor) -> Tensor:
        logits = h.module(x) * h.scale
        return logits if h.softcap is None else h.softcap * torch.tanh(logits / h.softcap)

    logits, expected = finished(head, hidden), finished(theirs, states).detach()
    policy = torch.distributions.Categorical(logits=logits)
    reference = torch.distributions.Categorical(logits=expected)
    return {
        "logps": policy.log_prob(targets),
        "taken": logits[range(len(targets)), targets],
        "kl": torch.distributions.kl_divergence(reference, policy),
        "collision": policy.probs.square().sum(-1).log().detach(),
        "ref_logps": reference.log_prob(targets),
    }


@pytest.mark.parametrize("chunk", [4, 17, 100])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (3.0, 1.5)])
def test_extras_against_dense_distributions(
    chunk: int, wrapped: bool, scale: float, softcap: float | None
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 23, dtype=torch.float64)
    head = Head(nn.Sequential(linear) if wrapped else linear, scale, softcap)
    theirs = Head(nn.Linear(7, 23, dtype=torch.float64), 0.7)
    hidden = torch.randn(37, 5, dtype=torch.float64, requires_grad=True)
    states = torch.randn(37, 7, dtype=torch.float64)
    targets = torch.randint(23, (37,))
    extras = Extras(collision=True, reference=Predictions(theirs, states))
    got = token_logps_of(head, hidden, targets, chunk, extras)
    want = dense(head, hidden, targets, theirs, states)
    for name, values in want.items():
        torch.testing.assert_close(getattr(got, name), values, rtol=0, atol=1e-12)
        assert getattr(got, name).requires_grad == (name in ("logps", "taken", "kl"))

    inputs = [hidden, *linear.parameters()]
    random = torch.randn(3, 37, dtype=torch.float64)

    def mixed(values: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum((w * v).sum() for w, v in zip(random, values, strict=True))
        return torch.autograd.grad(total, inputs)

    grads = mixed([got.logps, got.taken, got.kl])
    for a, b in zip(grads, mixed([want["logps"], want["taken"], want["kl"]]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert next(theirs.module.parameters()).grad is None


@pytest.mark.parametrize("name", ["logps", "taken", "kl"])
def test_each_value_alone_has_its_own_gradient(name: str) -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(5, 23, dtype=torch.float64))
    theirs = Head(nn.Linear(5, 23, dtype=torch.float64))
    states = torch.randn(6, 5, dtype=torch.float64)
    targets = torch.randint(23, (6,))
    extras = Extras(reference=Predictions(theirs, states))

    def value(hidden: Tensor) -> Tensor:
        out: Tensor = getattr(token_logps_of(head, hidden, targets, 4, extras), name)
        return out

    hidden = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (hidden,))


def test_what_was_not_asked_for_is_absent_and_changes_nothing() -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(5, 23))
    hidden, targets = torch.randn(40, 5), torch.randint(23, (40,))
    plain_pass = token_logps_of(head, hidden, targets)
    assert (plain_pass.collision, plain_pass.kl, plain_pass.ref_logps) == (None, None, None)
    extras = Extras(collision=True, reference=Predictions(head, hidden))
    full = token_logps_of(head, hidden, targets, extras=extras)
    for name in ("logps", "taken", "entropy", "correct", "logits"):
        assert torch.equal(getattr(full, name), getattr(plain_pass, name))
    torch.testing.assert_close(full.kl, torch.zeros(40), rtol=0, atol=1e-6)
    torch.testing.assert_close(full.ref_logps, full.logps)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_positions(wrapped: bool) -> None:
    linear = nn.Linear(5, 23)
    head = Head(nn.Sequential(linear) if wrapped else linear)
    hidden, targets = torch.randn(0, 5, requires_grad=True), torch.randint(23, (0,))
    extras = Extras(collision=True, reference=Predictions(Head(linear), torch.randn(0, 5)))
    got = token_logps_of(head, hidden, targets, extras=extras)
    assert isinstance(got, TokenLogps)
    assert all(len(each) == 0 for each in got)
    (got.logps.sum() + got.kl.sum()).backward()
    assert torch.equal(linear.weight.grad, torch.zeros_like(linear.weight))


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    hidden, targets = torch.randn(3, 5), torch.randint(20, (3,))
    extras = Extras(reference=Predictions(Head(nn.Linear(5, 20)), hidden))
    with pytest.raises(UserError, match="scores 20 tokens, the policy's 23"):
        token_logps_of(Head(nn.Linear(5, 23)), hidden, targets, extras=extras)


def test_half_precision_divergence_is_taken_in_single() -> None:
    torch.manual_seed(0)
    head = Head(nn.Linear(8, 500, dtype=torch.bfloat16))
    theirs = Head(nn.Linear(8, 500, dtype=torch.bfloat16))
    hidden = torch.randn(20, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(500, (20,))
    extras = Extras(reference=Predictions(theirs, hidden.detach()))
    got = token_logps_of(head, hidden, targets, extras=extras)
    policy, reference = (torch.log_softmax(h.module(hidden).float(), -1) for h in (head, theirs))
    want = (reference.exp() * (reference - policy)).sum(-1)
    assert got.kl.dtype == torch.float32
    torch.testing.assert_close(got.kl, want)
    (grad,) = torch.autograd.grad(got.kl.sum(), hidden)
    (wanted,) = torch.autograd.grad((reference.exp().detach() * -policy).sum(), hidden)
    torch.testing.assert_close(grad, wanted, rtol=5e-2, atol=2e-3)
