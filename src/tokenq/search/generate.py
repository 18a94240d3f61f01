"""Searches inside `model.generate(custom_generate=...)` of `transformers`.

`generate` reads its own arguments, prepares processors and ends, and hands over token ids; the
search answers in the shape that `generate` would have returned.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput

from tokenq.errors import UserError
from tokenq.models.forward import causal_lm
from tokenq.models.pair import Pair
from tokenq.search.beam import beam_search
from tokenq.search.results import SearchResult, SearchResults
from tokenq.search.sampling import greedy, sample
from tokenq.search.target import Target

_BLIND = (
    NoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
"""Processors that do the same however much padding stands before the prompt."""

_REFUSED = (PrefixConstrainedLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)
"""Processors that must know which row of the batch they are shown."""

_USUAL = {"attention_mask", "position_ids", "past_key_values", "cache_position", "use_cache"}
_USUAL |= {"logits_to_keep", "token_type_ids"}
"""What `generate` hands over beside the token ids of a text, and what a search makes by itself."""

Search = Callable[..., SearchResults]


def generate_with(
    search: str | Search = "beam", *, pair: Pair | None = None, **options: Any
) -> Callable[..., Any]:
    """Return a decoding loop for `model.generate(custom_generate=...)`.

    search:  "beam" (`num_beams`, `length_penalty`, `early_stopping` as given to `generate`),
             "greedy", "sample" (`do_sample`, `temperature`, `top_k`, `top_p`, ... as given to
             `generate`), or any function of this room that takes models and prompts
    pair:    the model that generates and its reference: for log-ratios, guidance by the pair, texts
    options: further keywords of the search, such as `score="log_ratio"`, `guidance=`, `seed=`, and
             `stop_strings=`, which `generate` cannot hand over

    From `generate` come the prompts (padded left), new tokens at most and at least, end and padding
    tokens, `num_return_sequences`, and all processors; `return_dict_in_generate=True` gives
    `sequences` and `sequences_scores`, not the `scores` of each step. As everywhere in this room
    processors are shown log-probabilities. What `generate` asks for and a search cannot give is
    refused: UserError.
    """
    if isinstance(search, str) and search not in _NAMED:
        raise UserError(f"search is {search!r}; accepted: {', '.join(_NAMED)}, or a function")
    taken = sorted(options.keys() & {"max_new_tokens", "num_beams", "num_return_sequences"})
    if isinstance(search, str) and taken:
        raise UserError(f"{taken[0]} is an option of generate; accepted: generate({taken[0]}=...)")
    return _Loop(search, pair, options)


@dataclass(frozen=True)
class _Loop:
    """What `generate` calls in place of its own decoding loop."""

    search: str | Search
    pair: Pair | None
    options: Mapping[str, Any]

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        """Answer `input_ids` [B * copies, L]; sequences are [B * num_return_sequences, L + T]."""
        config: Any = generation_config
        _check(model, stopping_criteria, config, model_kwargs)
        copies = max(config.num_beams or 1, config.num_return_sequences or 1)
        ids = input_ids[::copies]
        padding = _padding(ids, model_kwargs.get("attention_mask"), copies)
        prompts = [row[start:].tolist() for row, start in zip(ids, padding, strict=True)]
        named = _NAMED[self.search](config) if isinstance(self.search, str) else (self.search, {})
        function, own = named
        decoding = {
            "max_new_tokens": int(config.max_length) - ids.shape[1],
            "eos_token_id": _ends(config),
            **own,
            **self.options,
        }
        rows: list[list[SearchResult]] = [[] for _ in prompts]
        pad = _pad_token(config)
        for missing, numbers in _groups(padding, logits_processor).items():
            processors = _processors(logits_processor, missing, pad)
            found = function(
                self._target(model),
                [prompts[number] for number in numbers],
                logits_processor=processors,
                **decoding,
            )
            for number, results in zip(numbers, found, strict=True):
                rows[number] = results[: config.num_return_sequences or 1]
        return _answer(ids, rows, _fill(config), config)

    def _target(self, model: PreTrainedModel) -> Any:
        if self.pair is None:
            return Target.of(model)
        if causal_lm(self.pair.policy) is not causal_lm(model):
            raise UserError(
                f"the pair's policy is '{self.pair.policy_name}', another model than the one that "
                "generates; accepted: pair.policy.generate(...)"
            )
        return self.pair


def _beam(config: Any) -> tuple[Search, dict[str, Any]]:
    if config.do_sample:
        raise UserError(
            "do_sample is True; accepted: False for beam search, or generate_with('sample')"
        )
    return beam_search, {
        "num_beams": config.num_beams or 1,
        "length_penalty": config.length_penalty,
        "early_stopping": config.early_stopping,
        "num_return_sequences": config.num_return_sequences or 1,
    }


def _greedy(config: Any) -> tuple[Search, dict[str, Any]]:
    if config.do_sample or (config.num_beams or 1) > 1:
        raise UserError("do_sample or num_beams is given; accepted: neither for greedy search")
    return greedy, {}


def _sample(config: Any) -> tuple[Search, dict[str, Any]]:
    if not config.do_sample or (config.num_beams or 1) > 1:
        raise UserError(
            "do_sample is False, or num_beams above 1; accepted for sampling: do_sample=True, one "
            "beam"
        )
    # Temperature, top_k and their like come as processors, which `generate` has made.
    return sample, {"num_return_sequences": config.num_return_sequences or 1}


_NAMED: dict[str, Callable[[Any], tuple[Search, dict[str, Any]]]] = {
    "beam": _beam,
    "greedy": _greedy,
    "sample": _sample,
}


class _Padded(LogitsProcessor):
    """Processors that count from the start of padded prompts, for prompts without padding."""

    def __init__(self, processors: Sequence[Any], missing: int, pad: int) -> None:
        self.processors, self.missing, self.pad = processors, missing, pad

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """input_ids [R, n], scores [R, V]."""
        padded = torch.nn.functional.pad(input_ids, (self.missing, 0), value=self.pad)
        for processor in self.processors:
            scores = processor(padded, scores)
        return scores


def _processors(given: LogitsProcessorList, missing: int, pad: int) -> list[Any]:
    # Made with the padding of each row of the batch, which here nobody has.
    unpadded = [
        RepetitionPenaltyLogitsProcessor(each.penalty, prompt_ignore_length=missing or None)
        if isinstance(each, RepetitionPenaltyLogitsProcessor)
        and isinstance(each.prompt_ignore_length, Tensor)
        else each
        for each in given
    ]
    return [_Padded(unpadded, missing, pad)] if missing else unpadded


def _groups(padding: list[int], processors: LogitsProcessorList) -> dict[int, list[int]]:
    """Prompts that may be searched together, by the padding that processors are to see."""
    refused = next((each for each in processors if isinstance(each, _REFUSED)), None)
    if refused is not None:
        raise UserError(
            f"a {type(refused).__name__} looks at rows of a batch that a search does not have; "
            "accepted: processors of one sequence (guidance is an option of generate_with)"
        )
    if all(map(_is_blind, processors)):
        return {0: list(range(len(padding)))}
    groups: dict[int, list[int]] = defaultdict(list)
    for number, missing in enumerate(padding):
        groups[missing].append(number)
    return groups


def _is_blind(processor: Any) -> bool:
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        return not isinstance(processor.prompt_ignore_length, int)
    return isinstance(processor, _BLIND)


def _padding(ids: Tensor, mask: Tensor | None, copies: int) -> list[int]:
    """How many tokens of padding stand before each prompt."""
    if mask is None:
        return [0] * len(ids)
    seen = mask[::copies].bool()
    padding = (~seen).sum(-1)
    at = torch.arange(ids.shape[1], device=seen.device)
    if not torch.equal(seen, at >= padding[:, None]):
        raise UserError(
            "the attention mask has zeros behind the first token of a prompt; accepted: padding on "
            "the left (padding_side='left')"
        )
    return [int(count) for count in padding]


def _check(
    model: PreTrainedModel,
    stopping: StoppingCriteriaList,
    config: Any,
    model_kwargs: Mapping[str, Any],
) -> None:
    if model.config.is_encoder_decoder:
        raise UserError("the model has an encoder; accepted: models that only decode")
    known = (MaxLengthCriteria, EosTokenCriteria)
    other = next((each for each in stopping if not isinstance(each, known)), None)
    if other is not None:
        raise UserError(
            f"a {type(other).__name__} ends the text; accepted: end tokens, max_new_tokens, and "
            "stop_strings of generate_with"
        )
    for name in ("output_attentions", "output_hidden_states", "output_logits"):
        if getattr(config, name, None):
            raise UserError(f"{name} is True; accepted: False, a search does not keep them")
    unusual = sorted(
        name for name, value in model_kwargs.items() if value is not None and name not in _USUAL
    )
    if unusual:
        raise UserError(f"generate was given {unusual[0]}; accepted: input_ids and attention_mask")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError("past_key_values hold tokens; accepted: whole prompts, without a cache")


def _ends(config: Any) -> tuple[int, ...]:
    ends = config._eos_token_tensor
    return () if ends is None else tuple(ends.tolist())


def _pad_token(config: Any) -> int:
    pad = config._pad_token_tensor
    return 0 if pad is None else int(pad)


def _fill(config: Any) -> int:
    """What stands behind a response that is shorter than another."""
    pad, ends = _pad_token(config), _ends(config)
    # As the beam search of transformers, which takes a padding token 0 for none.
    return ends[0] if pad == 0 and ends and (config.num_beams or 1) > 1 else pad


def _answer(ids: Tensor, rows: list[list[SearchResult]], fill: int, config: Any) -> Any:
    """What `generate` returns: the padded prompts, the responses, padding."""
    longest = max(len(each.token_ids) for results in rows for each in results)
    sequences = []
    for prompt, results in zip(ids, rows, strict=True):
        for each in results:
            tokens = each.token_ids + [fill] * (longest - len(each.token_ids))
            sequences.append(torch.cat([prompt, prompt.new_tensor(tokens)]))
    stacked: Any = torch.stack(sequences)
    if not config.return_dict_in_generate:
        return stacked
    scores = torch.tensor([each.score for results in rows for each in results], device=ids.device)
    return GenerateBeamDecoderOnlyOutput(sequences=stacked, sequences_scores=scores)
