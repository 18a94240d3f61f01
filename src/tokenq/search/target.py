"""What is searched: one model or several in step, how their tokens read, and where texts end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokenq.data.encoding import encode_prompt
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, REFERENCE, Branches, Guidance
from tokenq.models.branching.cached import step_model
from tokenq.models.branching.shortened import same_length
from tokenq.models.branching.step_model import StepModel, end_tokens
from tokenq.models.forward import causal_lm
from tokenq.models.logps import token_logps
from tokenq.models.packing import Ids
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.reference import AdapterOff, scoring
from tokenq.search.decoding import Decoding, Rules

Prompt = str | Messages | Ids
Given = Any
"""A pair, a model (transformers, PEFT, adapter off), a :class:`StepModel` (its `eos_token_ids`, if
it has any, end responses), or names -> models."""


@dataclass(frozen=True, eq=False)
class Target:
    """Models that are searched in step.

    models:    name -> model: "policy", and "reference" or others where the search reads them
    tokenizer: None for bare models, which take and give token ids
    eos:       tokens that end a response
    context:   most tokens that all models can read, or None
    pair:      the pair that was given, if it was one
    reference: scores what was found, where the search itself does not read it; or None
    """

    models: Mapping[str, StepModel]
    tokenizer: PreTrainedTokenizerBase | None
    eos: tuple[int, ...]
    context: int | None
    pair: Pair | None = None
    reference: "nn.Module | AdapterOff | None" = None

    @classmethod
    def of(cls, given: Given, *, with_reference: bool = False) -> "Target":
        """Make a target of what a user has.

        with_reference: the search needs the reference in step

        Raises UserError where there is no reference but one is needed.
        """
        if isinstance(given, Target):
            return given.reading([REFERENCE]) if with_reference else given
        if isinstance(given, Pair):
            return cls._of_pair(given, with_reference)
        named = given if isinstance(given, Mapping) else {POLICY: given}
        if not named:
            raise UserError("no model was given; accepted: {'policy': ..., 'reference': ...}")
        if with_reference and REFERENCE not in named:
            raise UserError(
                "this score needs a reference; accepted: a pair, or {'policy': ..., 'reference': "
                "...}"
            )
        modules = [each for each in named.values() if isinstance(each, nn.Module | AdapterOff)]
        limits = [_context(each) for each in modules]
        first = named[POLICY] if POLICY in named else next(iter(named.values()))
        return cls(
            models={name: _step_model(each) for name, each in named.items()},
            tokenizer=None,
            eos=_eos(first),
            context=min((limit for limit in limits if limit), default=None),
        )

    @classmethod
    def _of_pair(cls, pair: Pair, with_reference: bool) -> "Target":
        models: dict[str, StepModel] = {POLICY: step_model(pair.policy)}
        if with_reference:
            if pair.reference is None:
                raise UserError(
                    f"'{pair.policy_name}' has no reference, which this score needs; accepted: "
                    "reference= (--reference), what its preference training started from"
                )
            models[REFERENCE] = step_model(pair.reference)
        tokenizer = pair._tokenizer
        return cls(
            models=same_length(models),
            tokenizer=tokenizer,
            eos=_eos(pair.policy, tokenizer),
            context=context_length(pair),
            pair=pair,
            reference=None if with_reference else pair.reference,
        )

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the models score."""
        return next(iter(self.models.values())).vocabulary

    def with_models(self, **models: Any) -> "Target":
        """The same target with further models in step, by name."""
        added = {name: _step_model(each) for name, each in models.items()}
        modules = [each for each in models.values() if isinstance(each, nn.Module | AdapterOff)]
        limits = [self.context, *map(_context, modules)]
        return replace(
            self,
            models={**self.models, **added},
            context=min((limit for limit in limits if limit), default=None),
        )

    def reading(self, names: Sequence[str]) -> "Target":
        """The same target with at least these models in step; a pair brings its reference.

        Raises UserError for a model that there is not.
        """
        target = self
        if REFERENCE in names and REFERENCE not in self.models and self.pair is not None:
            models = {**self.models, REFERENCE: step_model(reference_of(self.pair))}
            target = replace(self, models=same_length(models), reference=None)
        missing = [name for name in names if name not in target.models]
        if missing:
            raise UserError(
                f"the search reads a model '{missing[0]}', but has {', '.join(target.models)}; "
                "accepted: a pair with a reference, or {'policy': ..., 'reference': ..., 'base': "
                "...} with all that are read"
            )
        return target

    def rules(self, decoding: Decoding) -> Rules:
        """Where responses of this target end under `decoding`."""
        for words in decoding.bad_words_ids:
            self._check_tokens("bad_words_ids", words)
        given: Any = decoding.eos_token_id
        if given is None:
            known = tuple(token for token in self.eos if 0 <= token < self.vocabulary)
            return Rules(decoding, known, self.tokenizer)
        try:
            eos = (index(given),) if hasattr(given, "__index__") else tuple(map(index, given))
        except TypeError:
            raise UserError(
                f"eos_token_id is {given!r:.60}; accepted: a token or several"
            ) from None
        self._check_tokens("eos_token_id", eos)
        return Rules(decoding, eos, self.tokenizer)

    def _check_tokens(self, name: str, tokens: Ids) -> None:
        wrong = next((token for token in tokens if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise UserError(f"{name} holds {wrong}; accepted: 0 to {self.vocabulary - 1}")

    def encode(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """Token ids of the prompts. Raises UserError for one that is empty or too long."""
        if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Mapping | int)):
            raise UserError("prompts is one prompt; accepted: a list of prompts")
        encoded = []
        for number, prompt in enumerate(prompts):
            ids = self._ids(number, prompt)
            if not ids:
                raise UserError(f"prompt {number} has no tokens; accepted: at least one")
            if self.context is not None and len(ids) + max_new_tokens > self.context:
                raise UserError(
                    f"prompt {number} has {len(ids)} tokens, which with {max_new_tokens} new ones "
                    f"is more than the {self.context} that the models read; accepted: up to "
                    f"{self.context - max_new_tokens}, or fewer new tokens"
                )
            encoded.append(ids)
        return encoded

    def open(self, prompts: Sequence[Ids], guidance: Guidance | None = None) -> Branches:
        """Branches behind prompts; to be used as a context manager."""
        return Branches(self.models, prompts, guidance)

    def ref_logps(
        self, prompts: Sequence[Ids], responses: Sequence[Ids]
    ) -> list[Tensor] | list[None]:
        """What the reference, if it is not read in step, says of found responses: [T] each."""
        if self.reference is None or not responses:
            return [None] * len(responses)
        with scoring(self.reference) as reference:
            return [each.float().cpu() for each in token_logps(reference, prompts, responses)]

    def _ids(self, number: int, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str) or _is_messages(prompt):
            if self.tokenizer is None:
                raise UserError(
                    f"prompt {number} is text, and a bare model has no tokenizer; accepted: lists "
                    "of token ids, or a pair from load_pair"
                )
            return encode_prompt(self.tokenizer, prompt)
        try:
            ids = [index(token) for token in prompt]  # type: ignore[arg-type]
        except TypeError:
            raise UserError(
                f"prompt {number} is {prompt!r:.60}; accepted: a text, a list of messages or a "
                "list of token ids"
            ) from None
        # A tabular model reads the numbers of its prompts, of which there may be more than tokens.
        size = getattr(next(iter(self.models.values())), "readable", self.vocabulary)
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise UserError(f"prompt {number} holds token {wrong}; accepted: 0 to {size - 1}")
        return ids


def _is_messages(prompt: Prompt) -> TypeGuard[Messages]:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Mapping)


def _step_model(given: Any) -> StepModel:
    if isinstance(given, nn.Module | AdapterOff):
        return step_model(given)
    if isinstance(given, Pair):
        raise UserError("a pair is not one model; accepted: pair.policy or pair.reference")
    if not hasattr(given, "vocabulary") or not hasattr(given, "read"):
        raise UserError(
            f"{given!r:.60} is not a model; accepted: a pair from load_pair, a loaded model, or "
            "models by name"
        )
    model: StepModel = given
    return model


def _inner(model: nn.Module | AdapterOff) -> Any:
    return causal_lm(model.peft_model if isinstance(model, AdapterOff) else model)


def _eos(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """The end tokens of the model's generation settings, its configuration, or the tokenizer."""
    if not isinstance(model, nn.Module | AdapterOff):
        return tuple(getattr(model, "eos_token_ids", ()))
    known = end_tokens(_inner(model))
    if known or tokenizer is None or tokenizer.eos_token_id is None:
        return known
    return (int(tokenizer.eos_token_id),)


def _context(model: nn.Module | AdapterOff) -> int | None:
    limit: int | None = getattr(
        _inner(model).config.get_text_config(), "max_position_embeddings", None
    )
    return limit
