"""The ways of searching by name, and their options as text: what a command line needs to know.

An option is a keyword of the method's own function: its name, default and type are read from the
signature, what it does from the docstring. A new method is one line of `METHODS`.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.branching.tree import TokenTree
from tokenq.search.decoding import Decoding
from tokenq.search.results import SearchResults
from tokenq.search.target import Target

SHARED = (
    "max_new_tokens",
    "min_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop_strings",
    "eos_token_id",
    "batch_size",
)
"""Options of `Decoding` that texts can give; the others are Python objects."""

Kind = Literal["judge", "model", "function"]
"""What an argument is that a text can only name; whoever reads the text opens it."""

_OPENED: dict[Kind, str] = {
    "judge": "a judge, as tokenq judge names them",
    "model": "a model's name or folder",
    "function": "MODULE:FUNCTION",
}
_PLAIN = (bool, int, float, str)
_ABOUT = {
    "num_beams": "width of the beam: beginnings of responses that are kept at every step",
    "num_return_sequences": "responses that are given back",
    "seed": "of the random numbers; a prompt's own, whatever is searched beside it",
}
"""Of options whose names say it all to who reads the function."""


@dataclass(frozen=True)
class Option:
    """One option of a method.

    kinds:   types and values that a text may give
    many:    whether it takes several
    about:   what it does, one paragraph
    opened:  what its text names, for an argument that is no number or word
    """

    name: str
    default: Any
    kinds: tuple[Any, ...]
    many: bool
    about: str
    opened: Kind | None = None

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is inspect.Parameter.empty

    @property
    def accepted(self) -> str:
        """What may be given, in words."""
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true, false"}
        told = [words.get(kind, str(kind).lower()) for kind in self.kinds]
        if self.opened is not None:
            told.append(_OPENED[self.opened])
        return ", ".join(told)

    def is_value(self, value: Any) -> bool:
        """Whether a value stands for itself, and does not name what is to be opened."""
        return self.opened is None or value in self.kinds

    def read(self, text: str) -> Any:
        """The value that a text stands for. Raises UserError for one that it cannot be."""
        for kind in self.kinds:
            if kind is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if kind not in _PLAIN and text.lower() == str(kind).lower():
                return kind
        if self.opened is not None:
            return text
        for kind in (int, float, str):
            if kind in self.kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise UserError(f"{self.name} is {text!r}; accepted: {self.accepted}")


@dataclass(frozen=True)
class Method:
    """One way of searching.

    home:   `module:function` in this room
    about:  what it is for, half a line
    opened: its arguments that are objects: name -> what a text of them names
    search: of a method that guides another one: that one's name, whose options it takes too
    """

    name: str
    home: str
    about: str
    opened: Mapping[str, Kind] = field(default_factory=dict)
    search: str | None = None

    def searching(self, name: str) -> "Method":
        """The same method, guiding another search. Raises UserError for one that it cannot."""
        if self.search is None:
            return self
        if name not in _GUIDED:
            raise UserError(f"search is {name!r}; accepted: {', '.join(_GUIDED)}")
        return replace(self, search=name)

    @cached_property
    def function(self) -> Callable[..., SearchResults]:
        """The function itself."""
        module, _, name = self.home.partition(":")
        found: Callable[..., SearchResults] = getattr(
            importlib.import_module(f"tokenq.search.{module}"), name
        )
        return found

    @cached_property
    def options(self) -> dict[str, Option]:
        """All its options, its own before those that every search has."""
        types = get_type_hints(self.function)
        about = {**_ABOUT, **_told(self.function)}
        found: dict[str, Option] = {}
        for parameter in list(inspect.signature(self.function).parameters.values())[2:]:
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in SHARED:
                option = _option(
                    parameter.name, parameter.default, types[parameter.name], about, self.opened
                )
                if option is not None:
                    found[option.name] = option
        if self.search is not None:
            theirs = METHODS[self.search].options
            found |= {name: option for name, option in theirs.items() if name not in SHARED}
        return {**found, **self._shared(types)}

    def _shared(self, types: Mapping[str, Any]) -> dict[str, Option]:
        signature = inspect.signature(self.function).parameters
        about = documented(Decoding.__doc__ or "")
        found = {}
        for name, default, annotation in _decoding_fields():
            if name in signature and signature[name].default is not inspect.Parameter.empty:
                default = signature[name].default
            option = _option(name, default, types.get(name, annotation), about, {})
            assert option is not None
            found[name] = option
        return found

    @property
    def is_random(self) -> bool:
        """Whether it takes a seed."""
        return "seed" in self.options

    def check(
        self,
        vocabulary: int,
        options: Mapping[str, Any],
        *,
        reference: bool,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Raise UserError for options that the method will not take, with no model there.

        vocabulary: number of tokens of the models
        options:    as they were read; objects still by their names
        reference:  whether there will be one
        """
        plain = dict(options)
        beams = plain.get("num_beams", self.default("num_beams"))
        if beams is not None and beams > vocabulary:
            raise UserError(
                f"num_beams is {beams}; accepted: up to {vocabulary}, the size of the vocabulary"
            )
        for name, kind in self.opened.items():
            option = self.options[name]
            if option.required or (name in options and not option.is_value(options[name])):
                plain[name] = _Unopened(vocabulary) if kind == "model" else _told_nothing
        policy = {"policy": _Unopened(vocabulary)}
        alone = Target(policy, tokenizer, (), None)
        self.function(replace(alone, models={**policy, "reference": policy["policy"]}), [], **plain)
        if not reference:
            try:
                self.function(alone, [], **plain)
            except UserError as error:
                raise UserError(
                    f"method {self.name} with these options needs a reference; accepted: "
                    "--reference, what the policy's training started from"
                ) from error

    def default(self, name: str) -> Any:
        """An option's default, None where the method has no such option."""
        option = self.options.get(name)
        return None if option is None or option.required else option.default


class _Unopened:
    """A model of which only the number of tokens is known: without prompts, nobody opens it."""

    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def open(self, tree: TokenTree) -> Tensor:
        raise AssertionError("a model that only checks options was asked for probabilities")

    def read(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        raise AssertionError("a model that only checks options was asked for probabilities")

    def retain(self, tree: TokenTree) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""


def _told_nothing(*given: Any) -> list[float]:
    """Stands for a judge or a value that nobody asks."""
    return []


def method(name: str) -> Method:
    """The method of this name. Raises UserError, with what it may have meant."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name.replace("-", "_"), METHODS, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(METHODS)}"
    raise UserError(f"method is {name!r}; {hint}")


def methods_with(option: str) -> list[str]:
    """Names of the methods that have an option."""
    return [name for name, each in METHODS.items() if option in each.options]


def documented(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument: `name: words`, going on in indented lines."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        begun = re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*):\s+(\S.*)", line)
        if begun is not None:
            names = begun[1].split(", ")
            found |= dict.fromkeys(names, begun[2])
        elif names and line.startswith("  "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _told(function: Callable[..., Any]) -> dict[str, str]:
    """What a function's docstring says of its arguments, in plain words: where it refers to a class
    that has an argument of that name, what the class says of it."""
    found = {}
    for name, words in documented(function.__doc__ or "").items():
        for mark, path in re.findall(r"(:\w+:`~?([\w.]+)`)", words):
            home, _, short = path.rpartition(".")
            if ":class:" not in mark:
                words = words.replace(mark, short)
                continue
            holder = vars(importlib.import_module(home)) if home else function.__globals__
            theirs = documented(getattr(holder.get(short), "__doc__", None) or "")
            words = theirs.get(name, words.replace(mark, short))
        found[name] = words.replace("`", "")
    return found


def _decoding_fields() -> list[tuple[str, Any, Any]]:
    types = get_type_hints(Decoding)
    by_name = {each.name: each for each in fields(Decoding)}
    return [(name, by_name[name].default, types[name]) for name in SHARED]


def _option(
    name: str,
    default: Any,
    annotation: Any,
    about: Mapping[str, str],
    opened: Mapping[str, Kind],
) -> Option | None:
    """None for an argument that no text can give."""
    words = about.get(name, "").rstrip(".")
    kinds, many = _kinds(annotation)
    if name in opened:
        named = tuple(kind for kind in kinds if kind not in _PLAIN)
        return Option(name, default, named, False, words, opened[name])
    if kinds and NoneType in get_args(annotation) and default is not None and not many:
        kinds = (*kinds, None)
    return Option(name, default, kinds, many, words) if kinds else None


def _kinds(annotation: Any) -> tuple[tuple[Any, ...], bool]:
    """The plain types and literal values in an annotation, and whether it takes several."""
    origin = get_origin(annotation)
    if annotation in _PLAIN:
        return (annotation,), False
    if origin is Literal:
        return get_args(annotation), False
    if origin in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(annotation) if part is not NoneType]
        found = dict.fromkeys(kind for kinds, _ in parts for kind in kinds)
        return tuple(found), any(many for _, many in parts)
    if origin in (Sequence, SequenceType, list, tuple):
        kinds, _ = _kinds(get_args(annotation)[0])
        return kinds, bool(kinds)
    return (), False


_GUIDED = ("greedy", "sample", "beam")

METHODS: dict[str, Method] = {
    each.name: each
    for each in [
        Method("greedy", "sampling:greedy", "the likeliest token at every step"),
        Method("sample", "sampling:sample", "independent samples"),
        Method("beam", "beam:beam_search", "the likeliest response, or of greatest log-ratio"),
        Method(
            "stochastic_beam",
            "stochastic_beam:stochastic_beam_search",
            "different samples: drawn without replacement",
        ),
        Method(
            "diverse_beam",
            "diverse_beam:diverse_beam_search",
            "beams in groups that keep away from each other's tokens",
        ),
        Method(
            "best_of_n",
            "best_of:best_of_n",
            "the best of many samples, by implicit reward, likelihood or a judge",
            {"judge": "judge"},
        ),
        Method(
            "chunk_beam",
            "chunk_beam:chunk_beam_search",
            "a beam over sampled stretches of text, kept by log-ratio or your own value",
            {"base": "model", "value": "function"},
        ),
        Method(
            "best_first",
            "a_star:best_first",
            "always go on with the most promising beginning of all",
            {"value": "function"},
        ),
        Method(
            "mcts",
            "tree_search:mcts",
            "a tree searched by value and visits (PUCT), with the log-ratio or your own value",
            {"value": "function"},
        ),
        Method(
            "alignment_aware",
            "guided:alignment_aware",
            "the token that training raised most, among plausible ones",
            search="greedy",
        ),
        Method(
            "proxy_tuning",
            "guided:proxy_tuning",
            "a small pair guides a larger model, or its own reference further",
            {"base": "model"},
            search="greedy",
        ),
        Method(
            "reward_guided",
            "guided:reward_guided",
            "a judge's score of every candidate is added to its log-probability",
            {"reward": "judge"},
            search="greedy",
        ),
        Method(
            "value_guided",
            "guided:value_guided",
            "your own value of every candidate is added to its log-probability",
            {"value": "function"},
            search="greedy",
        ),
    ]
}
"""Every way of searching, the simple ones first."""
