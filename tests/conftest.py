"""Real models and data for the tests that need them; a test is skipped where they cannot be had."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tokenq.data import film_reviews, lexicon
from tokenq.data.film_snippets import SnippetTable
from tokenq.errors import UserError
from tokenq.models.bundled import materialise

T = TypeVar("T")


def get_or_skip(get: Callable[[], T]) -> T:
    try:
        return get()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """Folder of SmolLM2-135M-Instruct (Q4_1 de-quantised), fp32, from the user's cache."""
    return get_or_skip(lambda: materialise("smollm2-135m-instruct"))


@pytest.fixture(scope="session")
def film_snippets() -> SnippetTable:
    """The rated film review sentences; once it is there, film_reviews.load works too."""
    return get_or_skip(film_reviews.snippets)


@pytest.fixture(scope="session")
def word_valence() -> dict[str, lexicon.LexiconEntry]:
    """The VADER lexicon."""
    return get_or_skip(lexicon.load)
