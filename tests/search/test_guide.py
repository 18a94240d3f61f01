"""What the guide to searching shows runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
from small_pairs import small_pair

import tokenq
from tokenq.models.pair import Pair, load_pair
from tokenq.search.methods import METHODS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guide/decode-better.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_every_snippet_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pair = small_pair()

    def loaded(name: str, reference: str | None = None) -> Pair:
        if reference is None:
            return load_pair(pair.policy, tokenizer=pair.tokenizer)
        return pair

    monkeypatch.setattr(tokenq, "load_pair", loaded)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in SNIPPETS:
        exec(snippet, names)
    assert len(SNIPPETS) == 4
    assert (tmp_path / "tree.svg").is_file()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_table_and_has_a_snippet(name: str) -> None:
    [page] = re.findall(rf"\| \[`{name}`\]\(\.\./(.*?)\) \|", GUIDE)
    assert (ROOT / "docs" / page).is_file()
    function = METHODS[name].home.partition(":")[2]
    assert f"search.{function}(" in "".join(SNIPPETS)
