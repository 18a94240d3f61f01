"""TRL's losses beside DPO's, from its own trainers, without a model, a tokenizer or a data set.

A trainer is made without its constructor and given the attributes that its loss reads; the model is
a stand-in that answers with the log-probabilities of a batch of ours.
"""

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenq.objectives import LabelledLogps, PairLogps, RankedLogps, ResponseLogps

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl")

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.tpo import TPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def random_response(
    seed: int, rows: int, dtype: torch.dtype, length: int | None = None
) -> ResponseLogps:
    """Steps of moderate probability; at least one real step a row, `length` of them if given."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 7)

    def logps() -> Tensor:
        values = -0.05 - 3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype)

    order = torch.rand(shape, generator=generator).argsort(-1)
    lengths = torch.randint(1, 8, (rows, 1), generator=generator)
    mask = order < (lengths if length is None else length)
    return ResponseLogps(logps().requires_grad_(), mask, logps())


def random_pairs(
    seed: int, dtype: torch.dtype, rows: int = 5, length: int | None = None
) -> PairLogps:
    """Pairs of such responses, all of `length` steps if it is given."""
    chosen = random_response(2 * seed, rows, dtype, length)
    rejected = random_response(2 * seed + 1, rows, dtype, length)
    assert chosen.ref_logps is not None
    assert rejected.ref_logps is not None
    return PairLogps(
        chosen.logps, rejected.logps, chosen.ref_logps, rejected.ref_logps,
        chosen.mask, rejected.mask,
    )  # fmt: skip


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients agree to 1e-10 in fp64, 1e-6 in fp32, of the largest value or of 1."""

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    pairs = zip([ours, *gradients(ours)], [theirs, *gradients(theirs)], strict=True)
    for mine, other in pairs:
        scale = max(1.0, other.detach().abs().max().item())
        error = (mine - other).abs().max().item() / scale
        assert error <= TOLERANCE[mine.dtype], error


def cpo(pairs: PairLogps, **settings: Any) -> Tensor:
    """The loss of `CPOTrainer.get_batch_loss_metrics`."""
    defaults = {"label_smoothing": 0.0, "alpha": 0.0, "simpo_gamma": 0.5, "pad_token_id": 0}
    return _preference_loss(CPOTrainer, pairs, **(defaults | settings))


def orpo(pairs: PairLogps, beta: float) -> Tensor:
    """The loss of `ORPOTrainer.get_batch_loss_metrics`; prompts of one token, which counts not."""
    return _preference_loss(ORPOTrainer, pairs, beta=beta, padding_value=0)


def kto(batch: LabelledLogps, **settings: Any) -> Tensor:
    """The loss of `KTOTrainer._compute_loss`, reference log-probs handed over."""
    trainer = _trainer(KTOTrainer, **settings)
    trainer.calculate_KL = settings["loss_type"] == "kto"
    trainer.precompute_ref_logps = True
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    responses, mismatched = batch.responses, batch.mismatched
    assert mismatched is not None
    assert mismatched.ref_logps is not None
    inputs = {
        "input_ids": _ids(responses.mask),
        "attention_mask": _with_prompt(torch.ones_like(responses.mask)),
        "completion_mask": _with_prompt(responses.mask, prompt=0),
        "KL_input_ids": _ids(mismatched.mask) + 1,
        "KL_attention_mask": _with_prompt(torch.ones_like(mismatched.mask)),
        "KL_completion_mask": _with_prompt(mismatched.mask, prompt=0),
        "label": batch.labels,
        "ref_logps": _total(responses.ref_logps, responses),
        "ref_KL_logps": _total(mismatched.ref_logps, mismatched),
    }

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        side = responses if input_ids[0, 0] == 0 else mismatched
        log_probs = side.masked(side.logps)
        return SimpleNamespace(log_probs=log_probs, entropy=log_probs, mean_logits=log_probs)

    loss = trainer._compute_loss(model, inputs, False)
    assert isinstance(loss, Tensor)
    return loss


def tpo(triples: RankedLogps, **settings: Any) -> Tensor:
    """The loss of `TPOTrainer._compute_loss` on rows of (gold, chosen, rejected)."""
    trainer = _trainer(TPOTrainer, **settings)
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    first = torch.arange(len(triples)) * 3
    order = torch.cat([first + 1, first + 2, *([first] if settings["tpo_alpha"] else [])])
    mask, logps = triples.answers.mask[order], triples.answers.logps[order]
    inputs = {
        "input_ids": _ids(mask),
        "attention_mask": _with_prompt(torch.ones_like(mask)),
        "completion_mask": _with_prompt(mask, prompt=0),
    }
    logits = _logits(logps)
    return trainer._compute_loss(lambda **_: SimpleNamespace(logits=logits), inputs, False)


def _preference_loss(class_: type, pairs: PairLogps, **settings: Any) -> Tensor:
    trainer = _trainer(class_, is_encoder_decoder=False, **settings)
    sides = {"chosen": pairs.chosen_mask, "rejected": pairs.rejected_mask}
    batch = {}
    for name, mask in sides.items():
        ids = _ids(mask)
        batch[f"{name}_input_ids"] = ids
        batch[f"{name}_attention_mask"] = _with_prompt(mask)
        batch[f"{name}_labels"] = ids.masked_fill(_with_prompt(mask, prompt=0) == 0, -100)
    logits = _logits(torch.cat([pairs.chosen, pairs.rejected]))
    loss, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    assert isinstance(loss, Tensor)
    return loss


def _trainer(class_: type, **settings: Any) -> Any:
    trainer = object.__new__(class_)
    same = {name: lambda value: value for name in ("gather", "gather_for_metrics")}
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), **same)
    trainer.model = SimpleNamespace(training=True)
    trainer.aux_loss_enabled = False
    trainer._metrics = {"train": defaultdict(list)}
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def _logits(logps: Tensor) -> Tensor:
    """Logits over two tokens, the first of which has these log-probs; the last predicts nothing."""
    taken = torch.stack([logps, torch.log1p(-logps.exp())], dim=-1)
    return torch.cat([taken, torch.zeros_like(taken[:, :1])], dim=1)


def _ids(mask: Tensor) -> Tensor:
    return torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.int64)


def _with_prompt(mask: Tensor, prompt: int = 1) -> Tensor:
    """The mask [B, T] behind a prompt of one token: [B, T + 1] int64."""
    return torch.nn.functional.pad(mask.long(), (1, 0), value=prompt)


def _total(values: Tensor | None, side: ResponseLogps) -> Tensor:
    assert values is not None
    return side.masked(values).sum(-1)
