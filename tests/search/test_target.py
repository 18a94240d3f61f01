"""What can be searched, and the prompts that it reads."""

from typing import Any

import numpy as np
import pytest
import torch
from sharp_models import END, sharp
from small_pairs import random_model, small_tokenizer
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.cached import step_model
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair, load_pair
from tokenq.models.reference import AdapterOff
from tokenq.search import Decoding, SearchResults, Target, beam_search
from tokenq.search.tabular import TabularModel

V = 24


def tokens(results: SearchResults) -> list[list[list[int]]]:
    return [[result.token_ids for result in row] for row in results]


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    return sharp("llama", V, 1), sharp("llama", V, 2)


def test_the_same_models_in_any_form_give_the_same(models: Any) -> None:
    policy, reference = models
    prompts = [[5, 6, 7], [8, 9]]
    forms = [
        load_pair(policy, reference),
        {"policy": policy, "reference": reference},
        {"reference": reference, "policy": policy},
        {"policy": step_model(policy), "reference": step_model(reference)},
        Target.of({"policy": policy, "reference": reference}),
    ]
    for score in ("likelihood", "log_ratio"):
        first, *others = (tokens(beam_search(form, prompts, 3, 8, score)) for form in forms)
        assert any(END in response for row in first for response in row)
        assert all(other == first for other in others)
    bare = beam_search(policy, prompts, 3, 8)
    assert tokens(bare) == tokens(beam_search(forms[0], prompts, 3, 8))
    assert bare.best[0].text is None


def test_texts_messages_and_token_ids_are_the_same_prompt(pair: Pair) -> None:
    text = "A warm film"
    ids = pair.tokenizer(text).input_ids
    forms = [text, ids, tuple(ids), torch.tensor(ids), np.array(ids)]
    rows = beam_search(pair, forms, 2, 6)
    assert all(row[0].prompt_ids == ids for row in rows)
    assert len({tuple(row[0].token_ids) for row in rows}) == 1
    messages = [{"role": "user", "content": text}]
    (row,) = beam_search(pair, [messages], 2, 6)
    written = pair.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert row[0].prompt_ids == pair.tokenizer(written).input_ids


def test_a_reference_that_is_not_searched_reads_what_was_found(pair: Pair) -> None:
    for result in beam_search(pair, ["A warm film"], 3, 6)[0]:
        assert result.ref_logps is not None
        expected = token_logps(pair.reference, [result.prompt_ids], [result.token_ids])[0]
        torch.testing.assert_close(result.ref_logps, expected, rtol=0, atol=1e-5)


def test_an_adapter_is_its_own_reference(adapter_pair: Pair) -> None:
    assert isinstance(adapter_pair.reference, AdapterOff)
    named = {"policy": adapter_pair.policy, "reference": adapter_pair.reference}
    prompt = adapter_pair.tokenizer("A warm film").input_ids
    by_pair = beam_search(adapter_pair, [prompt], 3, 6, "log_ratio")
    assert tokens(beam_search(named, [prompt], 3, 6, "log_ratio")) == tokens(by_pair)


def test_end_tokens_come_from_the_model_and_then_from_the_tokenizer() -> None:
    tokenizer = small_tokenizer()
    model = random_model("llama", len(tokenizer), 0)
    assert Target.of(model).eos == (END,)
    model.generation_config.eos_token_id = [5, 7]
    assert Target.of(model).eos == (5, 7)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    assert Target.of(model).eos == ()
    assert Target.of(load_pair(model, tokenizer=tokenizer)).eos == (tokenizer.eos_token_id,)
    model.config.eos_token_id = -1
    assert Target.of(model).rules(Decoding(min_new_tokens=1)).eos == ()


def test_the_context_is_the_smallest_of_all_models(models: Any) -> None:
    policy, _ = models
    assert Target.of(policy).context == 128
    assert Target.of(TabularModel(PrefixTree(2, 2), np.zeros((3, 2)))).context is None
    beam_search(policy, [[5] * 126], 2, 2)
    with pytest.raises(UserError, match="prompt 1 has 127 tokens, which with 2 new ones is more"):
        beam_search(policy, [[5], [5] * 127], 2, 2)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["A warm film"], "prompt 0 is text, and a bare model has no tokenizer; accepted: lists"),
        ([[{"role": "user", "content": "A"}]], "prompt 0 is text, and a bare model has no token"),
        ([[5], []], "prompt 1 has no tokens; accepted: at least one"),
        ([[5], [6, V]], f"prompt 1 holds token {V}; accepted: 0 to {V - 1}"),
        ([[-1]], f"prompt 0 holds token -1; accepted: 0 to {V - 1}"),
        ([[5.0]], "prompt 0 is [5.0]; accepted: a text, a list of messages or a list of token"),
        ([None], "prompt 0 is None; accepted: a text, a list of messages or a list of token"),
        ("A warm film", "prompts is one prompt; accepted: a list of prompts"),
        ([5, 6], "prompts is one prompt; accepted: a list of prompts"),
        ([{"role": "user", "content": "A"}], "prompts is one prompt; accepted: a list of prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(models: Any, prompts: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        beam_search(models[0], prompts, 2, 4)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_no_prompts_give_no_results(pair: Pair) -> None:
    results = beam_search(pair, [], 3, 4, "log_ratio", trace=True)
    assert len(results) == 0
    assert results.best == []
    assert results.traces == []
    assert results.mean_log_ratio() is None


def test_what_is_no_model_is_refused(models: Any, pair: Pair) -> None:
    policy, _ = models
    refused: list[tuple[Any, str, str]] = [
        ("bundled:x", "likelihood", "'bundled:x' is not a model; accepted: a pair from load_pair"),
        (None, "likelihood", "None is not a model; accepted: a pair from load_pair"),
        ({}, "likelihood", "no model was given; accepted"),
        ({"policy": pair}, "likelihood", "a pair is not one model; accepted: pair.policy or"),
        ({"base": policy}, "likelihood", "the models are 'base'; accepted: one of them named 'po"),
        ({"policy": policy}, "log_ratio", "this score needs a reference; accepted: a pair, or"),
        (load_pair(policy), "log_ratio", "has no reference, which this score needs; accepted: ref"),
        (
            {"policy": policy, "reference": sharp("llama", V + 3, 0)},
            "log_ratio",
            f"the models score different numbers of tokens \\(policy {V}, reference {V + 3}\\)",
        ),
    ]
    for given, score, message in refused:
        with pytest.raises(UserError, match=message):
            beam_search(given, [[5]], 2, 4, score)


def test_options_are_read_before_any_model_is_opened() -> None:
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        beam_search(None, [[5]], 2, 0)


def test_tokens_out_of_range_are_refused(models: Any) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"eos_token_id": [2, V]}, f"eos_token_id holds {V}; accepted: 0 to {V - 1}"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'; accepted: a token or several"),
        ({"eos_token_id": 2.0}, "eos_token_id is 2.0; accepted: a token or several"),
        ({"bad_words_ids": [[2], [3, V]]}, f"bad_words_ids holds {V}; accepted: 0 to {V - 1}"),
        ({"bad_words_ids": [[-3]]}, f"bad_words_ids holds -3; accepted: 0 to {V - 1}"),
    ]
    for options, message in refused:
        with pytest.raises(UserError, match=message):
            beam_search(models[0], [[5]], 2, 4, **options)


def test_an_end_token_may_be_any_whole_number(models: Any) -> None:
    plain = tokens(beam_search(models[0], [[5]], 2, 4, eos_token_id=END))
    for given in (np.int64(END), torch.tensor(END), torch.tensor([END])):
        assert tokens(beam_search(models[0], [[5]], 2, 4, eos_token_id=given)) == plain  # type: ignore[arg-type]


def test_further_models_are_read_in_step(models: Any) -> None:
    policy, reference = models
    target = Target.of(policy).with_models(other=reference)
    (result,) = beam_search(target, [[5, 6]], 1, 6)[0]
    expected = token_logps(reference, [[5, 6]], [result.token_ids])[0]
    torch.testing.assert_close(result.model_logps["other"], expected, rtol=0, atol=1e-5)
