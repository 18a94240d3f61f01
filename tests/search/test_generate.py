"""`generate(custom_generate=generate_with(...))` against `generate` itself."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.support.small_pairs import random_model, small_pair, small_tokenizer, with_adapter
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.pair import load_pair
from tokenq.search import generate_with
from tokenq.search.beam import beam_search
from tokenq.search.guidance import AlignmentAware
from tokenq.search.sampling import sample

SIZE = len(small_tokenizer())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_model("llama", SIZE, 1)


def batch(seed: int, *lengths: int) -> dict[str, Tensor]:
    """Random prompts of these lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(3, SIZE, (length,), generator=generator)
        mask[row, longest - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def check_same(model: Any, inputs: dict[str, Tensor], **options: Any) -> None:
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, **options}
    options["output_scores"] = True
    usual = model.generate(**inputs, **options)
    ours = model.generate(**inputs, custom_generate=generate_with("beam"), **options)
    assert torch.equal(ours.sequences, usual.sequences)
    torch.testing.assert_close(ours.sequences_scores, usual.sequences_scores, atol=1e-4, rtol=1e-4)


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_beams_are_those_of_generate(model: PreTrainedModel, data: st.DataObject) -> None:
    beams = data.draw(st.integers(2, 5))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "num_return_sequences": st.integers(1, beams),
                "length_penalty": st.sampled_from([-0.5, 0.0, 1.0, 2.0]),
                "early_stopping": st.sampled_from([True, False, "never"]),
                "ends": st.sampled_from([3, 90, 200]),
            },
            optional={
                "min_new_tokens": st.integers(0, 5),
                "min_length": st.integers(0, 14),
                "repetition_penalty": st.sampled_from([0.8, 1.3]),
                "no_repeat_ngram_size": st.integers(1, 2),
                "bad_words_ids": st.just([[5], [6, 7]]),
                "suppress_tokens": st.just([8, 9]),
                "renormalize_logits": st.just(True),
                "exponential_decay_length_penalty": st.just((2, 1.4)),
                "forced_eos_token_id": st.just(4),
            },
        )
    )
    options["eos_token_id"] = list(range(2, options.pop("ends")))
    check_same(model, batch(data.draw(st.integers(0, 99)), *lengths), num_beams=beams, **options)


class OddPositions(LogitsProcessor):
    """Counts from the start of what it is shown, padding included."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:, : 100 + 50 * (input_ids.shape[1] % 2)] = -20.0
        return scores


def test_a_processor_that_counts_padding_sees_it(model: PreTrainedModel) -> None:
    check_same(model, batch(0, 3, 8, 5, 8), num_beams=3, logits_processor=[OddPositions()])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_padding_and_without_a_mask(family: str) -> None:
    model = random_model(family, SIZE, 2)
    inputs = batch(3, 6, 6)
    check_same(model, inputs, num_beams=4, num_return_sequences=2)
    check_same(model, {"input_ids": inputs["input_ids"]}, num_beams=4)


def test_an_adapter_generates() -> None:
    adapted = with_adapter(random_model("llama", SIZE, 1))
    inputs = batch(1, 4, 7)
    check_same(adapted, inputs, num_beams=3, num_return_sequences=2)
    with adapted.disable_adapter():
        check_same(adapted, inputs, num_beams=3)


def test_an_adapter_is_searched_against_its_base() -> None:
    adapted = with_adapter(random_model("llama", SIZE, 1))
    pair = load_pair(adapted, tokenizer=small_tokenizer())
    inputs = batch(1, 4, 7)
    loop = generate_with("beam", pair=pair, score="log_ratio", plausibility=0.2)
    ours = adapted.generate(**inputs, custom_generate=loop, num_beams=3, max_new_tokens=6)
    prompts = [inputs["input_ids"][0, 3:].tolist(), inputs["input_ids"][1].tolist()]
    same = beam_search(pair, prompts, 3, 6, "log_ratio", plausibility=0.2)
    for row, results in zip(ours, same, strict=True):
        found = results[0].token_ids
        assert row[7 : 7 + len(found)].tolist() == found


def test_greedy_is_that_of_generate(model: PreTrainedModel) -> None:
    inputs = batch(2, 4, 7)
    options: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": list(range(2, 60))}
    usual = model.generate(**inputs, **options)
    ours = model.generate(**inputs, custom_generate=generate_with("greedy"), **options)
    assert torch.equal(ours, usual)


def test_samples_follow_the_warpers_of_generate(model: PreTrainedModel) -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    options: dict[str, Any] = {"do_sample": True, "top_k": 3, "temperature": 0.7}
    ours = model.generate(
        **inputs,
        custom_generate=generate_with("sample", seed=5),
        max_new_tokens=6,
        num_return_sequences=40,
        **options,
    )
    assert ours.shape == (40, 9)
    [same] = sample(model, [[5, 6, 7]], 40, 6, temperature=0.7, top_k=3, seed=5)
    assert [
        row[3 : 3 + len(one.token_ids)].tolist() for row, one in zip(ours, same, strict=True)
    ] == [one.token_ids for one in same]


def test_a_pair_brings_log_ratios_guidance_and_stop_strings() -> None:
    pair = small_pair()
    ids = pair.tokenizer("Write one sentence", return_tensors="pt")["input_ids"]
    options: dict[str, Any] = {
        "score": "log_ratio",
        "plausibility": 0.1,
        "stop_strings": ["e"],
    }
    ours = pair.policy.generate(
        ids,
        custom_generate=generate_with("beam", pair=pair, **options),
        num_beams=3,
        max_new_tokens=9,
    )
    [same] = beam_search(pair, [ids[0].tolist()], 3, 9, **options)
    assert ours[0, ids.shape[1] :].tolist() == same[0].token_ids
    guided = pair.policy.generate(
        ids,
        custom_generate=generate_with("greedy", pair=pair, guidance=AlignmentAware(0.1)),
        max_new_tokens=9,
    )
    [aware] = beam_search(pair, [ids[0].tolist()], 1, 9, "log_ratio", plausibility=0.1)
    assert guided[0, ids.shape[1] :].tolist() == aware[0].token_ids


def test_any_search_can_be_handed_over(model: PreTrainedModel) -> None:
    inputs = batch(4, 4, 6)
    loop = generate_with(sample, num_return_sequences=3, seed=2)
    ours = model.generate(**inputs, custom_generate=loop, max_new_tokens=5)
    assert ours.shape[0] == 2


def test_what_cannot_be_given_is_refused(model: PreTrainedModel) -> None:
    inputs = batch(4, 4, 6)
    beam = generate_with("beam")

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            model.generate(
                **{
                    **inputs,
                    "max_new_tokens": 4,
                    "custom_generate": beam,
                    "num_beams": 2,
                    **options,
                }
            )

    refused("zeros behind the first token", attention_mask=inputs["attention_mask"].flip(1))
    refused("do_sample is True", do_sample=True)
    refused("PrefixConstrained", prefix_allowed_tokens_fn=lambda number, ids: [5, 6])
    refused("MaxTimeCriteria ends the text", max_time=1.0)
    refused("output_logits is True", output_logits=True, return_dict_in_generate=True)
    refused("neither for greedy", custom_generate=generate_with("greedy"))
    refused("do_sample is False", custom_generate=generate_with("sample"))
    other = small_pair()
    refused("another model than the one", custom_generate=generate_with("beam", pair=other))
    with pytest.raises(UserError, match="search is 'beams'; accepted: beam, greedy, sample"):
        generate_with("beams")
    with pytest.raises(UserError, match="num_beams is an option of generate"):
        generate_with("beam", num_beams=3)
    own = load_pair(model, random_model("llama", SIZE, 2), tokenizer=small_tokenizer())
    assert (
        model.generate(
            **inputs, custom_generate=generate_with("beam", pair=own), num_beams=2, max_new_tokens=4
        ).shape[0]
        == 2
    )
