"""What a credit tells beside its rewards: entropies, divergences, Q and V, and when it was read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_pairs import random_model, small_pair, small_tokenizer, with_adapter
from torch import Tensor

import tokenq
from tokenq.credit import Credit
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair

PROMPT = "Write one sentence of a film review."
RESPONSE = " A warm, funny film that earns its tears."


def logits_of(model: torch.nn.Module, credit: Credit, pair: Pair) -> Tensor:
    """Logits [T, V] that predict the response's tokens; nothing of tokenq."""
    prompt = pair.tokenizer(PROMPT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *credit.token_ids]])).logits[0]
    return logits[len(prompt) - 1 : -1]


def taken(values: Tensor, credit: Credit) -> Tensor:
    return values.gather(1, torch.tensor(credit.token_ids)[:, None])[:, 0]


@pytest.fixture
def pair() -> Pair:
    return small_pair()


@pytest.fixture
def credit(pair: Pair) -> Credit:
    return tokenq.credit(pair, PROMPT, RESPONSE, beta=0.3)


def test_surprisals_and_entropies_and_divergences(pair: Pair, credit: Credit) -> None:
    ours, theirs = (
        torch.distributions.Categorical(logits=logits_of(model, credit, pair).double())
        for model in (pair.policy, pair.reference)
    )
    targets = torch.tensor(credit.token_ids)
    expected = {
        "surprisals": -ours.log_prob(targets),
        "ref_surprisals": -theirs.log_prob(targets),
        "entropies": ours.entropy(),
        "ref_entropies": theirs.entropy(),
        "divergences": torch.distributions.kl_divergence(theirs, ours),
        "policy_divergences": torch.distributions.kl_divergence(ours, theirs),
    }
    for name, values in expected.items():
        found = getattr(credit, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, values.float(), atol=2e-5, rtol=0, msg=name)


def test_expected_reward_is_the_mean_under_the_reference(pair: Pair, credit: Credit) -> None:
    """Eq. 16, from the advantages of the whole vocabulary; the policy's own mean is positive."""
    theirs = logits_of(pair.reference, credit, pair).softmax(-1)
    ours = logits_of(pair.policy, credit, pair).softmax(-1)
    for position in range(len(credit)):
        advantages = credit.advantages(position)
        mean = float((theirs[position] * advantages).sum())
        assert mean == pytest.approx(float(credit.expected_rewards[position]), abs=1e-5)
        assert mean < 0
        mean = float((ours[position] * advantages).sum())
        assert mean == pytest.approx(0.3 * float(credit.policy_divergences[position]), abs=1e-5)


def test_advantages_are_those_of_the_whole_vocabulary(pair: Pair, credit: Credit) -> None:
    logps, ref_logps = (
        logits_of(model, credit, pair).log_softmax(-1) for model in (pair.policy, pair.reference)
    )
    for position in (0, 4, -1):
        found = credit.advantages(position)
        expected = 0.3 * (logps - ref_logps)[position]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        token = credit.token_ids[position]
        assert float(found[token]) == pytest.approx(float(credit.rewards[position]), abs=1e-5)
        best = credit.alternatives(position, 3)
        assert [each.token_id for each in best] == found.topk(3).indices.tolist()
    with pytest.raises(IndexError, match="position 99"):
        credit.advantages(99)


# --- gauges


@pytest.mark.parametrize("gauge", ["logits", "outcome"])
def test_q_less_v_is_the_log_probability(credit: Credit, gauge: str) -> None:
    q, v = credit.q(gauge), credit.v(gauge)
    assert (q.symbol, v.symbol) == ("Q", "V")
    assert q.gauge == v.gauge == gauge
    assert q.values.shape == v.values.shape == (len(credit),)
    torch.testing.assert_close(q.values - v.values, 0.3 * credit.logps, atol=2e-5, rtol=0)


def test_the_gauge_of_the_logits_is_as_the_network_writes_them(pair: Pair, credit: Credit) -> None:
    logits = logits_of(pair.policy, credit, pair)
    q, v = credit.q("logits").values, credit.v("logits").values
    torch.testing.assert_close(q, 0.3 * taken(logits, credit), atol=1e-5, rtol=0)
    torch.testing.assert_close(v, 0.3 * logits.logsumexp(-1), atol=1e-5, rtol=0)


def test_the_outcome_gauge_begins_at_0_and_pays_at_the_end_only(credit: Credit) -> None:
    v, q = credit.v("outcome").values, credit.q("outcome").values
    assert v[0] == 0
    torch.testing.assert_close(v, credit.values[:-1])
    # Eq. 7 with no reward before the end: Q(s, a) = beta log pi_ref(a|s) + V(s').
    following = q - 0.3 * credit.ref_logps
    torch.testing.assert_close(following[:-1], v[1:], atol=1e-5, rtol=0)
    assert float(following[-1]) == pytest.approx(credit.reward, abs=1e-5)


def test_a_shift_of_the_logits_moves_their_gauge_alone(credit: Credit) -> None:
    """One number per state is free: a head with another bias for all tokens is the same policy."""
    pair = small_pair()
    head = pair.policy.get_output_embeddings()
    shifted = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        shifted.weight.copy_(head.weight)
        shifted.bias.fill_(5.0)
    pair.policy.set_output_embeddings(shifted)
    moved = tokenq.credit(pair, PROMPT, RESPONSE, beta=0.3)
    torch.testing.assert_close(moved.rewards, credit.rewards, atol=1e-5, rtol=0)
    for read in ("q", "v"):
        ours, theirs = getattr(moved, read), getattr(credit, read)
        torch.testing.assert_close(
            ours("outcome").values, theirs("outcome").values, atol=2e-5, rtol=0
        )
        difference = ours("logits").values - theirs("logits").values
        torch.testing.assert_close(difference, torch.full_like(difference, 1.5))


def test_an_unknown_gauge_is_refused(credit: Credit) -> None:
    for read in (credit.q, credit.v):
        with pytest.raises(UserError, match="gauge is 'advantage'; accepted: logits, outcome"):
            read("advantage")


# --- when it was read


def test_training_that_goes_on_changes_no_alternative() -> None:
    """The layers move and the head does not: the credit is of the policy as it was."""
    tokenizer = small_tokenizer()
    pair = load_pair(with_adapter(random_model("llama", len(tokenizer), 1)), tokenizer=tokenizer)
    credit = tokenq.credit(pair, PROMPT, RESPONSE)
    before = credit.alternatives(2, 5)
    with torch.no_grad():
        for name, parameter in pair.policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    again = tokenq.credit(pair, PROMPT, RESPONSE)
    assert not torch.allclose(again.logps, credit.logps, atol=0.01)
    assert again.alternatives(2, 5) != before
    assert credit.alternatives(2, 5) == before


@pytest.mark.parametrize("side", ["policy", "reference"])
def test_a_head_that_was_trained_since_is_refused(pair: Pair, credit: Credit, side: str) -> None:
    weight = getattr(pair, side).get_output_embeddings().weight
    with torch.no_grad():
        weight.add_(0.05 * torch.randn_like(weight))
    entropies = credit.entropies.clone()
    for read in (credit.alternatives, credit.advantages):
        with pytest.raises(UserError, match="have changed since this credit was computed"):
            read(2)
    with pytest.raises(UserError, match="have changed since this credit was computed"):
        credit.to_dict(alternatives=1)
    assert torch.equal(credit.entropies, entropies)


def test_log_probs_alone_tell_no_entropies(credit: Credit) -> None:
    bare = Credit(**{**vars(credit), "facts": None, "vocabulary": None})
    torch.testing.assert_close(bare.q("outcome").values, credit.q("outcome").values)
    for read in (lambda: bare.entropies, lambda: bare.q("logits"), lambda: bare.expected_rewards):
        with pytest.raises(ValueError, match="log-probs only, no entropies, divergences or logits"):
            read()
    assert "entropies" not in bare.to_dict()


def test_to_dict_has_the_facts(credit: Credit) -> None:
    record = credit.to_dict()
    for name in ("entropies", "ref_entropies", "divergences"):
        assert record[name] == pytest.approx(getattr(credit, name).tolist(), abs=1e-6)


def test_a_saved_credit_is_read_back(credit: Credit, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(credit.to_dict(alternatives=1, estimators=("words",))))
    again = Credit.from_dict(json.loads(path.read_text()))
    torch.testing.assert_close(again.rewards, credit.rewards, atol=1e-5, rtol=0)
    words = list(zip(again.words(), credit.words(), strict=True))
    assert len(words) > 8
    for ours, theirs in words:
        assert ours == replace(theirs, reward=ours.reward)
        assert ours.reward == pytest.approx(theirs.reward, abs=1e-5)
    unchanged = ("prompt", "response", "beta", "token_ids", "tokens", "offsets", "policy_name")
    for name in unchanged:
        assert getattr(again, name) == getattr(credit, name)
    with pytest.raises(ValueError, match="holds no models"):
        again.alternatives(0)
    with pytest.raises(UserError, match="a saved credit lacks 'beta'; accepted: the fields prompt"):
        Credit.from_dict({"prompt": "", "response": ""})


def test_fields_of_different_lengths_are_refused(credit: Credit) -> None:
    with pytest.raises(ValueError, match="tokens, but fields of sizes"):
        Credit(**{**vars(credit), "turn_numbers": (0,)})
