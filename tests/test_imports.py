"""Every module imports, rooms one way; light ones stay light; `tokenq.credit` can be called."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenq
from tokenq.callable_package import make_callable

MODULES = sorted(found.name for found in pkgutil.walk_packages(tokenq.__path__, prefix="tokenq."))
HEAVY = ("torch", "transformers", "datasets", "numpy", "peft")


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return process.stdout.strip()


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_the_walk_misses_no_file() -> None:
    root = Path(tokenq.__path__[0])
    files = {file.relative_to(root).with_suffix("") for file in root.rglob("*.py")}
    expected = {".".join(("tokenq", *file.parts)).removesuffix(".__init__") for file in files}
    assert set(MODULES) == expected - {"tokenq"}


@pytest.mark.parametrize(
    "code",
    [
        "import tokenq",
        "import tokenq.cli.main as m; m.main(['--help'])",
        "import tokenq.cli.main as m; m.main(['--version'])",
        "import tokenq.cli.main as m; assert m.main(['no-such-command']) == 2",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = run_python(f"{code}\nimport sys\nprint('loaded', *sys.modules)").rsplit("loaded", 1)[1]
    assert not set(HEAVY) & set(loaded.split())


def test_help_takes_less_than_a_second() -> None:
    def once() -> float:
        start = time.perf_counter()
        run_python("import tokenq.cli.main as m; m.main(['--help'])")
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 1.0


def test_public_names_resolve() -> None:
    for name in tokenq.__all__:
        assert getattr(tokenq, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'beam_me_up'"):
        tokenq.beam_me_up  # noqa: B018


@pytest.mark.parametrize(
    "first",
    ["from tokenq import credit; import tokenq", "import tokenq.credit; import tokenq"],
)
def test_credit_is_callable_however_it_was_imported(first: str) -> None:
    check = (
        "from inspect import signature, ismodule\n"
        "assert callable(tokenq.credit) and ismodule(tokenq.credit)\n"
        "assert list(signature(tokenq.credit).parameters)[:3] == ['pair', 'prompt', 'response']\n"
        "from tokenq import credit as c\n"
        "assert c is tokenq.credit\n"
        "print('fine')"
    )
    assert run_python(f"{first}\n{check}") == "fine"


def test_a_callable_package_keeps_signature_and_submodules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "doubling"
    package.mkdir()
    (package / "api.py").write_text("def double(number, times=1):\n    return number * 2**times\n")
    (package / "__init__.py").write_text("from doubling.api import double\n")
    monkeypatch.syspath_prepend(tmp_path)
    doubling = importlib.import_module("doubling")
    with pytest.raises(TypeError, match="not callable"):
        doubling(3)

    make_callable("doubling", doubling.double)

    assert doubling(3) == 6
    assert doubling(3, times=2) == 12
    assert str(inspect.signature(doubling)) == "(number, times=1)"
    assert importlib.import_module("doubling") is doubling
    assert importlib.import_module("doubling.api").double is doubling.double


READS = {
    "data": set(),
    "models": {"data"},
    "objectives": set(),
    "mdp": set(),
    "training": {"data", "models", "monitor", "objectives"},
    "credit": {"data", "models"},
    "judges": {"data", "models"},
    "monitor": {"data", "models", "search"},
    "search": {"data", "mdp", "models"},
    "report": {"credit", "models", "monitor"},
    "reproduce": {
        "credit",
        "data",
        "demo",
        "judges",
        "mdp",
        "models",
        "monitor",
        "objectives",
        "report",
        "search",
        "training",
    },
}
"""Rooms, and the rooms that each may import; nothing points back."""
WHEN_CALLED = {"credit": {"report"}, "monitor": {"report"}, "search": {"credit", "report"}}
"""What `Credit.save_html`, `SearchResult.credit` and `Trace.draw` open in other rooms, when they
are called."""
COMMON = {"allocator", "callable_package", "errors", "storage"}
ALLOWED_IN_PURE_ROOMS = {
    "torch",
    "numpy",
    "abc",
    "dataclasses",
    "typing",
    "collections",
    "math",
    "functools",
    "itertools",
    "tokenq",
}


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so while it is itself imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(part)
        for later in ast.walk(tree)
        if isinstance(later, ast.FunctionDef) or _is_for_types_only(later)
        for part in ast.walk(later)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def _is_for_types_only(part: ast.AST) -> bool:
    return (
        isinstance(part, ast.If)
        and isinstance(part.test, ast.Name)
        and part.test.id == "TYPE_CHECKING"
    )


@pytest.mark.parametrize("room", sorted(READS))
def test_rooms_import_in_one_direction(room: str) -> None:
    for file in (Path(tokenq.__path__[0]) / room).rglob("*.py"):
        for name, at_import in imports_of(file):
            first, _, rest = name.partition(".")
            if first != "tokenq" or not rest:
                continue
            later = set() if at_import else WHEN_CALLED.get(room, set())
            assert rest.split(".")[0] in {room} | READS[room] | COMMON | later, (file.name, name)


@pytest.mark.parametrize("room", ["mdp", "objectives"])
def test_pure_rooms_import_torch_and_numpy_only(room: str) -> None:
    for file in (Path(tokenq.__path__[0]) / room).rglob("*.py"):
        for name, _ in imports_of(file):
            assert name.split(".")[0] in ALLOWED_IN_PURE_ROOMS, (file.name, name)
