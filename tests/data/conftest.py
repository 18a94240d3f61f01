"""Tokenizers of each family, with chat templates and their oddities."""

from collections.abc import Callable

import pytest
from tokenizer_families import BACKENDS, TEMPLATES
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def backends() -> dict[str, Tokenizer]:
    return {name: build() for name, build in BACKENDS.items()}


@pytest.fixture(scope="session")
def make_tokenizer(backends: dict[str, Tokenizer]) -> Callable[..., PreTrainedTokenizerFast]:
    """``make_tokenizer(backend, template=None, eos="</s>", bos="<s>")``; pad is EOS."""

    def make(
        backend: str, template: str | None = None, eos: str | None = "</s>", bos: str | None = "<s>"
    ) -> PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(backends[backend].to_str()),
            bos_token=bos,
            eos_token=eos,
            pad_token=eos,
            unk_token="<unk>",
        )
        tokenizer.chat_template = TEMPLATES[template] if template else None
        return tokenizer

    return make
