"""Loss, gradients and metrics of every pair objective equal TRL's own `_compute_loss`.

TRL's trainer is not set up: its method runs on a stand-in model that returns given token
log-probabilities. Differences that are meant, each with a test below or no effect on a comparison:

- label smoothing: TRL's "sigmoid" and "sigmoid_norm" ignore `label_smoothing`; DPO here is then
  conservative DPO. Compared at 0.
- exponentials above 25 nats (forward KL and alpha divergence): ours go on along the tangent, so
  that loss and gradient stay finite. TRL's forward KL overflows, its alpha divergence is cut off
  flat at 80, where the gradient is 0.
- discopop at margins below -88 in fp32 is NaN in TRL (inf * 0); ours is the limit.
- the alpha divergence has no float64 in TRL (KeyError), so it is compared in fp32, where its
  exponential lets rounding grow: on log-ratios of up to 3 nats, and away from order 1, where TRL's
  exp(x) - 1 loses digits that expm1 keeps. `test_f_divergence` has fp64.
- hinge with `use_weighting` cannot be trained with TRL: the weights are multiplied in place into
  what relu needs for its gradient. Compared with a copy after TRL's relu.
- sft without a single chosen token is NaN in TRL and 0 here; with `use_weighting` TRL multiplies
  it by the pairs' weights, here SFT knows nothing of pairs.
- exo_pair: TRL takes the label's logarithms in the default dtype, so that fp64 is compared under a
  default of fp64.
- bf16 log-probabilities are summed in bf16 by TRL and in fp32 here.
- defaults: TRL has one default for all (beta 0.1, label smoothing 0), here each objective has its
  paper's. Hyper-parameters are therefore always given below.
- a mixture with an f-divergence and a loss that has none is refused by TRL; here the loss that has
  none does not see it.
"""

import dataclasses
import math
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from objective_batches import Draw, random_pair
from torch import Tensor

from tokenq.objectives import OBJECTIVES, PairLogps, ResponseLogps

trl = pytest.importorskip("trl")
DPOConfig, DPOTrainer = trl.DPOConfig, trl.DPOTrainer

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
"""All of TRL's but "sft", which has a test of its own."""

OF_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
"""Those to which TRL applies an f-divergence."""

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
PLAIN: dict[str, Any] = {
    "beta": 0.1,
    "label_smoothing": 0.1,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "ld_alpha": None,
    "use_weighting": False,
    "discopop_tau": 0.05,
}


class Scored(torch.nn.Module):
    """A model that returns the same values of each token, whatever it is given."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, collision: Tensor) -> None:
        super().__init__()
        nothing = torch.zeros_like(log_probs.detach())
        self.outputs = SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=collision,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    def forward(self, **_: Any) -> SimpleNamespace:
        return self.outputs


def theirs(
    loss_type: str, batch: PairLogps, **hyper_parameters: Any
) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss and metrics of the pairs."""
    width = max(batch.chosen.shape[1], batch.rejected.shape[1])

    def stacked(chosen: Tensor, rejected: Tensor) -> Tensor:
        """[2B, width] as TRL has them: chosen first, 0 on padding."""
        sides = (chosen, batch.chosen_mask), (rejected, batch.rejected_mask)
        padded = [
            torch.nn.functional.pad(torch.where(mask, values, 0), (0, width - mask.shape[1]))
            for values, mask in sides
        ]
        return torch.cat(padded)

    features = batch.chosen_features, batch.rejected_features
    collision = stacked(*(each.require("collision") for each in features))
    trainer = object.__new__(DPOTrainer)
    trainer.__dict__.update(hyper_parameters)
    trainer.model = Scored(stacked(batch.chosen, batch.rejected), collision)
    trainer.ref_model = Scored(stacked(batch.ref_chosen, batch.ref_rejected), collision)
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.precompute_ref_logps = trainer.aux_loss_enabled = False
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    trainer.args = SimpleNamespace(
        gradient_checkpointing_kwargs=None, discopop_tau=hyper_parameters["discopop_tau"]
    )
    trainer._metrics = {"train": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    mask = stacked(batch.chosen_mask.long(), batch.rejected_mask.long())
    completion_mask = torch.nn.functional.pad(mask, (1, 0))  # one token of prompt
    inputs = {
        "input_ids": completion_mask,
        "attention_mask": completion_mask,
        "completion_mask": completion_mask,
    }
    default = torch.get_default_dtype()
    torch.set_default_dtype(batch.chosen.dtype)
    try:
        with mock.patch("torch.relu", lambda x: x.relu().clone()):
            loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    finally:
        torch.set_default_dtype(default)
    return loss, {name: trainer._metrics["train"][name][0] for name in METRICS}


def ours(loss_type: str, **hyper_parameters: Any) -> Any:
    """The objective with those of the hyper-parameters that it has."""
    class_ = OBJECTIVES[loss_type]
    if loss_type in ("sigmoid", "sigmoid_norm"):
        hyper_parameters["label_smoothing"] = 0.0
    names = [field.name for field in dataclasses.fields(class_)]
    return class_(**{name: hyper_parameters[name] for name in names if name in hyper_parameters})


def assert_equal(loss_type: str, batch: PairLogps, tolerance: float, **settings: Any) -> None:
    """Value, gradients with respect to token log-probs, and metrics, relative above 1."""
    leaves = [batch.chosen, batch.rejected]
    loss, metrics = ours(loss_type, **settings)(batch)
    expected, expected_metrics = theirs(loss_type, batch, **settings)
    expected_gradients = torch.autograd.grad(expected, leaves)
    gradients = torch.autograd.grad(loss, leaves)
    for got, want in zip((loss, *gradients), (expected, *expected_gradients), strict=True):
        largest = max(1.0, float(want.detach().abs().max())) if want.numel() else 1.0
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * largest)
    for name in METRICS:
        assert math.isclose(metrics[name], expected_metrics[name], rel_tol=1e-5, abs_tol=1e-5)


# No shrinking: on a failure it would take minutes and say little about random tensors.
examples = settings(
    deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "rows": st.integers(1, 6),
        "width": st.integers(1, 7),
        "keep": st.sampled_from([0.4, 0.8, 1.0]),
    }
)
hyper_parameters = st.fixed_dictionaries(
    {
        "beta": st.floats(0.01, 2),
        "label_smoothing": st.floats(1e-3, 0.45),
        "f_divergence_type": st.sampled_from(["reverse_kl", "forward_kl", "js_divergence"]),
        "f_alpha_divergence_coef": st.floats(-1, 0.5) | st.floats(1.5, 2),
        "ld_alpha": st.none() | st.floats(0, 1),
        "use_weighting": st.booleans(),
        "discopop_tau": st.floats(0.02, 1),
    }
)


def applicable(loss_type: str, drawn: dict[str, Any]) -> dict[str, Any]:
    """What TRL accepts with this loss."""
    if loss_type not in OF_DIFFERENCES:
        drawn = drawn | {"f_divergence_type": "reverse_kl"}
    return drawn | ({"use_weighting": False} if loss_type.startswith("aot") else {})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@settings(examples, max_examples=20)
@given(shape=shapes, drawn=hyper_parameters)
def test_fp64(loss_type: str, shape: dict[str, Any], drawn: dict[str, Any]) -> None:
    assert_equal(loss_type, random_pair(Draw(**shape)), 1e-10, **applicable(loss_type, drawn))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@settings(examples, max_examples=6)
@given(shape=shapes, drawn=hyper_parameters)
def test_fp32(loss_type: str, shape: dict[str, Any], drawn: dict[str, Any]) -> None:
    batch = near_the_reference(random_pair(Draw(**shape, dtype=torch.float32)))
    assert_equal(loss_type, batch, 1e-6, **applicable(loss_type, wider(drawn)))


@pytest.mark.parametrize("loss_type", OF_DIFFERENCES)
@settings(examples, max_examples=10)
@given(shape=shapes, drawn=hyper_parameters)
def test_alpha_divergence_fp32(
    loss_type: str, shape: dict[str, Any], drawn: dict[str, Any]
) -> None:
    batch = near_the_reference(random_pair(Draw(**shape, dtype=torch.float32)))
    alpha = wider(drawn) | {"f_divergence_type": "alpha_divergence"}
    assert_equal(loss_type, batch, 1e-6, **alpha)


def wider(drawn: dict[str, Any]) -> dict[str, Any]:
    """DiscoPOP's gradient magnifies fp32's rounding of the margin by 1 / tau^2."""
    return drawn | {"discopop_tau": max(0.3, drawn["discopop_tau"])}


def near_the_reference(batch: PairLogps) -> PairLogps:
    """The batch with a tenth of all log-probabilities."""

    def tenth(values: Tensor) -> Tensor:
        return (0.1 * values).detach().requires_grad_()

    return dataclasses.replace(
        batch,
        chosen=tenth(batch.chosen),
        rejected=tenth(batch.rejected),
        ref_chosen=tenth(batch.ref_chosen),
        ref_rejected=tenth(batch.ref_rejected),
    )


@pytest.mark.parametrize("seed", range(5))
def test_sft(seed: int) -> None:
    batch = random_pair(Draw(seed=seed))
    loss, _ = OBJECTIVES["sft"]()(ResponseLogps(batch.chosen, batch.chosen_mask))
    expected, _ = theirs("sft", batch, **PLAIN)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(each, batch.chosen)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


# The intended differences


def one_pair(chosen: float, rejected: float, dtype: torch.dtype = torch.float32) -> PairLogps:
    """A pair of one-token responses with these log-ratios; the reference gives -200 nats."""
    batch = random_pair(Draw(rows=1, width=1, keep=1.0, dtype=dtype, identical=True))
    reference = torch.full_like(batch.chosen, -200.0)
    return dataclasses.replace(
        batch,
        chosen=(reference + chosen).requires_grad_(),
        rejected=(reference + rejected).requires_grad_(),
        ref_chosen=reference,
        ref_rejected=reference,
    )


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm"])
def test_trl_ignores_label_smoothing(loss_type: str) -> None:
    batch = one_pair(1.0, -1.0)
    plain = theirs(loss_type, batch, **PLAIN)[0]
    smooth = theirs(loss_type, batch, **PLAIN | {"label_smoothing": 0.3})[0]
    assert smooth == plain
    assert OBJECTIVES[loss_type](label_smoothing=0.3)(batch)[0] != plain


def test_discopop_where_the_exponential_overflows() -> None:
    batch = one_pair(-100.0, 100.0)
    assert theirs("discopop", batch, **PLAIN | {"beta": 1.0})[0].isnan()
    assert ours("discopop", **PLAIN | {"beta": 1.0})(batch)[0] == 200.0


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha_divergence"])
def test_exponentials_go_on_as_their_tangent(divergence: str) -> None:
    batch = one_pair(-180.0, 0.0)
    options = PLAIN | {"f_divergence_type": divergence}
    expected, _ = theirs("sigmoid", batch, **options)
    gradient = torch.autograd.grad(expected, batch.chosen)[0]
    assert expected.isinf() or gradient == 0
    loss, _ = ours("sigmoid", **options)(batch)
    gradient = torch.autograd.grad(loss, batch.chosen)[0]
    assert loss.isfinite()
    assert -1e12 < gradient < -1e9


def test_trl_has_no_alpha_divergence_in_fp64() -> None:
    with pytest.raises(KeyError):
        theirs(
            "sigmoid",
            one_pair(1.0, 0.0, torch.float64),
            **PLAIN | {"f_divergence_type": "alpha_divergence"},
        )


def test_sft_of_nothing() -> None:
    batch = random_pair(Draw(keep=0.0))
    assert theirs("sft", batch, **PLAIN)[0].isnan()
    assert OBJECTIVES["sft"]()(batch.chosen_side)[0] == 0


def test_hinge_with_weights_has_no_gradient_in_trl() -> None:
    losses = torch.relu(one_pair(1.0, 0.0).chosen + 201)
    losses *= 2  # as TRL does
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_optimal_transport_refuses_weights_as_in_trl(loss_type: str) -> None:
    with pytest.raises(ValueError, match="use_weighting must be False"):
        OBJECTIVES[loss_type](use_weighting=True)


@pytest.mark.parametrize("loss_type", [n for n in LOSS_TYPES if n not in OF_DIFFERENCES])
def test_no_f_divergence_where_trl_has_none(loss_type: str) -> None:
    names = [field.name for field in dataclasses.fields(OBJECTIVES[loss_type])]
    assert "f_divergence_type" not in names


def test_every_loss_type_of_trl_is_here() -> None:
    documented = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    names = set(re.findall(r"`'(\w+)'`", documented))
    assert names == {*LOSS_TYPES, "sft"}
    assert names <= set(OBJECTIVES)
