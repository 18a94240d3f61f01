"""SFT: a mean over tokens, by hand and against cross entropy."""

import torch
from torch.nn.functional import cross_entropy

from tokenq.objectives import SFT, ResponseLogps


def test_worked_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -50.0], [-3.0, -50.0, -50.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, metrics = SFT()(ResponseLogps(logps, mask))
    assert loss == 2.0
    assert metrics["nll"] == 2.0
    assert SFT().weight(ResponseLogps(logps, mask)) == 3


def test_equals_cross_entropy_with_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (4, 6))
    mask = torch.rand(4, 6) < 0.6
    logps = torch.log_softmax(logits, -1).gather(-1, targets[..., None]).squeeze(-1)
    loss, _ = SFT()(ResponseLogps(logps, mask))
    want = cross_entropy(logits.flatten(0, 1), targets.masked_fill(~mask, -100).flatten())
    torch.testing.assert_close(loss, want)
    grads = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, want)]
    torch.testing.assert_close(*grads)
