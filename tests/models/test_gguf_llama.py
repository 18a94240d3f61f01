"""The converter on a tiny GGUF file, against transformers' own reading of the same file."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import CONTROLS, write_tiny_gguf
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tokenq.models.gguf_llama import convert


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def folder(gguf_file: Path) -> Path:
    folder = gguf_file.parent / "converted"
    folder.mkdir()
    convert(gguf_file, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def test_weights_and_logits_equal_transformers(gguf_file: Path, folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert ours.dtype == torch.float32
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)


def test_a_converted_model_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_only_fp32_holds_the_weights(folder: Path) -> None:
    weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.up_proj.weight
    for dtype in (torch.bfloat16, torch.float16):
        assert not torch.equal(weight, weight.to(dtype).float())


@given(text=st.text(max_size=60) | st.text(alphabet=" \n12the", max_size=30))
@settings(deadline=None)
def test_every_text_survives_and_digits_stand_alone(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert all(len(piece) == 1 for piece in pieces if any("0" <= c <= "9" for c in piece))


def test_ids_equal_transformers_once_its_digits_are_split(
    gguf_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    theirs = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    text = "in the  12 th  e\n\n  3"
    assert theirs(text).input_ids != tokenizer(text).input_ids
    theirs.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    assert theirs(text).input_ids == tokenizer(text).input_ids


def test_special_tokens_and_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(tokenizer.all_special_ids) == {0, 1, 2}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token == CONTROLS[0]
    assert tokenizer("the").input_ids == tokenizer("the", add_special_tokens=False).input_ids
    messages = [{"role": "user", "content": "12"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|im_start|>user\n12<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(rendered).input_ids[0] == 1


def test_generation_stops_at_the_end_token(folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"architecture": "mamba"}, "not a Llama"), ({"pre": "llama-bpe"}, "is not SmolLM's")],
)
def test_other_files_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write_tiny_gguf(tmp_path / "other.gguf", **options)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "other.gguf", tmp_path)
