"""The chunked head against the plain log-softmax, values and gradients."""

import pytest
import torch
from torch import Tensor, nn

from tokenq.models.head import Head, token_logps_of


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


def test_no_tensor_of_all_positions_and_the_vocabulary() -> None:
    vocabulary, positions, chunk = 500, 64, 8
    head = Head(nn.Linear(4, vocabulary, bias=False))
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
        token_logps_of(head, hidden, targets, chunk).logps.sum().backward()
    assert greatest == chunk * vocabulary
