"""`tokenq.credit` against the plain computation, and the identities it rests on."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from families import DoubleThroughout
from small_pairs import random_model, small_pair
from torch import Tensor

import tokenq
from tokenq.credit import Credit
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair

PROMPT = "Write one sentence of a film review."
RESPONSE = " A warm, funny film that earns its tears."


def full_logps(model: torch.nn.Module, ids: list[int]) -> Tensor:
    """log p of every next token after each prefix of `ids`: [len(ids), V]; nothing of tokenq."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)


def doubled(pair: Pair) -> Pair:
    return load_pair(pair.policy.double(), pair.reference.double(), tokenizer=pair.tokenizer)


@pytest.fixture(params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return small_pair(request.param)


def test_rewards_equal_the_plain_computation(pair: Pair) -> None:
    tokenizer = pair.tokenizer
    prompt = tokenizer(PROMPT)["input_ids"]
    ids = tokenizer(PROMPT + RESPONSE)["input_ids"] + [tokenizer.eos_token_id]
    assert ids[: len(prompt)] == prompt
    pair = doubled(pair)
    with DoubleThroughout():
        credit = tokenq.credit(pair, PROMPT, RESPONSE, beta=0.3)
        ours, theirs = (full_logps(model, ids) for model in (pair.policy, pair.reference))

    places = torch.arange(len(prompt), len(ids))
    targets = torch.tensor(ids)[places]
    expected = ours[places - 1, targets], theirs[places - 1, targets]
    assert list(credit.token_ids) == targets.tolist()
    torch.testing.assert_close(credit.logps, expected[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(credit.ref_logps, expected[1], atol=1e-9, rtol=0)
    rewards = 0.3 * (expected[0] - expected[1])
    torch.testing.assert_close(credit.rewards, rewards, atol=1e-9, rtol=0)
    assert rewards.abs().min() > 1e-4  # two different models


def test_the_contract(pair: Pair) -> None:
    credit = tokenq.credit(pair, PROMPT, RESPONSE)
    count = len(credit.token_ids)
    assert credit.beta == 0.1
    assert credit.logps.dtype == credit.ref_logps.dtype == torch.float32
    assert len(credit.tokens) == len(credit.offsets) == count
    assert credit.values.shape == (count + 1,)
    assert credit.values[0] == 0
    torch.testing.assert_close(credit.values[1:], credit.rewards.cumsum(0))
    assert "".join(credit.tokens[:-1]) == RESPONSE
    assert credit.tokens[-1] == "</s>"
    assert [RESPONSE[a:b] for a, b in credit.offsets[:-1]] == list(credit.tokens[:-1])
    assert credit.offsets[-1] == (len(RESPONSE), len(RESPONSE))
    assert not credit.logps.requires_grad


def test_messages_go_through_the_template(pair: Pair) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    answer = [{"role": "assistant", "content": "A dull mess."}]
    credit = tokenq.credit(pair, messages, "A dull mess.")
    rendered = pair.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    ids = [*rendered, *pair.tokenizer("A dull mess.")["input_ids"], pair.tokenizer.eos_token_id]
    logps = full_logps(pair.policy, ids)[
        range(len(rendered) - 1, len(ids) - 1), ids[len(rendered) :]
    ]
    torch.testing.assert_close(credit.logps, logps, atol=1e-4, rtol=0)
    again = tokenq.credit(pair, messages, answer)
    assert again.token_ids == credit.token_ids
    assert again.response == "A dull mess."


def test_prefix_value_is_the_soft_expectation_under_the_reference() -> None:
    """exp(values[t] / beta) = E[exp(r(y) / beta)] over y ~ ref(. | y_<=t), all y of 4 tokens."""
    vocabulary, horizon, beta, prompt = 5, 4, 0.7, [3, 1]
    policy, reference = (random_model("llama", vocabulary, seed).double() for seed in (1, 2))
    responses = [list(y) for y in itertools.product(range(vocabulary), repeat=horizon)]
    with torch.no_grad(), DoubleThroughout():
        logps, ref_logps = (
            torch.stack(tokenq.token_logps(model, [prompt] * len(responses), responses))
            for model in (policy, reference)
        )
    outcomes = torch.exp((beta * (logps - ref_logps)).sum(1) / beta)
    ids = torch.tensor(responses)
    for row in (0, 137, 418, 624):
        credit = Credit(
            prompt="", response="", beta=beta, token_ids=tuple(responses[row]),
            tokens=("",) * horizon, offsets=((0, 0),) * horizon, logps=logps[row],
            ref_logps=ref_logps[row], policy_name="p", reference_name="r",
        )  # fmt: skip
        for t in range(horizon + 1):
            same_prefix = (ids[:, :t] == ids[row, :t]).all(dim=1)
            chances = ref_logps[same_prefix, t:].sum(1).exp()
            assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
            expected = float((chances * outcomes[same_prefix]).sum())
            assert float(torch.exp(credit.values[t] / beta)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("min_probability", [0.0, 0.004])
def test_alternatives_equal_brute_force(pair: Pair, min_probability: float) -> None:
    pair = doubled(pair)
    with DoubleThroughout():
        credit = tokenq.credit(pair, PROMPT, RESPONSE, beta=0.2)
        prompt = pair.tokenizer(PROMPT)["input_ids"]
        ids = [*prompt, *credit.token_ids]
        ours, theirs = (full_logps(model, ids) for model in (pair.policy, pair.reference))
        for position in (0, 3, len(credit) - 1, -2):
            before = len(prompt) - 1 + position % len(credit)
            scored = [
                (float(0.2 * (ours[before, v] - theirs[before, v])), v)
                for v in range(len(pair.tokenizer))
                if float(ours[before, v].exp()) >= min_probability
            ]
            expected = sorted(scored, reverse=True)[:4]
            found = credit.alternatives(position, 4, min_probability=min_probability)
            assert [each.token_id for each in found] == [v for _, v in expected]
            for each, (reward, v) in zip(found, expected, strict=True):
                assert each.reward == pytest.approx(reward, abs=1e-9)
                assert each.logp == pytest.approx(float(ours[before, v]), abs=1e-9)
                assert each.ref_logp == pytest.approx(float(theirs[before, v]), abs=1e-9)


def test_alternatives_name_tokens_with_their_blank_and_never_padding_rows() -> None:
    pair = small_pair()
    for model in (pair.policy, pair.reference):
        torch.manual_seed(0)
        model.resize_token_embeddings(len(pair.tokenizer) + 24, mean_resizing=False)
    credit = tokenq.credit(pair, PROMPT, RESPONSE)
    everything = credit.alternatives(2, 10_000)
    assert {each.token_id for each in everything} == set(range(len(pair.tokenizer)))
    names = {each.token_id: each.token for each in everything}
    assert [names[token] for token in credit.token_ids] == list(credit.tokens)
    assert " film" in credit.tokens
    assert names[2] == "</s>"
    assert all(names.values())


def test_alternatives_refuse_places_outside_the_response() -> None:
    credit = tokenq.credit(small_pair(), PROMPT, RESPONSE)
    with pytest.raises(IndexError, match="position 99"):
        credit.alternatives(99)


def test_a_pair_without_a_reference_is_refused() -> None:
    pair = small_pair()
    alone = Pair(pair.policy, None, pair.tokenizer, "my-policy")
    with pytest.raises(UserError, match="'my-policy' has no reference"):
        tokenq.credit(alone, PROMPT, RESPONSE)


def test_to_dict_is_json_and_complete() -> None:
    credit = tokenq.credit(small_pair(), PROMPT, RESPONSE, beta=0.2)
    record = json.loads(json.dumps(credit.to_dict(alternatives=2)))
    assert record["beta"] == 0.2
    assert record["prompt"] == PROMPT
    assert record["response"] == RESPONSE
    assert record["rewards"] == pytest.approx(credit.rewards.tolist(), abs=1e-6)
    assert record["values"] == pytest.approx(credit.values.tolist(), abs=1e-6)
    assert record["reward"] == pytest.approx(float(credit.values[-1]), abs=1e-6)
    for position, best in enumerate(record["alternatives"]):
        assert [each["token_id"] for each in best] == [
            each.token_id for each in credit.alternatives(position, 2)
        ]


def test_save_html(tmp_path: Path) -> None:
    tokenq.credit(small_pair(), PROMPT, RESPONSE).save_html(tmp_path / "one.html")
    assert "</html>" in (tmp_path / "one.html").read_text()


def test_bytes_of_one_character_share_it() -> None:
    response = " film 🎬!"
    credit = tokenq.credit(small_pair(), PROMPT, response)
    shared = [i for i, token in enumerate(credit.tokens) if "🎬" in token]
    assert len(shared) > 1
    starts = {credit.offsets[i][1] for i in shared}
    assert starts == {response.index("🎬") + 1}
