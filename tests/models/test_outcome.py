"""Reward models by name: whole or adapted, and the refusals of heads that would be random."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_pairs import config, save_model, small_tokenizer
from transformers import AutoModelForSequenceClassification

from tokenq.errors import UserError
from tokenq.models.outcome import load_outcome_model

IDS = torch.tensor([[5, 9, 40, 2]])


def save_reward_model(folder: Path, labels: int = 1) -> torch.Tensor:
    """Write a random reward model; return its answer to `IDS`."""
    torch.manual_seed(4)
    options = config("llama", len(small_tokenizer()))
    options.num_labels = labels
    model = AutoModelForSequenceClassification.from_config(options, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    with torch.no_grad():
        return model(IDS).logits


def test_a_whole_model(tmp_path: Path) -> None:
    expected = save_reward_model(tmp_path)
    model, tokenizer = load_outcome_model(tmp_path, device="cpu")
    assert tokenizer.eos_token == "</s>"
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model(IDS).logits, expected)


def test_an_adapter_with_its_head(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    torch.manual_seed(1)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS")
    ).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "score.modules_to_save" in name:
                weight.normal_(std=0.3)
        expected = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    model, tokenizer = load_outcome_model(tmp_path / "adapter")
    assert len(tokenizer) == len(small_tokenizer())
    torch.testing.assert_close(model(IDS).logits, expected)


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(UserError, match="is a LlamaForCausalLM: its classification head would be"):
        load_outcome_model(tmp_path)


def test_a_head_that_the_files_lack_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    settings = tmp_path / "config.json"
    settings.write_text(settings.read_text().replace("ForCausalLM", "ForSequenceClassification"))
    with pytest.raises(UserError, match=r"lacks 1 weights, first 'score.weight'"):
        load_outcome_model(tmp_path)


def test_an_adapter_of_a_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x"}'
    )
    with pytest.raises(UserError, match="was trained for CAUSAL_LM; accepted: SEQ_CLS"):
        load_outcome_model(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "no/such/model"])
def test_nothing_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=f"reward model '{name}'"):
        load_outcome_model(name)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reward model"):
        load_outcome_model(tmp_path)
