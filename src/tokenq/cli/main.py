"""The `tokenq` command: loads the one command that was named, and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 input that the user can mend, 130 interrupted, 141 reader gone.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from tokenq import __version__
from tokenq.allocator import keep_freed_memory
from tokenq.errors import UserError

COMMANDS = {
    "demo": "train, read and report on the bundled model and data, in minutes on two cores",
    "train": "fine-tune a model on preferences or on answers",
    "credit": "show which tokens a trained model likes and blames",
    "search": "find better responses: beams, best of many, trees, guided decoding",
    "rank": "put the responses of each prompt in the order of their implicit reward",
    "clean": "find the pairs whose label a trained model disputes, and the words why",
    "filter": "leave out the pairs that training would lose the chosen answer of",
    "monitor": "say what a run did to the likelihoods, and what to change",
    "locate": "find error spans in responses, at a stated rate of false alarms",
    "compare": "put credit beside surprisal, entropy, position and reward models, token by token",
    "eval": "pair accuracy, margins and calibration on preference data",
    "judge": "how often responses are better than a baseline's, by judges, at equal length",
    "reproduce": "one published claim re-run: its figure and table, with confidence intervals",
    "doctor": "what is installed, which devices there are, which features are on",
}
"""Name (also the module in `tokenq.cli`) and what the command is for."""

INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for a program ended by SIGPIPE


def entry() -> None:
    """Console-script entry point."""
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; `argv` excludes the program's name."""
    try:
        code = _dispatch(list(argv))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def usage() -> str:
    """Return the text of `tokenq --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: tokenq COMMAND [options]\n\n"
        "Your language model is a Q-function: train it on preferences, read its tokens, search "
        "with it.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  --help     this text; tokenq COMMAND --help lists a command's options\n"
        "  --version  the version of tokenq\n\n"
        "exit codes: 0 done, 1 failed, 2 input to mend, 130 interrupted"
    )


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = argv
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"tokenq {__version__}")
        return 0
    return _load(name)(rest)


def _load(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {_suggestion(name)}")
    command: Callable[[list[str]], int] = importlib.import_module(f"tokenq.cli.{name}").main
    return command


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the commands are {', '.join(COMMANDS)}"
