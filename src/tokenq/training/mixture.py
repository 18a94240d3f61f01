"""The objective of a run: one or several weighted terms, made from the configuration by name."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from tokenq.errors import UserError
from tokenq.objectives import OBJECTIVES
from tokenq.objectives.base import Need
from tokenq.training.config import PreferenceConfig
from tokenq.training.scores import VIEWS, accepted_rows

ARGUMENTS = ("beta", "label_smoothing")
"""Hyper-parameters that have an argument of their own; the others stand in `objective_args`."""


@dataclass(frozen=True)
class Term:
    """One objective of a mixture: `weight * objective(batch)`."""

    name: str
    objective: Any
    weight: float


@dataclass(frozen=True)
class Mixture:
    """Weighted sum of objectives, each a mean over its own terms (pairs, tokens)."""

    terms: tuple[Term, ...]

    @classmethod
    def from_config(cls, config: PreferenceConfig) -> "Mixture":
        """Build the objectives named by `loss_type`; raises UserError for names and values."""
        weights = config.loss_weights or [1.0] * len(config.loss_type)
        extra = config.objective_args or {}
        if not isinstance(extra, dict):
            raise UserError(f"objective_args: {extra!r} is not a JSON object")
        classes = [_objective_class(name) for name in config.loss_type]
        known = {field.name for cls_ in classes for field in dataclasses.fields(cls_)}
        if unknown := sorted(set(extra) - known):
            raise UserError(
                f"objective_args: {unknown[0]!r} is no hyper-parameter of "
                f"{', '.join(config.loss_type)}; accepted: {', '.join(sorted(known))}"
            )
        if config.label_smoothing and "label_smoothing" not in known:
            raise UserError(
                f"label_smoothing: is no hyper-parameter of {', '.join(config.loss_type)}; "
                "accepted: 0 or unset"
            )
        return cls(
            tuple(
                Term(name, _instance(name, class_, config, extra), weight)
                for name, class_, weight in zip(config.loss_type, classes, weights, strict=True)
            )
        )

    @property
    def needs(self) -> frozenset[Need]:
        """All that any term needs beside the policy's log-probs."""
        return frozenset().union(*(term.objective.needs for term in self.terms))

    @property
    def needs_reference(self) -> bool:
        """True if any term is measured against a reference."""
        return "reference" in self.needs

    def asking_for(self, need: Need) -> list[str]:
        """Names of the terms that need it."""
        return [term.name for term in self.terms if need in term.objective.needs]

    @property
    def couples_rows(self) -> bool:
        """True if a term of some objective depends on several rows of the batch."""
        return any(term.objective.couples_rows for term in self.terms)

    def check_data(self, kind: str, source: str) -> None:
        """Raise UserError if rows of `kind` lack what a term learns from."""
        for term in self.terms:
            if (term.objective.kind, kind) not in VIEWS:
                accepted = accepted_rows(term.objective.kind)
                raise UserError(
                    f"{source}: holds {kind} rows, but loss_type {term.name} learns from "
                    f"{' or '.join(accepted)} rows"
                )

    def response_columns(self, kind: str) -> tuple[str, ...]:
        """Columns of prepared `kind` rows whose tokens the terms look at."""
        if kind == "ranked":
            return ("completions_ids",)
        if kind != "preference":
            return ("completion_ids",)
        if all(term.objective.kind == "sft" for term in self.terms):
            return ("chosen_ids",)
        return ("chosen_ids", "rejected_ids")


def _objective_class(name: str) -> type:
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"loss_type: {name!r} is unknown; {hint}accepted: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _instance(name: str, class_: type, config: PreferenceConfig, extra: dict[str, Any]) -> Any:
    names = [field.name for field in dataclasses.fields(class_)]
    given = {key: getattr(config, key) for key in ARGUMENTS if key in names}
    values = {key: value for key, value in given.items() if value is not None}
    values |= {key: extra[key] for key in names if key in extra}
    try:
        return class_(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"loss_type {name}: {error}") from error
