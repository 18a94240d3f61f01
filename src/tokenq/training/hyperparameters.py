"""Hyper-parameters of all objectives as command-line options, read off their dataclasses."""

import dataclasses
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers.hf_argparser import string_to_bool

from tokenq.objectives import OBJECTIVES
from tokenq.training.mixture import ARGUMENTS

_LINE = re.compile(r"^(\w+):\s+(\S.*)$")


@dataclass(frozen=True)
class Hyperparameter:
    """One name that one or several objectives take.

    kind:     float, int, str or bool
    choices:  accepted values of a name that takes no others
    help:     what it means, in the words of the first objective that has it
    defaults: by objective
    """

    name: str
    kind: type
    choices: tuple[str, ...] | None
    help: str
    defaults: dict[str, Any]

    def add_to(self, group: Any) -> None:
        """Add the option to an argparse parser or group; unset, it is the objective's default."""
        options: dict[str, Any] = {"type": self.kind, "choices": self.choices}
        if self.kind is bool:
            options |= {"type": string_to_bool, "nargs": "?", "const": True}
        group.add_argument(f"--{self.name}", default=None, help=self._described(), **options)

    def _described(self) -> str:
        values: dict[str, list[str]] = {}
        for objective, value in self.defaults.items():
            values.setdefault("unset" if value is None else f"{value}", []).append(objective)
        if len(values) == 1 and len(self.defaults) > 4:
            listed = [*values]
        else:
            listed = [f"{value} ({', '.join(names)})" for value, names in values.items()]
        text = f"{self.help}. Default: {'; '.join(listed)}"
        return text.replace("%", "%%")


def hyperparameters() -> dict[str, Hyperparameter]:
    """Every hyper-parameter that has no argument of its own, by name."""
    found: dict[str, Hyperparameter] = {}
    for objective, class_ in OBJECTIVES.items():
        if objective in _aliases():
            continue
        hints, helps = get_type_hints(class_), documented(class_)
        for field in dataclasses.fields(class_):
            if field.name in ARGUMENTS:
                continue
            kind, choices = _kind(hints[field.name])
            new = Hyperparameter(field.name, kind, choices, helps[field.name], {})
            known = found.setdefault(field.name, new)
            known.defaults[objective] = field.default
    return dict(sorted(found.items()))


def documented(class_: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass say of its fields: `name:   meaning`."""
    texts: dict[str, str] = {}
    for each in reversed(class_.__mro__):
        name = None
        for line in inspect.cleandoc(each.__doc__ or "").splitlines():
            if match := _LINE.match(line):
                name = match[1]
                texts[name] = match[2]
            elif name and line.startswith(" "):
                texts[name] += f" {line.strip()}"
            else:
                name = None
    return texts


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that the command line or the YAML file set."""
    return {name: values[name] for name in hyperparameters() if values.get(name) is not None}


def _aliases() -> set[str]:
    """Second names of an objective."""
    seen: set[type] = set()
    aliases = set()
    for name, class_ in OBJECTIVES.items():
        if class_ in seen:
            aliases.add(name)
        seen.add(class_)
    return aliases


def _kind(hint: Any) -> tuple[type, tuple[str, ...] | None]:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    if hint not in (float, int, str, bool):
        raise TypeError(f"{hint} cannot be given on a command line")
    return hint, None
