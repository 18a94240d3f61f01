"""From what `reference` says to the reference of a run: which model, and live or from the cache."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.loading import load_policy
from tokenq.models.reference import AdapterOff, ReferenceIdentity
from tokenq.models.reference_cache import ReferenceCache
from tokenq.models.vocabulary import embedding_rows
from tokenq.training.config import PreferenceConfig, fsdp_requested
from tokenq.training.moving_reference import MovingReference, check_same_architecture
from tokenq.training.reference import CachedReference, LiveReference, Reference, Scorer
from tokenq.training.reference_names import (
    ADAPTER_STAYS,
    COUNTING,
    UNIFORM,
    Given,
    One,
    each_of,
    is_marginal,
    model_of,
    start_token,
    trusts_remote_code,
)
from tokenq.training.reference_variants import (
    ConstantReference,
    MarginalReference,
    MixtureReference,
)

Policy = PreTrainedModel | PeftModel


def open_reference(
    policy: Policy,
    given: Given,
    fresh_adapter: bool,
    args: PreferenceConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Reference:
    """Settle what the run is measured against.

    given:         the reference asked for (see :mod:`tokenq.training.reference_names`), or None:
                   the base where the policy has a fresh adapter or one with a frozen copy named
                   "ref", else the policy as it is now
    fresh_adapter: the policy's adapter was added for this run, so that its base is where it starts
    tokenizer:     the policy's; "marginal" asks it for BOS

    Raises ``UserError`` for a reference that cannot be had, or not in the way that `args` ask.
    """
    opening = _Opening(policy, fresh_adapter, args, tokenizer)
    each = each_of(given)
    if args.sync_ref_model:
        return opening.moving(each[0])
    parts = [opening.one(single) for single in each]
    return parts[0] if len(parts) == 1 else MixtureReference(parts)


@dataclass(frozen=True)
class _Opening:
    """What opening any reference of a run needs to know."""

    policy: Policy
    fresh_adapter: bool
    args: PreferenceConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def autocast(self) -> torch.dtype | None:
        # The reference runs in the policy's precision, or their difference would start off zero.
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None

    def one(self, single: One | None) -> Reference:
        if single == COUNTING:
            return ConstantReference.counting()
        if single == UNIFORM:
            return ConstantReference.uniform(embedding_rows(self.policy))
        reference = self.model(model_of(single))
        if is_marginal(single):
            return MarginalReference(reference, start_token(self.tokenizer))
        return reference

    def model(self, given: One | None) -> Reference:
        args = self.args
        scorer, is_policy = self.scorer(given)
        identity = ReferenceIdentity.of(scorer)
        if args.precompute_ref_log_probs:
            root = Path(args.reference_cache_dir) if args.reference_cache_dir else None
            cache = ReferenceCache.open(scorer, root, self.autocast)
            return CachedReference(identity, cache, is_policy)
        if fsdp_requested(args) and isinstance(scorer, AdapterOff):
            raise UserError(
                "precompute_ref_log_probs: under FSDP the adapter cannot be switched off in every "
                "step; set it to true"
            )
        live = copy.deepcopy(scorer) if is_policy else scorer
        return LiveReference(live, identity, args.token_budget, self.autocast)

    def moving(self, given: One | None) -> MovingReference:
        if isinstance(self.policy, PeftModel):
            raise UserError(ADAPTER_STAYS)
        scorer, is_policy = self.scorer(given)
        if not isinstance(scorer, PreTrainedModel):
            raise UserError(
                "sync_ref_model: the reference has an adapter, the policy has none; merge it first"
            )
        check_same_architecture(self.policy, scorer)
        identity = ReferenceIdentity.of(scorer)
        start = _frozen(copy.deepcopy(scorer) if is_policy else scorer)
        return MovingReference(start, identity, self.args, self.autocast)

    def scorer(self, given: One | None) -> tuple[Scorer, bool]:
        """The model that scores, and whether it is the policy itself."""
        policy, args = self.policy, self.args
        if given is policy:
            raise UserError("ref_model: is the policy itself, which training changes; leave it out")
        if isinstance(given, str | Path):
            device = torch.device("cpu") if fsdp_requested(args) else args.device
            trusted = trusts_remote_code(args)
            named = load_policy(given, dtype=policy.dtype, device=device, trust_remote_code=trusted)
            return _frozen(named), False
        if isinstance(given, AdapterOff):
            return given, False
        if given is not None:
            place: Any = given.to  # its annotation knows the model's own type only
            return _frozen(place(args.device)), False
        if not isinstance(policy, PeftModel):
            return policy, True
        off = AdapterOff(policy)
        if self.fresh_adapter or off.adapter is not None:
            return off, False
        raise UserError(
            "ref_model: the policy came with an adapter, so its start is not its base; name the "
            "reference (the base, or the merged start of this run)"
        )


def _frozen(model: Policy) -> Any:
    model.eval()
    model.requires_grad_(False)
    return model
