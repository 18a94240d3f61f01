"""A model that was read behaves afterwards as one that was not, to the bit."""

import inspect

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tiny_checkpoints import gpt2, llama
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.forward import enable_packed
from tokenq.models.logps import token_logps
from tokenq.monitor.borrowing import borrowed


def knows_packs(model: PreTrainedModel) -> bool:
    return "packed" in inspect.signature(model.forward).parameters


@pytest.mark.parametrize("make", [llama, gpt2])
def test_it_is_taught_and_forgets(make: type) -> None:
    model: PreTrainedModel = make()
    before = dict(model.__dict__), model.config._attn_implementation
    for _ in range(2):
        with borrowed(model):
            assert knows_packs(model)
            assert model.config._attn_implementation.startswith("tokenq")
            inside = token_logps(model, [[5, 6]], [[7, 8]])[0]
        assert (dict(model.__dict__), model.config._attn_implementation) == before
        assert not knows_packs(model)
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0], dim=-1)
    assert inside.tolist() == pytest.approx([float(logps[1, 7]), float(logps[2, 8])], abs=1e-5)


def test_the_second_time_takes_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    with borrowed(model):
        pass
    calls = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with borrowed(model):
        pass
    assert not calls
    with borrowed(llama()):
        pass


def test_another_forward_on_the_instance_comes_back() -> None:
    model = llama()
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    wrapped = model.forward

    def fail() -> None:
        with borrowed(model):
            assert model.forward is not wrapped
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert model.forward is wrapped


def test_what_has_learned_before_keeps_it() -> None:
    model = llama()
    enable_packed(model)
    forward, implementation = model.__dict__["forward"], model.config._attn_implementation
    with borrowed(model):
        pass
    assert model.__dict__["forward"] is forward
    assert model.config._attn_implementation == implementation


def test_adapters_of_virtual_tokens_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(llama(), config)
    with pytest.raises(UserError, match="learns virtual tokens"), borrowed(model):
        pass
