"""The reference of a run: its identity, and its log-probs from the cache or from a live model."""

from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.forward import reference_predictions
from tokenq.models.head import Predictions
from tokenq.models.logps import token_logps
from tokenq.models.packing import Pack
from tokenq.models.reference import AdapterOff, ReferenceIdentity, running_in, scoring
from tokenq.models.reference_cache import ReferenceCache
from tokenq.training.config import PreferenceConfig

Ids = list[int]
Scorer = PreTrainedModel | PeftModel | AdapterOff


class Reference(Protocol):
    """Log-probabilities of given responses under one fixed model."""

    identity: ReferenceIdentity

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Make ready for these rows, all that a set will ask for."""
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

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Score the rows that are missing; processes share the work, every row is scored once."""
        if self._cache.reference is None:
            raise UserError(
                "evaluate: the reference was the policy before training and is gone; give this set "
                "as eval_dataset from the start, or give ref_model"
            )
        self._cache.fill(
            prompts, responses, token_budget=args.token_budget, progress=not args.disable_tqdm
        )

    @property
    def scorer(self) -> Scorer | None:
        """The model; None where it is the policy before its first step."""
        return None if self._is_policy else self._cache.reference

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
        self.scorer = scorer
        self._token_budget = token_budget
        self._autocast = autocast

    def fill(self, prompts: list[Ids], responses: list[Ids], args: PreferenceConfig) -> None:
        """Nothing to do ahead of time."""

    def logps(self, prompts: list[Ids], responses: list[Ids]) -> list[Tensor]:
        """See :class:`Reference`."""
        with scoring(self.scorer) as model, running_in(self._autocast, model):
            return token_logps(self.scorer, prompts, responses, token_budget=self._token_budget)

    def predictions(self, pack: Pack) -> Predictions:
        """Return the whole next-token distributions at the pack's target positions."""
        with scoring(self.scorer) as model, running_in(self._autocast, model):
            return reference_predictions(self.scorer, pack)

    def release_policy(self) -> None:
        """Nothing to do: a live reference is a model of its own, or the base under the adapter."""
