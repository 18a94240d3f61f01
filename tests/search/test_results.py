"""What a search gives back."""

import json
from dataclasses import replace

import pytest
import torch

from tokenq import credit
from tokenq.errors import UserError
from tokenq.models.pair import Pair
from tokenq.search import SearchResult, SearchResults, beam_search

RESULT = SearchResult(
    prompt_ids=[1, 2],
    token_ids=[3, 4],
    text="so",
    score=-1.5,
    logps=torch.tensor([-1.0, -0.5]),
    model_logps={
        "policy": torch.tensor([-1.0, -0.5]),
        "reference": torch.tensor([-2.0, -0.25]),
    },
    kl=torch.tensor([0.5, 0.125]),
    finish="length",
    details={"visits": 3.0},
)
BARE = replace(RESULT, model_logps={"policy": RESULT.logps}, kl=None, details={})


def test_the_implicit_reward_is_beta_times_the_log_ratio() -> None:
    assert RESULT.log_ratio == pytest.approx(0.75)
    torch.testing.assert_close(RESULT.rewards(0.2), torch.tensor([0.2, -0.05]))
    assert BARE.log_ratio is None
    assert BARE.ref_logps is None
    with pytest.raises(UserError, match="no reference was given; accepted: a pair with a ref"):
        BARE.rewards()


def test_json_holds_what_is_known() -> None:
    plain = RESULT.to_dict(beta=0.2)
    assert json.loads(json.dumps(plain)) == {
        "text": "so",
        "token_ids": [3, 4],
        "score": -1.5,
        "finish": "length",
        "logps": [-1.0, -0.5],
        "log_ratio": pytest.approx(0.75),
        "rewards": pytest.approx([0.2, -0.05]),
        "kl": 0.625,
        "details": {"visits": 3.0},
    }
    assert set(BARE.to_dict()) == {"text", "token_ids", "score", "finish", "logps"}


def test_results_are_a_sequence_of_rows() -> None:
    results = SearchResults([[RESULT, BARE], [BARE]])
    assert len(results) == 2
    assert results[0][1] is BARE
    assert results[-1] == [BARE]
    assert results[:1] == [[RESULT, BARE]]
    assert list(results) == [[RESULT, BARE], [BARE]]
    assert results.best == [RESULT, BARE]
    assert results.traces == [None, None]
    assert results.mean_log_ratio() == pytest.approx(0.75)
    assert SearchResults([[BARE]]).mean_log_ratio() is None


def test_a_prompt_without_a_response_is_named() -> None:
    with pytest.raises(UserError, match="prompt 1 has no response"):
        _ = SearchResults([[RESULT], []]).best


def test_a_result_is_read_token_by_token_as_its_text_is(pair: Pair) -> None:
    prompt = "A warm film"
    for result in beam_search(pair, [prompt], 4, 8, "log_ratio")[0]:
        read = result.credit(beta=0.3)
        torch.testing.assert_close(
            torch.as_tensor(read.rewards), result.rewards(0.3), rtol=0, atol=1e-4
        )
        assert list(read.token_ids) == result.token_ids
        assert len(read.values) == len(result.token_ids) + 1
    assert callable(credit)


def test_credit_needs_a_pair_with_a_reference(pair: Pair) -> None:
    with pytest.raises(UserError, match="the search had no pair; accepted: pair="):
        BARE.credit()
    lone = Pair(pair.policy, None, pair.tokenizer, "lone")
    (result,) = beam_search(lone, ["A warm film"], 1, 4)[0]
    with pytest.raises(UserError, match="'lone' has no reference"):
        result.credit()
    assert len(result.credit(pair=pair).rewards) == len(result.token_ids)
