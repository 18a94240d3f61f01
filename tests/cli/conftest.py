"""Two tiny models, and the rows of a test module as a file."""

import json
from pathlib import Path

import pytest
from small_pairs import save_model


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    policy = save_model(tmp_path / "policy", seed=1)
    reference = save_model(tmp_path / "reference", seed=2)
    return ["--policy", str(policy), "--reference", str(reference)]


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """`ROWS` of the module."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in request.module.ROWS))
    return path
