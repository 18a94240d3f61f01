"""Package descriptions: what is read from apt's indexes, what is kept, and what can go wrong."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenq.data import debian
from tokenq.errors import UserError

RELEASE = """\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Someone
Label: Archive
Suite: stable
Version: 1.2
Codename: tortoise
Date: Sat, 11 Jul 2026 10:16:37 UTC
SHA256:
 0000 1 main/binary-amd64/Packages

"""
PACKAGES = """\
Package: dar
Source: dar-source (2.7-1)
Section: utils
Description: unused here

Package: lone
Section: contrib/net
"""
TRANSLATION = """\
Package: dar
Description-md5: 1
Description-en: Disk archive: back up a tree
 Archiver with slices
 and compression.
 .
 It reads:
  * tar files
  * zip files
 Second paragraph: \u00e9.

Package: dar-docs
Description-en: Disk archive: back up a tree
 Archiver with slices
 and compression.
 .
 It reads:
  * tar files
  * zip files
 Second paragraph: \u00e9.

Package: lone
Description-en: a tool

Package: bare
"""
UPDATES = """\
Package: lone
Description-en: a tool, changed by an update
"""
LONG = """\
Archiver with slices and compression.
It reads:
* tar files
* zip files
Second paragraph: \u00e9."""


def _place_apt(folder: Path, body: str) -> None:
    """A program named apt-get: a shell script that knows the lists folder as $lists."""
    folder.mkdir(exist_ok=True)
    script = folder / "apt-get"
    script.write_text(
        '#!/bin/sh\nlists=$(sed -n \'s/^Dir::State::lists "\\(.*\\)";$/\\1/p\' "$3")\n' + body
    )
    script.chmod(0o755)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    debian.read.cache_clear()
    yield tmp_path
    debian.read.cache_clear()


@pytest.fixture
def archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt-get that copies the indexes of a small archive and of its updates."""
    lists = home / "served"
    lists.mkdir()
    for name, text in {
        "some.host_a_dists_tortoise_InRelease": RELEASE,
        "some.host_a_dists_tortoise_main_binary-amd64_Packages": PACKAGES,
        "some.host_a_dists_tortoise_main_i18n_Translation-en": TRANSLATION,
        "some.host_a_dists_tortoise-updates_main_i18n_Translation-en": UPDATES,
    }.items():
        (lists / name).write_text(text, encoding="utf-8")
    _place_apt(home / "bin", f'cp {lists}/* "$lists"\n')
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return home


def test_descriptions_are_read_with_source_section_and_release(archive: Path) -> None:
    read = debian.read()
    assert read.descriptions == (
        debian.Description("dar", "dar-source", "utils", "Disk archive: back up a tree", LONG),
        debian.Description("lone", "lone", "net", "a tool", ""),
    )
    assert read.head["packages"] == 2
    assert read.head["releases"] == [
        {
            "label": "Archive",
            "version": "1.2",
            "codename": "tortoise",
            "date": "Sat, 11 Jul 2026 10:16:37 UTC",
        },
        {},
    ]
    assert "some.host" not in json.dumps(read.head)


def test_second_reading_needs_no_apt(archive: Path) -> None:
    first = debian.read()
    debian.read.cache_clear()
    _place_apt(archive / "bin", "exit 100\n")
    assert debian.read() == first


def test_no_network_is_one_line_without_addresses(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _place_apt(home / "bin", "echo 'W: Failed to fetch http://some.host/x  Could not' >&2\n")
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match="Failed to fetch Could not") as caught:
        debian.read()
    assert "\n" not in str(caught.value)
    assert "some.host" not in str(caught.value)
    assert not list((home / "home").rglob("*.jsonl"))


def test_no_apt_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home / "empty"))
    with pytest.raises(UserError, match="this system has none"):
        debian.read()


def test_damaged_cache_is_said(archive: Path) -> None:
    debian.read()
    (kept,) = (archive / "home").rglob("descriptions.jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
    kept.write_text("".join(lines[:-1]), encoding="utf-8")
    debian.read.cache_clear()
    with pytest.raises(UserError, match="delete it"):
        debian.read()
