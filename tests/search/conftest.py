"""Pairs whose texts can be searched."""

import pytest
from sharp_models import sharp
from small_pairs import small_tokenizer, with_adapter

from tokenq.models.pair import Pair, load_pair


@pytest.fixture(scope="session")
def pair() -> Pair:
    """Policy and reference of one family with a byte-level tokenizer."""
    tokenizer = small_tokenizer()
    policy, reference = (sharp("llama", len(tokenizer), seed) for seed in (1, 2))
    return load_pair(policy, reference, tokenizer=tokenizer)


@pytest.fixture
def adapter_pair() -> Pair:
    """A policy that is an adapter, with its base as reference."""
    tokenizer = small_tokenizer()
    policy = with_adapter(sharp("llama", len(tokenizer), 1))
    return load_pair(policy, tokenizer=tokenizer)
