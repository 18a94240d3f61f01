"""Objectives of whole distributions and raw logits, from a model's forward to its gradients."""

import copy

import pytest
import torch
from families import tiny_model
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenq.models.forward import enable_packed, pad_rows, reference_predictions
from tokenq.models.head import Extras
from tokenq.models.packing import pack_trees
from tokenq.objectives import QRM, TDPO, PairLogps, StepFeatures

PROMPT, CHOSEN, REJECTED = [5, 6, 7], [20, 21, 22, 2], [30, 2]


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    reference = tiny_model("llama", torch.float32)
    policy = copy.deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy, reference.requires_grad_(False)


def packed_pair(policy: torch.nn.Module, reference: torch.nn.Module) -> PairLogps:
    enable_packed(policy)
    (pack,) = pack_trees([PROMPT, PROMPT], [CHOSEN, REJECTED], 100)
    predictions = reference_predictions(reference, pack)
    output = policy(packed=pack, extras=Extras(reference=predictions))
    columns = [output.logps, output.ref_logps, output.kl, output.taken]
    sides = []
    for row in (0, 1):
        place = pack.rows.index(row)
        own = [column.split(list(pack.lengths))[place] for column in columns]
        padded = [pad_rows(values, [len(values)]) for values in own]
        sides.append((*(values for values, _ in padded), padded[0][1]))
    (chosen, ref_chosen, kl_chosen, taken_chosen, chosen_mask) = sides[0]
    (rejected, ref_rejected, kl_rejected, taken_rejected, rejected_mask) = sides[1]
    return PairLogps(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        chosen_mask,
        rejected_mask,
        StepFeatures(kl=kl_chosen, logits=taken_chosen),
        StepFeatures(kl=kl_rejected, logits=taken_rejected),
    )


def dense(model: torch.nn.Module, response: list[int]) -> Tensor:
    """[T, V] logits that predict each token of the response, by one plain forward."""
    logits = model(input_ids=torch.tensor([PROMPT + response])).logits[0]
    return logits[len(PROMPT) - 1 : -1]


def plain_tdpo(policy: torch.nn.Module, reference: torch.nn.Module) -> Tensor:
    scores = []
    for response in (CHOSEN, REJECTED):
        logps, ref_logps = (dense(m, response).log_softmax(-1) for m in (policy, reference))
        taken = (logps - ref_logps)[range(len(response)), response].sum()
        divergence = (ref_logps.exp() * (ref_logps - logps)).sum()
        scores.append((taken, divergence))
    (chosen, kl_chosen), (rejected, kl_rejected) = scores
    return -logsigmoid(0.1 * (chosen - rejected - 0.5 * (kl_rejected - kl_chosen.detach())))


def plain_q_rm(policy: torch.nn.Module, _reference: torch.nn.Module) -> Tensor:
    means = [dense(policy, r)[range(len(r)), r].mean() for r in (CHOSEN, REJECTED)]
    return -logsigmoid(0.2 * (means[0] - means[1]) - 2.0)


@pytest.mark.parametrize(("objective", "plain"), [(TDPO(), plain_tdpo), (QRM(), plain_q_rm)])
def test_loss_and_gradients_equal_plain_forwards(objective, plain) -> None:  # type: ignore[no-untyped-def]
    policy, reference = models()
    want = plain(policy, reference)
    expected = torch.autograd.grad(want, list(policy.parameters()))
    loss, _ = objective(packed_pair(policy, reference))
    gradients = torch.autograd.grad(loss, list(policy.parameters()))
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
