"""Searches under a guidance, by their usual names; each is a search of `guidance=` and no more."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenq.errors import UserError
from tokenq.models.branching.branches import POLICY, REFERENCE, Guidance
from tokenq.models.branching.shortened import same_length
from tokenq.models.pair import Pair, load_pair
from tokenq.models.vocabulary import check_rows, check_same_vocabulary
from tokenq.search.beam import beam_search
from tokenq.search.guidance import (
    BASE,
    AlignmentAware,
    ProxyTuning,
    RewardGuided,
    TextReward,
    ValueGuided,
)
from tokenq.search.prefixes import PrefixFunction
from tokenq.search.results import SearchResults
from tokenq.search.sampling import greedy, sample
from tokenq.search.target import Given, Prompt, Target

SEARCHES: dict[str, Callable[..., SearchResults]] = {
    "greedy": greedy,
    "sample": sample,
    "beam": beam_search,
}


def proxy_tuning(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    base: Any = None,
    strength: float = 1.0,
    max_new_tokens: int = 64,
    *,
    search: str = "greedy",
    **options: Any,
) -> SearchResults:
    """Write with `base * (policy / reference) ** strength`: a small pair guides a large model.

    pair_or_model: the pair that guides; or {"policy": ..., "reference": ...}, "base" among them or
                   given apart, for prompts that are lists of token ids
    prompts:       texts, lists of messages, or lists of token ids
    base:          the model that is guided, loaded, or a pair whose policy it is; None: the pair's
                   own reference (decoding-time realignment: `strength` is beta over the new beta)
    strength:      see :class:`~tokenq.search.guidance.ProxyTuning`; 0 is the base
    search:        "greedy", "sample" or "beam"
    options:       those of the search, and of :class:`Decoding`

    `model_logps` of a result has "policy", "reference" and "base"; `logps` are those of the guided
    law. Raises UserError, before any model runs, for models that do not share a vocabulary; heads
    of different lengths are accepted where both tokenizers are known, as their rest is padding.
    """
    if base is None:
        named = pair_or_model.keys() if isinstance(pair_or_model, dict) else ()
        guidance = ProxyTuning(strength, BASE if BASE in named else REFERENCE)
        return _searched(pair_or_model, prompts, guidance, search, max_new_tokens, options)
    guidance = ProxyTuning(strength)
    function = _search_of(search)
    target = with_base(Target.of(pair_or_model, with_reference=True), base)
    return function(target, prompts, max_new_tokens=max_new_tokens, guidance=guidance, **options)


def alignment_aware(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    alpha: float = 0.1,
    max_new_tokens: int = 64,
    *,
    search: str = "greedy",
    **options: Any,
) -> SearchResults:
    """Write the token of greatest `policy / reference` among plausible ones (arXiv 2509.26169).

    pair_or_model: a pair with a reference, or {"policy": ..., "reference": ...}
    prompts:       texts, lists of messages, or lists of token ids
    alpha:         only tokens of at least so many times the probability of the policy's likeliest
    search:        "greedy" is the paper's; "sample" or "beam": see
                   :class:`~tokenq.search.guidance.AlignmentAware`
    options:       those of the search, and of :class:`Decoding`
    """
    return _searched(pair_or_model, prompts, AlignmentAware(alpha), search, max_new_tokens, options)


def reward_guided(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    reward: TextReward,
    weight: float = 1.0,
    top_k: int = 10,
    max_new_tokens: int = 64,
    *,
    search: str = "greedy",
    **options: Any,
) -> SearchResults:
    """Write with `policy * exp(weight * reward)`, the reward judging each candidate (ARGS).

    pair_or_model: a pair
    prompts:       texts, lists of messages, or lists of token ids
    reward:        takes prompts and texts of responses so far, gives one number each, such as a
                   judge of `tokenq.judges`; all candidates of a step come in one call
    weight:        nats for one unit of the reward
    top_k:         so many of the likeliest tokens are judged, and only these may come
    search:        "greedy", "sample" or "beam"
    options:       those of the search, and of :class:`Decoding`
    """
    guidance = RewardGuided(reward, weight, top_k)
    return _searched(pair_or_model, prompts, guidance, search, max_new_tokens, options)


def value_guided(
    pair_or_model: Given,
    prompts: Sequence[Prompt],
    value: PrefixFunction,
    strength: float = 1.0,
    top_k: int | None = 10,
    max_new_tokens: int = 64,
    *,
    base: str = POLICY,
    search: str = "greedy",
    **options: Any,
) -> SearchResults:
    """Write with `base * exp(strength * value(prefix))`: critic-guided, controlled decoding.

    pair_or_model: a pair, a model, or {"policy": ..., ...}
    prompts:       texts, lists of messages, or lists of token ids
    value:         takes prefixes (`prompt_ids`, `response_ids`, `text`), gives one number each; all
                   candidates of a step come in one call
    strength:      nats for one unit of the value
    top_k:         so many of the likeliest tokens are valued, and only these may come; None: all
    base:          name of the model that is guided: "policy" or "reference"
    search:        "greedy", "sample" or "beam"
    options:       those of the search, and of :class:`Decoding`
    """
    guidance = ValueGuided(value, strength, top_k, base)
    return _searched(pair_or_model, prompts, guidance, search, max_new_tokens, options)


def with_base(target: Target, base: Any) -> Target:
    """The target with the model that is to be guided read beside its own, as "base".

    base: a loaded model, a pair whose policy it is, or a step model

    Raises UserError, naming both, for models that do not share a vocabulary.
    """
    model, name, tokenizer = _opened(base, find_tokenizer=target.tokenizer is not None)
    ours = target.pair.policy_name if target.pair is not None else POLICY
    words = target.tokenizer
    if words is not None and tokenizer is not None:
        check_same_vocabulary(words, tokenizer, ours, name)
    joined = target.with_models(**{BASE: model})
    rows, base_rows = target.vocabulary, joined.models[BASE].vocabulary
    if rows == base_rows:
        return joined
    if words is None or tokenizer is None:
        raise UserError(
            f"'{ours}' scores {rows} tokens and '{name}' {base_rows}, and without both tokenizers "
            "it cannot be told whether the difference is padding; accepted: pairs from load_pair, "
            "or models of one size"
        )
    check_rows(words, min(rows, base_rows), ours if rows < base_rows else name)
    return replace(joined, models=same_length(joined.models))


def _opened(base: Any, find_tokenizer: bool) -> tuple[Any, str, PreTrainedTokenizerBase | None]:
    """The model, how it is called, and its tokenizer where that is known or can be found."""
    if isinstance(base, str):
        raise UserError(
            f"base is {base!r}; accepted: a loaded model, or load_pair({base!r}), which knows its "
            "tokenizer too"
        )
    if find_tokenizer and isinstance(base, PreTrainedModel | PeftModel):
        base = load_pair(base)
    if isinstance(base, Pair):
        return base.policy, base.policy_name, base._tokenizer
    return base, BASE, None


def _search_of(name: str) -> Callable[..., SearchResults]:
    if name not in SEARCHES:
        raise UserError(f"search is {name!r}; accepted: {', '.join(SEARCHES)}")
    return SEARCHES[name]


def _searched(
    given: Given,
    prompts: Sequence[Prompt],
    guidance: Guidance,
    search: str,
    max_new_tokens: int,
    options: dict[str, Any],
) -> SearchResults:
    function = _search_of(search)
    return function(given, prompts, max_new_tokens=max_new_tokens, guidance=guidance, **options)
