"""Log-probs of the tests' tiny references stay out of the user's cache."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point tokenq's cache at a folder of this test."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TOKENQ_HOME", str(folder))
    return folder
