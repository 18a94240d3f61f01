"""A policy with its reference and tokenizer: what training, credit and search are given."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.bundled import spoken_name
from tokenq.models.checkpoint import Checkpoint, inspect
from tokenq.models.forward import causal_lm
from tokenq.models.loading import load_policy, load_tokenizer, resolve_device, resolve_dtype
from tokenq.models.reference import AdapterOff, adapter_obstacle
from tokenq.models.vocabulary import check_rows, check_same_vocabulary, embedding_rows

Model = PreTrainedModel | PeftModel
Reference = PreTrainedModel | PeftModel | AdapterOff

logger = logging.getLogger(__name__)


class Pair:
    """A policy and the reference its implicit reward is measured against.

    ``reference`` is a model, the policy with its adapter off, or None where there is none.
    """

    def __init__(
        self,
        policy: Model,
        reference: Reference | None,
        tokenizer: PreTrainedTokenizerBase | None,
        policy_name: str,
        reference_name: str | None = None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.policy_name = policy_name
        self.reference_name = reference_name
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ``UserError`` if the policy is a loaded model whose tokenizer is unknown."""
        if self._tokenizer is None:
            raise UserError(
                f"no tokenizer is known for the loaded model '{self.policy_name}'; "
                "pass tokenizer= to load_pair"
            )
        return self._tokenizer

    def __repr__(self) -> str:
        return f"Pair(policy={self.policy_name!r}, reference={self.reference_name!r})"


def load_pair(
    policy: str | Path | Model,
    reference: str | Path | Reference | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    revision: str | None = None,
    reference_revision: str | None = None,
    trust_remote_code: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
) -> Pair:
    """Load a policy and its reference.

    policy, reference: hub names, folders, PEFT adapter folders, ``bundled:NAME``, or loaded models.
                       Where no reference is given, that of an adapter is its base (the adapter
                       switched off, or a second copy where switching off is not exact); a full
                       model has none.
    device, dtype:     "auto" leaves loaded models as they are; for names see :func:`load_policy`
    tokenizer:         the policy's by default

    Both models are in eval mode; the reference is frozen. Raises ``UserError``, before weights are
    read where possible, for a name that is no causal language model and for vocabularies that
    differ.
    """
    resolve_dtype(dtype, resolve_device(device))
    if isinstance(policy, PeftModel) and _is_inside(reference, policy):
        reference = AdapterOff(policy)
    ours = _side(policy, revision, trust_remote_code)
    theirs = _side(reference, reference_revision, trust_remote_code)
    if reference is policy and isinstance(policy, PeftModel):
        raise UserError(
            "the reference is the PEFT policy itself, adapter on; leave it out to use the base"
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    words = tokenizer or ours.tokenizer(trust_remote_code)
    _check_vocabularies(ours, theirs, words, trust_remote_code)

    options = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "model_init_kwargs": model_init_kwargs,
    }
    model = _load(ours, options).eval()
    frozen = _load_reference(model, ours, theirs, options)
    if words is not None:
        check_rows(words, embedding_rows(model), ours.name)
    if frozen is None:
        return Pair(model, None, words, ours.name)
    if isinstance(frozen, AdapterOff):
        name = spoken_name(theirs.name or frozen.name)
        return Pair(model, frozen, words, ours.name, name)
    frozen.eval()
    if frozen is not model:
        frozen.requires_grad_(False)
    if words is not None:
        check_rows(words, embedding_rows(frozen), theirs.name)
    return Pair(model, frozen, words, ours.name, theirs.name or "the adapter's base")


def reference_of(pair: Pair) -> Reference:
    """The pair's reference. Raises UserError where it has none."""
    if pair.reference is None:
        raise UserError(
            f"'{pair.policy_name}' has no reference, so its responses have no implicit reward; "
            "accepted: reference= (--reference), what its preference training started from"
        )
    return pair.reference


def context_length(pair: Pair) -> int | None:
    """The most tokens that both models can read, or None where neither says."""
    limits = []
    for side in (pair.policy, pair.reference):
        inner = side.peft_model if isinstance(side, AdapterOff) else side
        if inner is not None:
            config = causal_lm(inner).config.get_text_config()
            limits.append(getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


@dataclass(frozen=True)
class _Side:
    """One side of a pair as it was given: a checkpoint that was inspected, or a loaded model."""

    checkpoint: Checkpoint | None = None
    model: Reference | None = None

    @property
    def is_empty(self) -> bool:
        return self.checkpoint is None and self.model is None

    @property
    def name(self) -> str:
        if self.checkpoint is not None:
            return self.checkpoint.name
        if isinstance(self.model, AdapterOff):
            return self.model.name
        return self.origin or ("" if self.model is None else type(self.model).__name__)

    @property
    def origin(self) -> str:
        """Folder or hub name that a loaded model remembers, or ""."""
        model: object = self.model
        if isinstance(model, AdapterOff):
            model = model.peft_model
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        return str(getattr(model, "name_or_path", "") or "")

    def tokenizer(self, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
        """The tokenizer that belongs to this side, or None if none is known."""
        if self.checkpoint is not None:
            return load_tokenizer(self.checkpoint, trust_remote_code=trust_remote_code)
        if not self.origin:
            return None
        try:
            source = inspect(self.origin, trust_remote_code=trust_remote_code)
        except UserError as error:
            # The weights are here already; only what they came from is out of reach.
            logger.warning("no tokenizer for the loaded model: %s", error)
            return None
        return load_tokenizer(source) if source.has_tokenizer() else None


def _is_inside(reference: object, policy: PeftModel) -> bool:
    """Whether the reference is the "base" object of this very policy.

    PEFT puts its layers into the base in place, so that object has the adapter on.
    """
    return reference is policy.base_model or reference is policy.get_base_model()


def _side(given: object, revision: str | None, trust_remote_code: bool) -> _Side:
    if given is None:
        return _Side()
    if isinstance(given, str | Path):
        return _Side(inspect(given, revision=revision, trust_remote_code=trust_remote_code))
    if isinstance(given, PreTrainedModel | PeftModel | AdapterOff):
        return _Side(model=given)
    raise UserError(
        f"a {type(given).__name__} is no model; accepted: a name, a folder, a transformers causal "
        "language model or a PeftModel"
    )


def _check_vocabularies(
    ours: _Side,
    theirs: _Side,
    words: PreTrainedTokenizerBase | None,
    trust_remote_code: bool,
) -> None:
    """Compare what the files and the loaded models tell, before any weights are read."""
    other = theirs
    if theirs.is_empty and ours.checkpoint is not None:
        other = _Side(ours.checkpoint.base)
    if words is not None:
        _check_own_rows(ours, words)
    if other.is_empty or isinstance(other.model, AdapterOff):
        return
    known = other.checkpoint is None or other.checkpoint.has_tokenizer()
    reference_words = other.tokenizer(trust_remote_code) if known else None
    if words is not None and reference_words is not None:
        check_same_vocabulary(words, reference_words, ours.name, other.name)
        _check_own_rows(other, words)
    elif _rows(ours) != _rows(other):
        raise UserError(
            f"'{ours.name}' reads {_rows(ours)} token ids and '{other.name}' {_rows(other)}, and "
            "without both tokenizers it cannot be told whether the difference is padding; give "
            "both models by name"
        )


def _check_own_rows(side: _Side, words: PreTrainedTokenizerBase) -> None:
    """For a whole checkpoint; an adapter may bring more rows than its base has."""
    if side.checkpoint is not None and side.checkpoint.base is None:
        check_rows(words, _rows(side), side.name)


def _rows(side: _Side) -> int:
    if side.checkpoint is not None:
        return int(side.checkpoint.config.get_text_config().vocab_size)
    assert isinstance(side.model, nn.Module)
    return embedding_rows(side.model)


def _load(side: _Side, options: Mapping[str, Any]) -> Model:
    if side.checkpoint is not None:
        return load_policy(side.checkpoint, **options)
    model = side.model
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise UserError("the policy is an AdapterOff, which can only be a reference")
    _refuse_injected(model)
    if options["device"] != "auto":
        nn.Module.to(model, resolve_device(options["device"]))
    if options["dtype"] != "auto":
        nn.Module.to(model, resolve_dtype(options["dtype"], model.device))
    return model


def _refuse_injected(model: Model) -> None:
    if isinstance(model, PeftModel):
        return
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            "the model has PEFT layers inside but is no PeftModel, so it is not its own base; pass "
            "the PeftModel (as policy, without a reference, its base is the reference)"
        )


def _load_reference(
    policy: Model, ours: _Side, theirs: _Side, options: Mapping[str, Any]
) -> Reference | None:
    if isinstance(theirs.model, AdapterOff):
        return theirs.model
    if isinstance(policy, PeftModel):
        if (
            isinstance(theirs.model, PeftModel)
            and theirs.model.get_base_model() is policy.get_base_model()
        ):
            raise UserError(
                "policy and reference are two PeftModels around the same base, whose layers hold "
                "the adapters of both; load the reference apart, or leave it out to use the base"
            )
        if theirs.is_empty and ours.checkpoint is None:
            return AdapterOff(policy)
    base = None if ours.checkpoint is None else ours.checkpoint.base
    if ours.checkpoint is not None and base is not None and _means_base(theirs, base):
        assert isinstance(policy, PeftModel)
        return AdapterOff(policy) if _is_clean(ours.checkpoint) else _load(_Side(base), options)
    if theirs.is_empty:
        return None
    return _load(theirs, options)


def _means_base(reference: _Side, base: Checkpoint) -> bool:
    """Whether the reference is left out, or names the very base of the policy's adapter."""
    named = reference.checkpoint
    if named is None:
        return reference.model is None
    if named.base is not None or named.revision != base.revision:
        return False
    if named.is_folder and base.is_folder:
        return Path(named.location).resolve() == Path(base.location).resolve()
    return named.location == base.location


def _is_clean(adapter: Checkpoint) -> bool:
    """Whether loading this adapter leaves the weights of its base as they are."""
    assert adapter.adapter is not None
    return adapter_obstacle(adapter.adapter) is None and adapter.carried_embedding_rows() is None
