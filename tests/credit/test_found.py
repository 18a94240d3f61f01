"""Credit of tokens as they were written: characters of each, and the rewards of plain credit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_pairs import random_model, small_pair, small_tokenizer
from tests.support.tokenizer_families import BACKENDS
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tokenq.credit import credit
from tokenq.credit.found import credit_of_tokens, token_offsets
from tokenq.data.encoding import encode
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair
from tokenq.search import beam_search

TEXT = "Hello world, naïve 日本語 😀 café."


@pytest.fixture(scope="module")
def pair() -> Pair:
    return small_pair()


def family(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[name](), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_fallback() -> PreTrainedTokenizerFast:
    """A sentencepiece vocabulary of one letter, whose bytes are ordinary tokens."""
    words = ["<unk>", "</s>", "▁", "x", "▁x", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [("▁", "x")], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_text_that_was_tokenised_has_the_same_credit(pair: Pair) -> None:
    response = "A warm, funny film – naïve clichés."
    encoded = encode(pair.tokenizer, "Write one sentence.", response)
    usual = credit(pair, "Write one sentence.", response)
    found = credit_of_tokens(pair, encoded.prompt_ids, encoded.response_ids)
    assert found.response == response
    assert found.offsets == usual.offsets
    assert found.tokens == usual.tokens
    torch.testing.assert_close(found.rewards, usual.rewards)
    assert found.alternatives(2, 3) == usual.alternatives(2, 3)


def test_tokens_stay_as_they_were_written(pair: Pair) -> None:
    """The same text in single bytes, which the tokenizer would have joined."""
    tokenizer = pair.tokenizer
    alone = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "film"]
    joined = tokenizer("film", add_special_tokens=False)["input_ids"]
    assert len(joined) < len(alone)
    found = credit_of_tokens(pair, [5, 6], [*alone, tokenizer.eos_token_id])
    assert found.token_ids == (*alone, tokenizer.eos_token_id)
    assert found.response == "film"
    assert found.offsets == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 4))
    assert found.tokens[-1] == "</s>"


def test_rewards_are_those_of_the_search(pair: Pair) -> None:
    for row in beam_search(pair, ["Write one", "The plot"], num_beams=3, max_new_tokens=12):
        for result in row:
            found = result.credit(beta=0.3)
            torch.testing.assert_close(found.rewards, result.rewards(0.3), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.logps, result.logps, atol=1e-5, rtol=1e-4)
            assert found.token_ids == tuple(result.token_ids)
            assert found.response == result.text


def test_a_stop_string_stays_in_the_credit(pair: Pair) -> None:
    free = beam_search(pair, ["The plot"], num_beams=1, max_new_tokens=8, eos_token_id=())[0][0]
    assert free.text
    stop = free.text[len(free.text) // 2]
    result = beam_search(
        pair, ["The plot"], num_beams=1, max_new_tokens=8, eos_token_id=(), stop_strings=stop
    )[0][0]
    assert result.finish == "stop"
    assert result.text is not None
    found = result.credit()
    assert found.response.startswith(result.text + stop)
    assert found.offsets[-1][1] == len(found.response)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_family_of_tokenizers_covers_its_text(name: str) -> None:
    tokenizer = family(name)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text, offsets = token_offsets(tokenizer, [*ids, tokenizer.eos_token_id])
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    check_cover(text, offsets)
    assert offsets[-1] == (len(text), len(text))
    usual = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if usual["input_ids"] == ids and name == "byte_level":
        assert offsets[:-1] == usual["offset_mapping"]


def check_cover(text: str, offsets: list[tuple[int, int]]) -> None:
    """Every character is in a token; spans overlap only in one shared character."""
    reached = before = 0
    for start, end in offsets:
        assert before <= start <= end <= len(text)
        assert start in (reached, reached - 1)
        before, reached = start, max(reached, end)
    assert reached == len(text)


def test_bytes_of_a_character_share_it() -> None:
    tokenizer = byte_fallback()
    sun = [5 + byte for byte in "日".encode()]
    text, offsets = token_offsets(tokenizer, [4, *sun, 4, 1])
    assert text == "x日 x"
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 4), (4, 4)]
    # Cut within the character: this decoder shows each byte by itself.
    assert token_offsets(tokenizer, [3, *sun[:2]]) == ("x��", [(0, 1), (1, 2), (2, 3)])


def test_a_response_that_ends_within_a_character() -> None:
    tokenizer = small_tokenizer()
    whole = tokenizer("a😀", add_special_tokens=False)["input_ids"]
    assert len(whole) == 5
    text, offsets = token_offsets(tokenizer, whole[:4])
    assert text == "a�"
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2)]
    # The first byte alone, and then a letter: the character stays unfinished in the middle.
    text, offsets = token_offsets(tokenizer, [*whole[:3], whole[0]])
    assert text == "a�a"
    assert offsets == [(0, 1), (1, 2), (1, 2), (2, 3)]


def test_a_special_token_in_the_middle_has_no_characters() -> None:
    tokenizer = small_tokenizer()
    film, smile = (
        tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("film", "😀")
    )
    bos = tokenizer.bos_token_id
    text, offsets = token_offsets(tokenizer, [*film, bos, smile[0], bos, *smile[1:]])
    assert text == "film😀"
    at = len(film)
    assert offsets[at : at + 4] == [(4, 4), (4, 5), (4, 4), (4, 5)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_cover_their_text(data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from(_TOKENIZERS))
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12))
    text, offsets = token_offsets(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(offsets) == len(ids)
    reached = before = 0
    for start, end in offsets:
        assert before <= start <= end <= len(text)
        assert start <= reached
        before, reached = start, max(reached, end)
    assert reached == len(text)


_TOKENIZERS = [small_tokenizer(), byte_fallback(), family("unigram")]


def test_bad_input_is_one_line(pair: Pair) -> None:
    with pytest.raises(UserError, match="the response has no tokens"):
        credit_of_tokens(pair, [5], [])
    with pytest.raises(UserError, match="the prompt has no tokens"):
        credit_of_tokens(pair, [], [5])
    with pytest.raises(UserError, match="token 100000 is unknown"):
        credit_of_tokens(pair, [5], [100000])
    with pytest.raises(UserError, match="131 tokens; accepted: 128"):
        credit_of_tokens(pair, [5], [6] * 130)
    lonely = load_pair(random_model("llama", 300, 1))
    with pytest.raises(UserError, match="no reference"):
        credit_of_tokens(lonely, [5], [6])
