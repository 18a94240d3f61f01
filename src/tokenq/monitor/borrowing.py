"""Reading a model in the middle of somebody's training, and giving it back as it was.

The packed forward replaces a model's `forward` and attention. Ordinary calls compute the same with
and without; a run of another trainer shall not have to rely on that.
"""

import inspect
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.attention import set_attention
from tokenq.models.forward import causal_lm, embedding_weight, enable_packed
from tokenq.models.reference import AdapterOff

_MARK = "_tokenq_"
_FORWARD = "forward"


@contextmanager
def borrowed(model: nn.Module | AdapterOff) -> Iterator[None]:
    """Teach `model` the packed forward while the block runs.

    Afterwards its forward, its attention and the random numbers of torch, numpy and python are as
    before. A model that had learned the packed forward before keeps it.

    Raises UserError for adapters of virtual tokens, whose prompts the packed forward does not know.
    """
    outer = model.peft_model if isinstance(model, AdapterOff) else model
    _refuse_virtual_tokens(outer)
    inner = causal_lm(outer)
    with same_random_numbers(embedding_weight(inner).device), _enabled(inner):
        yield


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Put the states of torch (CPU and `device`), numpy and python back after the block."""
    cuda = [device] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def _enabled(inner: PreTrainedModel) -> Iterator[None]:
    before, attention = _own(inner), _attention(inner)
    taught = "packed" not in inspect.signature(inner.forward).parameters
    if taught and inner in _known:
        known = _known[inner]
        set_attention(inner, known.attention)
        inner.__dict__.update(known.marks)
        inner.__dict__[_FORWARD] = types.MethodType(known.forward, inner)
    try:
        enable_packed(inner)
        yield
        if taught:
            _known[inner] = _Known.of(inner)
    finally:
        if taught:
            for name in _own(inner):
                del inner.__dict__[name]
            inner.__dict__.update(before)
            for config, implementation in attention:
                config._attn_implementation = implementation


@dataclass(frozen=True)
class _Known:
    """How a model was while it was borrowed; `forward` is no bound method, which would keep it."""

    attention: str
    forward: Callable[..., Any]
    marks: dict[str, Any]

    @classmethod
    def of(cls, inner: PreTrainedModel) -> "_Known":
        marks = _own(inner)
        forward = marks.pop(_FORWARD)
        return cls(inner.config._attn_implementation, forward.__func__, marks)


# Finding out takes some forwards, so it is kept for the next time.
_known: "WeakKeyDictionary[PreTrainedModel, _Known]" = WeakKeyDictionary()


def _own(inner: PreTrainedModel) -> dict[str, Any]:
    """What reading sets on a model instance."""
    return {
        name: value
        for name, value in inner.__dict__.items()
        if name == _FORWARD or name.startswith(_MARK)
    }


def _attention(inner: PreTrainedModel) -> list[tuple[Any, str]]:
    """The attention implementation of each part's configuration, the whole model's first."""
    configs: list[Any] = [getattr(part, "config", None) for part in inner.modules()]
    distinct = {id(each): each for each in configs if hasattr(each, "_attn_implementation")}
    return [(each, each._attn_implementation) for each in distinct.values()]


def _refuse_virtual_tokens(model: nn.Module) -> None:
    inner = getattr(model, "module", model)
    for name, config in getattr(inner, "peft_config", {}).items():
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise UserError(
                f"adapter '{name}' ({config.peft_type}) learns virtual tokens; accepted by the "
                "monitor: LoRA and its relatives, or a whole model"
            )
