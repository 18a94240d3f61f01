"""Sets of human labels that no package holds: read from the folder named by ``TOKENQ_DATA``."""

import json
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenq.errors import UserError

SPLITS = ("train", "validation", "test")


def labels_folder(name: str) -> Path:
    """``$TOKENQ_DATA/name``; raises :class:`UserError` where it is not."""
    named = os.environ.get("TOKENQ_DATA")
    if not named:
        raise UserError(
            f"the human labels {name!r} lie in no package: let TOKENQ_DATA name the folder that "
            f"holds the folder {name}"
        )
    folder = Path(named).expanduser() / name
    if not folder.is_dir():
        raise UserError(f"TOKENQ_DATA is {named}, and no folder {name} is in it")
    return folder


def read_records(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The records of a JSON file, each known to have ``fields``.

    Raises :class:`UserError` naming the file, and the record (from 0) where it is one.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(records, list):
        raise UserError(f"{path} is not a list of records")
    needed = set(fields)
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not needed <= record.keys():
            missing = sorted(needed - set(record if isinstance(record, dict) else ()))
            raise UserError(f"{path}, record {number}: {', '.join(missing)} missing")
    return records


def split_of(key: str) -> str:
    """``train`` (60 %), ``validation`` (10 %) or ``test`` (30 %), by the text of ``key`` alone."""
    bucket = int.from_bytes(sha256(key.encode()).digest()[:8], "big") % 10
    return "test" if bucket < 3 else "validation" if bucket == 3 else "train"


def check_split(what: str, split: str) -> None:
    """Raises :class:`UserError` for a split that is not known."""
    if split not in SPLITS:
        raise UserError(f"{what} has no split {split!r}; it has {', '.join(SPLITS)}")


def word_count(text: str) -> int:
    """Number of words, as blanks part them."""
    return len(text.split())


def leading(parts: Iterable[str], limit: int, length: Callable[[str], int]) -> list[str]:
    """The first of ``parts`` whose lengths add up to at most ``limit``."""
    kept: list[str] = []
    total = 0
    for part in parts:
        total += length(part)
        if total > limit:
            break
        kept.append(part)
    return kept
