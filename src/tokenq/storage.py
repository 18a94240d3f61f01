"""Where tokenq keeps its own files, and how files reach their final name: whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from tokenq.errors import UserError

_BLOCK = 2**16


def cache_dir(*parts: str) -> Path:
    """Folder under tokenq's cache: ``$TOKENQ_HOME`` if set, else the user's cache folder.

    The folder is created. Everything in it can be deleted at any time and is rebuilt on demand.
    """
    root = os.environ.get("TOKENQ_HOME") or user_cache_dir("tokenq")
    folder = Path(root).expanduser().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock for ``path`` (the lock file lies beside it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path.with_name(path.name + ".lock"))):
        yield


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it to ``path`` only if the block succeeds.

    ``path`` must not exist when the block ends; hold :func:`locked` if others may build it too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_parts(path: Path) -> None:
    """Remove what a killed process left unfinished beside ``path``; hold :func:`locked`."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def check_writable(folder: Path, option: str) -> None:
    """Create ``folder`` and a file in it; raises UserError, naming ``option``, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".write-test.", dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other writers of ``path`` out, by a lock file beside it that goes when the block ends.

    Raises UserError at once where somebody else is writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except Timeout as error:
            raise UserError(
                f"{path.parent} is being written by another process; accepted: another folder, or "
                "wait for it"
            ) from error
        held.callback(Path(lock.lock_file).unlink, missing_ok=True)
        yield


def cut_torn_line(path: Path) -> None:
    """Shorten a file of lines to its last whole one: a killed writer leaves a piece of a line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
