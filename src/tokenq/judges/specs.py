"""Judges by name: `KIND:SUBJECT?option=value&...`, checked before anything is loaded."""

import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tokenq.errors import UserError
from tokenq.judges.comparisons import ComparingJudge, ScoringJudge

Judge = ScoringJudge | ComparingJudge


@dataclass(frozen=True)
class Opened:
    """A judge that can be asked, and what decides its verdicts, in JSON types."""

    judge: Judge
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What judges are opened with.

    answers:       the right answers by prompt key, of the column that the judge named
    device, dtype: of models
    token_budget:  input tokens of one forward
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    token_budget: int = 4096


@dataclass(frozen=True)
class NamedJudge:
    """A judge that was named and checked; :attr:`open` loads it.

    name:   as it was written, without options that only say how it is run
    tie:    scores that differ by no more are a tie
    column: of the right answers that it needs, or None
    """

    name: str
    tie: float
    column: str | None
    open: Callable[[Resources], Opened]


@dataclass(frozen=True)
class _Kind:
    """How a kind of judge is written, what it is, its options, and how one is made ready.

    running: options that do not touch the verdicts
    literal: all that stands behind the colon is the subject, question marks too
    """

    written: str
    about: str
    make: Callable[["_Spec"], Callable[[Resources], Opened]]
    options: tuple[str, ...] = ("tie",)
    running: tuple[str, ...] = ()
    literal: bool = False


@dataclass(frozen=True)
class _Spec:
    text: str
    subject: str
    options: Mapping[str, str]

    def error(self, problem: str) -> UserError:
        return UserError(f"judge '{self.text}': {problem}")

    def number(self, name: str, default: float, low: float = 0.0) -> float:
        """An option that is a number of at least `low`."""
        given = self.options.get(name, default)
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise self.error(f"{name} is {given}; accepted: a number from {low:g} up")
        return value

    def whole(self, name: str, default: int, low: int) -> int:
        """An option that is a whole number of at least `low`."""
        value = self.number(name, default, low)
        if value != int(value):
            raise self.error(f"{name} is {value}; accepted: a whole number from {low} up")
        return int(value)


def parse_judge(text: str) -> NamedJudge:
    """Read a judge's name, such as `reward:my-model?tie=0.1` (see :data:`KINDS`).

    Raises UserError for a kind or an option that is not known, a value that cannot work, a function
    that is not there, and a model that is none, as far as small files tell.
    """
    name, colon, rest = text.partition(":")
    if not colon and name.partition("?")[0] in KINDS:
        name, mark, query = name.partition("?")
        rest = mark + query
    if name not in KINDS:
        raise UserError(f"judge '{text}' is of no known kind; accepted: {accepted_judges()}")
    kind = KINDS[name]
    subject, _, query = (rest, "", "") if kind.literal else rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    spec = _Spec(text, subject, options)
    if bool(subject) != (":" in kind.written) and name not in ("exact", "number"):
        raise spec.error(f"accepted: {kind.written}")
    unknown = sorted(set(options) - {*kind.options, *kind.running})
    if unknown:
        listed = ", ".join((*kind.options, *kind.running))
        raise spec.error(f"has no option '{unknown[0]}'; accepted: {listed}")
    column = (subject or "answer") if name in ("exact", "number") else None
    return NamedJudge(_shortened(spec, kind), spec.number("tie", 0.0), column, kind.make(spec))


def _shortened(spec: _Spec, kind: _Kind) -> str:
    if not set(spec.options) & set(kind.running):
        return spec.text
    kept = [f"{name}={spec.options[name]}" for name in spec.options if name not in kind.running]
    return spec.text.partition("?")[0] + ("?" + "&".join(kept) if kept else "")


def accepted_judges() -> str:
    """All kinds, as they are written."""
    return ", ".join(kind.written for kind in KINDS.values())


def _ready(judge: Judge, **identity: Any) -> Callable[[Resources], Opened]:
    return lambda resources: Opened(judge, identity)


def _gold(name: str) -> Callable[[_Spec], Callable[[Resources], Opened]]:
    def make(spec: _Spec) -> Callable[[Resources], Opened]:
        from tokenq.judges import gold

        return _ready(getattr(gold, name))

    return make


def _contains(spec: _Spec) -> Callable[[Resources], Opened]:
    from tokenq.judges.gold import Contains

    return _ready(Contains(spec.subject))


def _matches(spec: _Spec) -> Callable[[Resources], Opened]:
    from tokenq.judges.gold import Matches

    try:
        return _ready(Matches(re.compile(spec.subject)))
    except re.error as error:
        raise spec.error(f"is no regular expression ({error})") from error


def _right_answer(name: str) -> Callable[[_Spec], Callable[[Resources], Opened]]:
    def make(spec: _Spec) -> Callable[[Resources], Opened]:
        from tokenq.judges import gold

        def open_judge(resources: Resources) -> Opened:
            if not resources.answers:
                raise spec.error(
                    f"no row has the field '{spec.subject or 'answer'}'; accepted: the right "
                    "answers in the responses or the baseline"
                )
            return Opened(getattr(gold, name)(resources.answers))

        return open_judge

    return make


def _function(spec: _Spec) -> Callable[[Resources], Opened]:
    module_name, _, name = spec.subject.rpartition(":")
    if not module_name:
        raise spec.error("accepted: python:MODULE:FUNCTION")
    if "" not in sys.path:
        sys.path.append("")  # as `python -m` has it: modules of the current folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise spec.error(f"{error}; accepted: a module that can be imported from here") from error
    judge = getattr(module, name, None)
    if not callable(judge) and not isinstance(judge, ComparingJudge):
        raise spec.error(
            f"{module_name} has no function {name!r}; accepted: one that turns prompts and "
            "responses into scores"
        )
    file = inspect.getsourcefile(module)
    source = Path(file).read_bytes() if file else b""
    return _ready(judge, source=sha256(source).hexdigest())


def _reward_model(spec: _Spec) -> Callable[[Resources], Opened]:
    from tokenq.models.outcome import check_outcome_model

    label = spec.whole("label", 0, 0) if "label" in spec.options else None
    check_outcome_model(spec.subject)

    def open_judge(resources: Resources) -> Opened:
        from tokenq.judges.reward_model import RewardModel
        from tokenq.models.fingerprint import weight_hash
        from tokenq.models.outcome import load_outcome_model

        model, tokenizer = load_outcome_model(
            spec.subject, device=resources.device, dtype=resources.dtype
        )
        judge = RewardModel(
            model, tokenizer, label=label, name=spec.text, token_budget=resources.token_budget
        )
        return Opened(judge, {"weights": weight_hash(model), "label": label})

    return open_judge


def _implicit_reward(spec: _Spec) -> Callable[[Resources], Opened]:
    from tokenq.models.checkpoint import inspect as inspect_model

    beta, reference = spec.number("beta", 0.1), spec.options.get("reference")
    if beta == 0:
        raise spec.error("beta is 0; accepted: a number above 0")
    base = inspect_model(spec.subject).base
    if reference is not None:
        inspect_model(reference)
    elif base is None:
        raise spec.error(
            "has no reference; accepted: ?reference=, what its preference training started from"
        )

    def open_judge(resources: Resources) -> Opened:
        from tokenq.judges.implicit_reward import ImplicitReward
        from tokenq.models.fingerprint import weight_hash
        from tokenq.models.pair import load_pair, reference_of

        pair = load_pair(spec.subject, reference, device=resources.device, dtype=resources.dtype)
        judge = ImplicitReward(pair, beta=beta, name=spec.text, token_budget=resources.token_budget)
        identity = {
            "policy": weight_hash(pair.policy),
            "reference": weight_hash(reference_of(pair)),
            "beta": beta,
        }
        return Opened(judge, identity)

    return open_judge


def _endpoint(spec: _Spec) -> Callable[[Resources], Opened]:
    from tokenq.judges.endpoint import KEY, TEMPLATE, Endpoint

    if "base_url" not in spec.options:
        raise spec.error(
            "has no base_url; accepted: ?base_url=http://localhost:8000/v1 or the like"
        )
    try:
        judge = Endpoint(
            spec.subject,
            spec.options["base_url"],
            template=_template(spec.options["template"])
            if "template" in spec.options
            else TEMPLATE,
            key_env=spec.options.get("key_env", KEY),
            concurrency=spec.whole("concurrency", 8, 1),
            timeout=spec.number("timeout", 60.0, 0.001),
            retries=spec.whole("retries", 5, 0),
            max_tokens=spec.whole("max_tokens", 512, 1),
            body=_body(spec.options.get("body", "{}")),
        )
    except UserError as error:
        raise spec.error(str(error)) from error
    return _ready(judge, **judge.identity)


def _template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template {path}: cannot be read ({error})") from error


def _body(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"body is no JSON ({error}); accepted: an object of fields") from error
    if not isinstance(found, dict):
        raise UserError("body is no JSON object; accepted: an object of fields")
    return found


KINDS: dict[str, _Kind] = {
    "lexicon": _Kind("lexicon", "mean valence of its words", _gold("lexicon_valence")),
    "length": _Kind("length", "the longer, a control", _gold("length")),
    "contains": _Kind("contains:TEXT", "holds the text", _contains, (), literal=True),
    "regex": _Kind("regex:PATTERN", "the pattern matches", _matches, (), literal=True),
    "exact": _Kind("exact[:FIELD]", "is the row's answer", _right_answer("ExactMatch")),
    "number": _Kind(
        "number[:FIELD]", "its last number is the answer's", _right_answer("NumberMatch")
    ),
    "python": _Kind("python:MODULE:FUNCTION", "your own scores", _function),
    "reward": _Kind("reward:MODEL", "a reward model's score", _reward_model, ("tie", "label")),
    "implicit": _Kind(
        "implicit:POLICY",
        "beta * log(policy / reference) of a pair",
        _implicit_reward,
        ("tie", "reference", "beta"),
    ),
    "endpoint": _Kind(
        "endpoint:MODEL",
        "a chat model asked over HTTP",
        _endpoint,
        ("base_url", "template", "max_tokens", "body"),
        running=("key_env", "concurrency", "timeout", "retries"),
    ),
}
"""Kinds of judge. With `?tie=X`, scores that differ by no more are a tie."""
