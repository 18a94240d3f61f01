"""Human-written summaries: packages of the system's archive with their maintainers' synopses.

Read through the system's own ``apt-get`` into a private folder; nothing of the system changes.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from tokenq.errors import UserError
from tokenq.storage import atomic_file, cache_dir, discard_parts, locked

ABOUT = """\
Package descriptions: a one-line synopsis and a longer text, both written by the package's
maintainer.

Origin:   the package archive that the system's apt is configured for (Debian or a relative of it),
          fetched with apt-get when first asked for. The archive moves: `read().head` says which
          release, of which date, was read when.
Licence:  each description is under its own package's free licence.
Changed:  lines are joined to paragraphs; of packages that share one description, one is kept.
"""

_FORMAT = 1
# apt names an index ADDRESS_dists_SUITE_COMPONENT_i18n_Translation-en.
_INDEX = re.compile(r"(?P<archive>.+_dists_.+?)_(?P<rest>[^_]+_(?:i18n_|binary-).+)")
_CONFIGURATION = """\
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Acquire::Languages "en";
Acquire::GzipIndexes "false";
Acquire::Retries "2";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


@dataclass(frozen=True)
class Description:
    """One package: its name, that of its source package, its archive section ("" if not told),
    the one-line synopsis and the long text (paragraphs and list lines, parted by newlines)."""

    package: str
    source: str
    section: str
    synopsis: str
    text: str


@dataclass(frozen=True)
class Archive:
    """All descriptions, in order of package name. ``head``: ``releases`` (label, version, codename,
    date of each part of the archive), ``fetched`` (UTC, ISO) and ``packages`` (their number)."""

    head: dict[str, object]
    descriptions: tuple[Description, ...]


@cache
def read() -> Archive:
    """The descriptions; fetched once (about 16 MB), then read from tokenq's cache.

    Raises :class:`UserError` where there is no ``apt-get`` or it reaches no archive.
    """
    path = cache_dir("assets", "package-descriptions") / "descriptions.jsonl"
    if not path.exists():
        with locked(path):
            if not path.exists():
                discard_parts(path)
                _write(path, _fetch())
    return _read_rows(path)


def parse_text(lines: list[str]) -> str:
    """The long text from the lines of a ``Description-en`` field, each with its leading blank.

    A line that begins with one blank continues a paragraph, with two stands by itself, and a
    lone dot is an empty line (Debian Policy 5.6.13).
    """
    written: list[str] = []
    running = False
    for line in lines:
        body = line[1:].rstrip()
        if body == ".":
            running = False
        elif body.startswith((" ", "\t")):
            written.append(body.strip())
            running = False
        elif running:
            written[-1] += f" {body}"
        else:
            written.append(body)
            running = True
    return "\n".join(written)


def parse_descriptions(translation: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(package, synopsis, long text) of every stanza of a ``Translation-en`` index."""
    for stanza in _stanzas(translation):
        name, described = stanza.get("Package"), stanza.get("Description-en")
        if name and described:
            yield name[0], described[0], parse_text(described[1:])


def parse_sources(packages: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(package, source package, section) of every stanza of a ``Packages`` index."""
    for stanza in _stanzas(packages):
        if name := stanza.get("Package"):
            source = stanza.get("Source", name)[0].partition(" ")[0]
            yield name[0], source, stanza.get("Section", [""])[0].rpartition("/")[2]


def _stanzas(lines: Iterator[str]) -> Iterator[dict[str, list[str]]]:
    """Fields by name: the value on the field's own line, then its continuation lines unchanged."""
    stanza: dict[str, list[str]] = {}
    field: list[str] = []
    for raw in lines:
        line = raw.rstrip("\n")
        if not line:
            if stanza:
                yield stanza
            stanza = {}
        elif line[0] in " \t":
            field.append(line)
        else:
            name, _, value = line.partition(":")
            field = stanza[name] = [value.strip()]
    if stanza:
        yield stanza


def _fetch() -> Archive:
    """Let apt-get update its indexes in a folder of ours, and read them there."""
    program = shutil.which("apt-get")
    if program is None:
        raise UserError(
            "package descriptions need apt-get, and this system has none: "
            "use a Debian-like system, or copy the cache of one (folder package-descriptions)"
        )
    print("tokenq: fetching package descriptions with apt-get (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="tokenq-apt-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt drops its rights while it downloads
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        configuration = folder / "apt.conf"
        configuration.write_text(_CONFIGURATION.format(folder=folder), encoding="utf-8")
        command = [program, "update", "-c", str(configuration), "-qq"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = _read_indexes(folder / "lists")
        if not archive.descriptions:
            raise UserError(
                f"cannot fetch package descriptions with apt-get ({_reason(done.stderr)}): "
                "connect to the package archive that apt is configured for"
            )
    return archive


def _read_indexes(lists: Path) -> Archive:
    """What apt-get left in ``lists``; of equal descriptions or names the first is kept.

    Large indexes come first, so that the updates of a release (which change daily) decide nothing
    that the release itself has.
    """
    origins: dict[str, tuple[str, str]] = {}
    for index in _by_size(lists.glob("*_Packages")):
        with index.open(encoding="utf-8", errors="replace") as lines:
            for package, source, section in parse_sources(lines):
                origins.setdefault(package, (source, section))
    kept: dict[str, Description] = {}
    seen: set[tuple[str, str]] = set()
    releases = []
    for index in _by_size(lists.glob("*_Translation-en")):
        releases.append(_release(index))
        with index.open(encoding="utf-8", errors="replace") as lines:
            for package, synopsis, text in parse_descriptions(lines):
                if package not in kept and (synopsis, text) not in seen:
                    seen.add((synopsis, text))
                    source, section = origins.get(package, (package, ""))
                    kept[package] = Description(package, source, section, synopsis, text)
    head: dict[str, object] = {
        "format": _FORMAT,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "releases": releases,
        "packages": len(kept),
    }
    return Archive(head, tuple(kept[name] for name in sorted(kept)))


def _by_size(indexes: Iterator[Path]) -> list[Path]:
    return sorted(indexes, key=lambda index: (-index.stat().st_size, index.name))


def _release(index: Path) -> dict[str, str]:
    """Label, version, codename and date of the archive that ``index`` is part of.

    apt names an index by its address, which is not kept.
    """
    matched = _INDEX.fullmatch(index.name)
    stem = matched["archive"] if matched else ""
    for ending in ("InRelease", "Release"):
        path = index.with_name(f"{stem}_{ending}")
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as lines:
                fields = next((s for s in _stanzas(lines) if "Codename" in s or "Suite" in s), {})
            names = ("Label", "Version", "Codename", "Date")
            return {name.lower(): fields[name][0] for name in names if name in fields}
    return {}


def _reason(output: str) -> str:
    """What went wrong in apt's own words, without addresses."""
    lines = [line.strip() for line in output.splitlines() if line.startswith(("E:", "W:", "Err"))]
    first = lines[0] if lines else "it gave no index"
    return re.sub(r"\s*\S+://\S+\s*", " ", first).strip()[:200]


def _write(path: Path, archive: Archive) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as written:
        written.write(json.dumps(archive.head) + "\n")
        for description in archive.descriptions:
            written.write(json.dumps(asdict(description), ensure_ascii=False) + "\n")


def _read_rows(path: Path) -> Archive:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            head = json.loads(next(lines))
            descriptions = tuple(Description(**json.loads(line)) for line in lines)
        if head["format"] != _FORMAT or head["packages"] != len(descriptions):
            raise ValueError("it is of another format or incomplete")
    except (StopIteration, ValueError, TypeError, KeyError) as error:
        message = f"{path} is not what tokenq wrote there ({error}); delete it to fetch it again"
        raise UserError(message) from None
    return Archive(head, descriptions)
