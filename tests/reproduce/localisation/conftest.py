"""A tiny model, and a made-up task whose wrong word is known."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_training import tiny_llama, tiny_tokenizer
from wrong_words import LAYERS, training_pairs, wrong_and_right_texts

from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import Task


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny_llama(layers=LAYERS).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def bench(model_folder: Path) -> Bench:
    return Bench(str(model_folder), 2)


@pytest.fixture
def made_up() -> Callable[[object], Task]:
    return lambda options: Task(training_pairs, wrong_and_right_texts)
