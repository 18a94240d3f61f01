"""The command's dispatch: names, suggestions and exit codes."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tokenq import __version__
from tokenq.cli import main as cli
from tokenq.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Install a function as the command `probe`."""

    def install(function: Callable[[list[str]], int]) -> None:
        module = ModuleType("tokenq.cli.probe")
        module.__dict__["main"] = function
        monkeypatch.setitem(sys.modules, "tokenq.cli.probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", "a command of this test")

    return install


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_listed_command_exists(name: str) -> None:
    assert callable(importlib.import_module(f"tokenq.cli.{name}").main)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in cli.COMMANDS.items():
        assert f"  {name}" in out
        assert text in out
    assert max(map(len, out.splitlines())) <= 100


def test_no_arguments_shows_the_usage_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: tokenq")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["doctor", "--jsn"], "--jsn"),
        (["credit", "--data", "rows.jsonl"], "--policy"),
        (["credit", "--policy", "p", "--beta", "much"], "--beta"),
        (["credit", "--policy", "p", "--alternative", "3"], "--alternative"),
        (["eval", "--policy", "p", "--out", "o"], "--data"),
        (["train", "--lerning_rate", "1"], "--lerning_rate"),
    ],
)
def test_wrong_arguments_take_one_line(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tokenq {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("trian", "error: unknown command 'trian': did you mean train?\n"),
        ("docter", "error: unknown command 'docter': did you mean doctor?\n"),
    ],
)
def test_misspelt_command(typed: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err == expected


def test_unlike_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zzz"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for name in cli.COMMANDS:
        assert name in error


def test_arguments_and_exit_code_pass_through(command: Callable[..., None]) -> None:
    seen: list[list[str]] = []

    def probe(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    command(probe)
    assert cli.main(["probe", "--beta", "0.1"]) == 7
    assert seen == [["--beta", "0.1"]]


def test_user_error_is_one_line(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(argv: list[str]) -> int:
        raise UserError("pairs.jsonl, line 3: field 'chosen' is missing")

    command(probe)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "error: pairs.jsonl, line 3: field 'chosen' is missing\n"


def test_interrupt(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def probe(argv: list[str]) -> int:
        raise KeyboardInterrupt

    command(probe)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_is_not_dressed_up_as_a_user_error(command: Callable[..., None]) -> None:
    def probe(argv: list[str]) -> int:
        raise ValueError("defect")

    command(probe)
    with pytest.raises(ValueError, match="defect"):
        cli.main(["probe"])


@pytest.mark.parametrize("lines", [1, 1000], ids=["fits a buffer", "exceeds it"])
def test_a_reader_that_goes_away_ends_the_command_quietly(lines: int) -> None:
    code = (
        "import sys; from tokenq.cli import main as cli; from types import ModuleType\n"
        "def probe(argv):\n"
        "    sys.stdin.read()\n"
        f"    for _ in range({lines}): print('x' * 1000)\n"
        "    return 0\n"
        "sys.modules['tokenq.cli.probe'] = module = ModuleType('tokenq.cli.probe')\n"
        "module.main = probe; cli.COMMANDS['probe'] = ''\n"
        "sys.exit(cli.main(['probe']))"
    )
    pipe = subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=buffered
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_python_dash_m() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tokenq", "docter"], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2
    assert process.stderr == "error: unknown command 'docter': did you mean doctor?\n"
