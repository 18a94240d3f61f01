"""The reference of a run: its identity, and its log-probs from the cache or from a live model."""

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.loading import load_policy
from tokenq.models.logps import token_logps
from tokenq.models.reference import AdapterOff, ReferenceIdentity, running_in, scoring
from tokenq.models.reference_cache import ReferenceCache
from tokenq.training.config import PreferenceConfig, fsdp_requested

Ids = list[int]
Scorer = PreTrainedModel | PeftModel | AdapterOff


class Reference(Protocol):
    """Log-probabilities of given responses under one fixed model."""

    identity: ReferenceIdentity

    def fill(self, dataset: Any, columns: tuple[str, ...], args: PreferenceConfig) -> None:
        """Make ready for the rows of a tokenised set."""
        ...

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """Return [T_i] fp32 log-probabilities a row, natural log, in the given order."""
        ...

    def release_policy(self) -> None:
        """Forget the policy if it served as the reference: from now on its weights change."""
        ...


class CachedReference:
    """Log-probs from the disk; the model is needed only for responses that are not there yet."""

    def __init__(self, identity: ReferenceIdentity, cache: ReferenceCache, is_policy: bool) -> None:
        self.identity = identity
        self._cache = cache
        self._is_policy = is_policy

    def fill(self, dataset: Any, columns: tuple[str, ...], args: PreferenceConfig) -> None:
        """Score the rows that are missing; processes share the work, every row is scored once."""
        if self._cache.reference is None:
            raise UserError(
                "evaluate: the reference was the policy before training and is gone; give this set "
                "as eval_dataset from the start, or give ref_model"
            )
        rows = dataset.select_columns(["prompt_ids", *columns])[:]
        prompts = [ids for _ in columns for ids in rows["prompt_ids"]]
        responses = [ids for name in columns for ids in rows[name]]
        self._cache.fill(
            prompts, responses, token_budget=args.token_budget, progress=not args.disable_tqdm
        )

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        return self._cache.lookup(prompts, responses)

    def release_policy(self) -> None:
        """See :class:`Reference`."""
        if self._is_policy:
            self._cache.reference = None


class LiveReference:
    """Log-probs from a model that is run in every step."""

    def __init__(
        self,
        scorer: Scorer,
        identity: ReferenceIdentity,
        token_budget: int,
        autocast: torch.dtype | None,
    ) -> None:
        self.identity = identity
        self._scorer = scorer
        self._token_budget = token_budget
        self._autocast = autocast

    def fill(self, dataset: Any, columns: tuple[str, ...], args: PreferenceConfig) -> None:
        """Nothing to do ahead of time."""

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        with scoring(self._scorer) as model, running_in(self._autocast, model):
            return token_logps(self._scorer, prompts, responses, token_budget=self._token_budget)

    def release_policy(self) -> None:
        """Nothing to do: a live reference is a model of its own, or the base under the adapter."""


def open_reference(
    policy: PreTrainedModel | PeftModel,
    given: Scorer | str | Path | None,
    fresh_adapter: bool,
    args: PreferenceConfig,
) -> Reference:
    """Settle what the run is measured against.

    given:         the reference asked for, or None: the base where the policy has a fresh adapter
                   or one with a frozen copy named "ref", else the policy as it is now
    fresh_adapter: the policy's adapter was added for this run, so that its base is where it starts
    """
    scorer, is_policy = _scorer(policy, given, fresh_adapter, args)
    identity = ReferenceIdentity.of(scorer)
    # The reference runs in the policy's precision, or their difference would start off zero.
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    if args.precompute_ref_log_probs:
        root = Path(args.reference_cache_dir) if args.reference_cache_dir else None
        return CachedReference(identity, ReferenceCache.open(scorer, root, autocast), is_policy)
    if fsdp_requested(args) and isinstance(scorer, AdapterOff):
        raise UserError(
            "precompute_ref_log_probs: under FSDP the adapter cannot be switched off in every "
            "step; set it to true"
        )
    live = copy.deepcopy(scorer) if is_policy else scorer
    return LiveReference(live, identity, args.token_budget, autocast)


def _scorer(
    policy: PreTrainedModel | PeftModel,
    given: Scorer | str | Path | None,
    fresh_adapter: bool,
    args: PreferenceConfig,
) -> tuple[Scorer, bool]:
    if given is policy:
        raise UserError("ref_model: is the policy itself, which training changes; leave it out")
    if isinstance(given, str | Path):
        device = torch.device("cpu") if fsdp_requested(args) else args.device
        return _frozen(load_policy(given, dtype=policy.dtype, device=device)), False
    if isinstance(given, AdapterOff):
        return given, False
    if given is not None:
        place: Any = given.to  # its annotation knows the model's own type only
        return _frozen(place(args.device)), False
    if not isinstance(policy, PeftModel):
        return policy, True
    off = AdapterOff(policy)
    if fresh_adapter or off.adapter is not None:
        return off, False
    raise UserError(
        "ref_model: the policy came with an adapter, so its start is not its base; name the "
        "reference (the base, or the merged start of this run)"
    )


def _frozen(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    model.eval()
    model.requires_grad_(False)
    return model
