"""What the monitor is told about a run of `PreferenceTrainer`, and whether there is one."""

from typing import Any

from torch import nn
from transformers.trainer_utils import has_length

from tokenq.models.reference import AdapterOff
from tokenq.monitor.callback import Monitor
from tokenq.monitor.probing import ProbeOptions
from tokenq.monitor.watched import Watched
from tokenq.training.config import PreferenceConfig
from tokenq.training.dataset import Split
from tokenq.training.mixture import Mixture
from tokenq.training.moving_reference import MovingReference
from tokenq.training.reference import CachedReference, LiveReference, Reference

_START = "the policy before its first step"


def monitor_of(args: PreferenceConfig) -> Monitor | None:
    """The monitor that `monitor` and its settings ask for."""
    if not args.monitor:
        return None
    return Monitor(
        options=ProbeOptions(samples=args.monitor_samples, token_budget=args.token_budget),
        budget=args.monitor_budget,
        steps=args.monitor_steps,
    )


def describe(
    splits: dict[str, Split],
    mixture: Mixture,
    reference: Reference | None,
    args: PreferenceConfig,
    model_name: str,
) -> Watched:
    """Say what there is to monitor in a run.

    Objectives without a model as their reference are read against the policy before its first
    step: where the probability goes does not depend on what the objective compares with. Their
    implicit rewards are log-ratios in nats (beta 1) where the objective has no reference at all.
    """
    held_out = next((split for name, split in splits.items() if name != "train"), None)
    train = splits.get("train")
    names = ", ".join(term.name for term in mixture.terms)
    facts: dict[str, Any] = {
        "trainer": "PreferenceTrainer",
        "objective": names,
        "model": model_name,
        "measured_against": _START if reference is None else reference.identity.name,
    }
    if isinstance(reference, MovingReference):
        facts["moving_reference"] = True
    return Watched(
        held_out=_pairs(held_out),
        trained=_pairs(train),
        reference=_model_of(reference),
        beta=_beta(mixture),
        facts=facts,
        off=None if train is None or _has_pairs(train) else f"{names} learns from no pairs",
    )


def _has_pairs(split: Split) -> bool:
    return {"chosen_ids", "rejected_ids"} <= set(split.columns)


def _pairs(split: Split | None) -> Any:
    """The split's rows, if they are pairs that can be drawn from."""
    if split is None or not _has_pairs(split) or not has_length(split.dataset):
        return None
    return split.dataset


def _model_of(reference: Reference | None) -> nn.Module | AdapterOff | None:
    """The model that rewards are measured against, if it is one model that stays as it is."""
    if isinstance(reference, LiveReference) and not isinstance(reference, MovingReference):
        return reference.scorer
    return reference.scorer if isinstance(reference, CachedReference) else None


def _beta(mixture: Mixture) -> float:
    """Of the first objective that compares with a reference; 1 where none does."""
    for term in mixture.terms:
        if "reference" in term.objective.needs and hasattr(term.objective, "beta"):
            return float(term.objective.beta)
    return 1.0
