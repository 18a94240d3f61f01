"""Rules that every search keeps: where responses end, and what may be said."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sharp_models import END, sharp
from small_pairs import small_tokenizer
from transformers import LogitsProcessor

from tokenq.errors import UserError
from tokenq.mdp.tree import PrefixTree
from tokenq.models.branching.branches import Branches
from tokenq.models.pair import Pair
from tokenq.search import Decoding, beam_search
from tokenq.search.decoding import Rules
from tokenq.search.tabular import TabularModel

TOKENIZER = small_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text).input_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; accepted: 1 or more"),
        ({"max_new_tokens": "8"}, "max_new_tokens is '8'; accepted: a whole number, 1 or more"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; accepted: 0 or more"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65, max_new_tokens 64; accepted: at most"),
        ({"batch_size": 0}, "batch_size is 0; accepted: 1 or more"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2; accepted: 0 or more"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; accepted: above 0"),
        ({"repetition_penalty": -1.5}, "repetition_penalty is -1.5; accepted: above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan; accepted: above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf; accepted: above 0"),
        ({"stop_strings": ["a", ""]}, "stop_strings holds an empty text; accepted: at least one"),
        ({"bad_words_ids": [[3], []]}, "bad_words_ids holds an empty sequence; accepted: at least"),
        ({"bad_words_ids": [5]}, "bad_words_ids is [5]; accepted: a list of lists of tokens"),
        ({"repetition_penalty": "a"}, "repetition_penalty is 'a'; accepted: above 0"),
        ({"stop_strings": 5}, "stop_strings is 5; accepted: a text, or a list of texts"),
        ({"stop_strings": [5]}, "stop_strings is [5]; accepted: a text, or a list of texts"),
        ({"on_step": 5}, "on_step is 5; accepted: a function of a Progress"),
        ({"guidance": "proxy"}, "guidance is 'proxy'; accepted: ProxyTuning"),
        ({"logits_processor": [5]}, "logits_processor is [5]; accepted: a list of processors"),
        ({"logits_processor": len}, "logits_processor is <built-in function len>; accepted: a l"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Decoding(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_misspelt_option_is_named() -> None:
    with pytest.raises(TypeError, match="repetition_penality"):
        Decoding(repetition_penality=1.2)  # type: ignore[call-arg]


def test_one_stop_string_is_no_list_of_characters() -> None:
    assert Decoding(stop_strings="end").stops == ("end",)
    assert Decoding(stop_strings=["a", "b"]).stops == ("a", "b")


def test_a_response_ends_by_end_token_stop_string_or_length_in_this_order() -> None:
    rules = Rules(Decoding(max_new_tokens=4, stop_strings="film"), (END,), TOKENIZER)
    film = ids(" film")
    assert rules.finish([*ids("A"), END]) == "eos"
    assert rules.finish([5, 5, 5, END]) == "eos"
    assert rules.finish(film) == "stop"
    assert rules.finish([5, 5, 5, 5]) == "length"
    assert rules.finish([5, 5, 5]) is None


@pytest.mark.parametrize("stop", ["earns every", "é", "lich", " a", ".", "\n", "s a", "x😀"])
def test_a_stop_string_ends_the_text_where_it_first_stands(stop: str) -> None:
    text = "The clichés, it earns every\none of its as and tears. Yet x😀 as and clichés."
    rules = Rules(Decoding(max_new_tokens=200, stop_strings=stop), (), TOKENIZER)
    tokens = ids(text)
    finish = [rules.finish(tokens[:length]) for length in range(1, len(tokens) + 1)]
    first = finish.index("stop")
    assert finish[:first] == [None] * first
    assert stop in TOKENIZER.decode(tokens[: first + 1])
    assert stop not in TOKENIZER.decode(tokens[:first])
    assert rules.text(tokens[: first + 1]) == text[: text.index(stop)]


class Counting:
    """A tokenizer that counts the tokens that it has been asked to read."""

    def __init__(self) -> None:
        self.read = 0

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        self.read += len(token_ids)
        return str(TOKENIZER.decode(token_ids, **options))


def test_stop_strings_do_not_make_every_step_read_the_whole_text() -> None:
    tokenizer: Any = Counting()
    rules = Rules(Decoding(max_new_tokens=1000, stop_strings="Z"), (), tokenizer)
    tokens = ids("An uneven but charming debut. ") * 20
    for length in range(1, len(tokens) + 1):
        assert rules.finish(tokens[:length]) is None
    assert tokenizer.read == 2 * len(set(tokens))


def test_text_has_no_special_tokens() -> None:
    rules = Rules(Decoding(), (END,), TOKENIZER)
    assert rules.text([*ids("A warm film"), END]) == "A warm film"
    assert Rules(Decoding(), (END,)).text([5, END]) is None


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(UserError, match="stop_strings need a tokenizer; accepted: a pair"):
        Rules(Decoding(stop_strings="a"), (END,))
    with pytest.raises(UserError, match="stop_strings need a tokenizer; accepted: a pair"):
        beam_search(sharp("llama", 24, 0), [[5]], 2, 4, stop_strings="a")


def uniform() -> TabularModel:
    tree = PrefixTree(3, 4, eos=0)
    return TabularModel(tree, np.log(np.full((tree.states, 3), 1 / 3)))


class FirstToken(LogitsProcessor):
    """Gives everything to token 0 and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.shown += input_ids.tolist()
        scores = torch.full_like(scores, -torch.inf)
        scores[:, 0] = 0.0
        return scores


def test_the_users_processors_come_last_and_see_prompt_and_response() -> None:
    # As in transformers: even an end token that min_new_tokens forbids can be brought back.
    processor = FirstToken()
    results = beam_search(uniform(), [[0]], 2, 4, min_new_tokens=3, logits_processor=[processor])
    assert [r.token_ids for r in results[0]] == [[0]]
    assert processor.shown == [[0]]
    longer = beam_search(
        uniform(), [[0]], 1, 3, eos_token_id=2, bad_words_ids=[[0]], logits_processor=[]
    )
    assert longer.best[0].token_ids[0] in (1, 2)


def test_without_an_end_token_only_length_ends() -> None:
    tree = PrefixTree(3, 4)
    model = TabularModel(tree, np.log(np.full((tree.states, 3), 1 / 3)))
    (row,) = beam_search(model, [[0]], 5, 4, eos_token_id=())
    assert {(len(r.token_ids), r.finish) for r in row} == {(4, "length")}


def test_end_tokens_may_be_one_several_or_the_models_own() -> None:
    model = sharp("llama", 24, 0)
    own = beam_search(model, [[5, 6]], 4, 8)
    for given in (END, [END], (END,)):
        again = beam_search(model, [[5, 6]], 4, 8, eos_token_id=given)
        assert [r.token_ids for r in again[0]] == [r.token_ids for r in own[0]]
    several = beam_search(model, [[5, 6]], 6, 8, eos_token_id=[2, 7, 9, 11, 13])
    assert len({r.token_ids[-1] for r in several[0] if r.finish == "eos"}) > 1
    model.generation_config.eos_token_id = [7, 9]
    assert {r.token_ids[-1] for r in beam_search(model, [[5, 6]], 6, 8)[0]} & {7, 9}


def test_given_log_probabilities_stay_as_they_are() -> None:
    model = uniform()
    with Branches({"policy": model}, [[0]]) as branches:
        frontier = branches.open()
        before = frontier.searched.clone()
        rules = Rules(Decoding(repetition_penalty=2.0, min_new_tokens=2), (0,))
        processed = rules.allowed(branches, frontier.nodes, frontier.searched)
        torch.testing.assert_close(frontier.searched, before, rtol=0, atol=0)
        assert processed[0, 0] == -torch.inf
        assert Rules(Decoding(), (0,)).allowed(branches, frontier.nodes, before) is before


def test_a_prompt_whose_every_token_is_forbidden_has_no_response() -> None:
    results = beam_search(uniform(), [[0]], 2, 4, bad_words_ids=[[0], [1], [2]], eos_token_id=())
    assert list(results) == [[]]
    with pytest.raises(UserError, match="prompt 0 has no response: every token was forbidden"):
        _ = results.best


def test_stop_strings_of_a_pair_cut_its_texts(pair: Pair) -> None:
    free = beam_search(pair, ["A warm film"], 1, 12, min_new_tokens=12).best[0]
    assert free.text is not None
    stop = next(char for char in free.text[1:] if char.isprintable() and char != "\ufffd")
    short = beam_search(pair, ["A warm film"], 1, 12, min_new_tokens=12, stop_strings=[stop]).best[
        0
    ]
    assert short.text == free.text[: free.text.index(stop)]
    assert short.finish == "stop"
    assert free.token_ids[: len(short.token_ids)] == short.token_ids
