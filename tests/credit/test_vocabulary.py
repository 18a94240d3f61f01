"""The sweep over the vocabulary against the plain computation with full tensors."""

import pytest
import torch
from families import DoubleThroughout
from small_pairs import random_model, small_pair, with_adapter
from torch import Tensor

from tokenq.credit import vocabulary
from tokenq.credit.vocabulary import (
    Search,
    StateFacts,
    VocabularyReader,
    best_tokens,
    survey,
    token_text,
)
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair, load_pair
from tokenq.models.reference import scoring

PROMPTS = [[5, 9, 11], [5, 9, 11], [40, 7]]
RESPONSES = [[21, 33, 8, 2], [21, 33, 90, 91, 2], [17, 2]]


def doubled(pair: Pair) -> Pair:
    return load_pair(pair.policy.double(), pair.reference.double(), tokenizer=pair.tokenizer)


def full_logits(model: torch.nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """Logits [T, V] that predict the response's tokens; nothing of tokenq."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    return logits[len(prompt) - 1 : -1]


def plain_facts(pair: Pair, prompt: list[int], response: list[int]) -> StateFacts:
    logits = full_logits(pair.policy, prompt, response)
    ours = torch.distributions.Categorical(logits=logits)
    theirs = torch.distributions.Categorical(logits=full_logits(pair.reference, prompt, response))
    targets = torch.tensor(response)
    ratios = ours.logits - theirs.logits
    mean = (theirs.probs * ratios).sum(1, keepdim=True)
    return StateFacts(
        logps=ours.log_prob(targets),
        ref_logps=theirs.log_prob(targets),
        entropy=ours.entropy(),
        ref_entropy=theirs.entropy(),
        divergence=torch.distributions.kl_divergence(theirs, ours),
        policy_divergence=torch.distributions.kl_divergence(ours, theirs),
        ratio_variance=(theirs.probs * (ratios - mean).square()).sum(1),
        normaliser=logits.logsumexp(-1),
        taken=logits.gather(1, targets[:, None])[:, 0],
    )


def assert_same(found: StateFacts, expected: StateFacts, tolerance: float) -> None:
    for name in StateFacts.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("elements", [1, 900, 2**23])
def test_facts_equal_full_tensors(
    family: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(vocabulary, "_ROWS", 2)
    pair = doubled(small_pair(family))
    with DoubleThroughout():
        surveys = survey(
            pair, PROMPTS, RESPONSES, k=0, beta=0.1, min_probability=0.0, token_budget=64
        )
        for found, prompt, response in zip(surveys, PROMPTS, RESPONSES, strict=True):
            expected = plain_facts(pair, prompt, response)
            assert expected.divergence.min() > 1e-3
            assert_same(found, expected, 1e-9)
            assert_same(VocabularyReader(pair, prompt, response).facts, expected, 1e-9)
            assert found.alternatives == []


def test_facts_are_single_precision_on_the_cpu_and_the_log_probs_are_those_of_token_logps() -> None:
    pair = small_pair()
    facts = VocabularyReader(pair, PROMPTS[0], RESPONSES[0]).facts
    with scoring(pair.policy) as model:
        [logps] = token_logps(model, PROMPTS[:1], RESPONSES[:1])
    torch.testing.assert_close(facts.logps, logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(facts.logps + facts.normaliser, facts.taken, atol=1e-5, rtol=0)
    for name in StateFacts.__dataclass_fields__:
        column = getattr(facts, name)
        assert (column.dtype, column.shape) == (torch.float32, (4,)), name
        assert not column.requires_grad


def test_equal_models_do_not_differ_by_one_bit() -> None:
    pair = small_pair()
    same = load_pair(pair.policy, pair.policy, tokenizer=pair.tokenizer)
    facts = VocabularyReader(same, PROMPTS[1], RESPONSES[1]).facts
    assert torch.equal(facts.logps, facts.ref_logps)
    assert torch.equal(facts.entropy, facts.ref_entropy)
    assert torch.equal(facts.divergence, torch.zeros(5))


def test_an_adapter_against_its_base() -> None:
    tokenizer = small_pair().tokenizer
    adapted = load_pair(with_adapter(random_model("llama", len(tokenizer), 1)), tokenizer=tokenizer)
    apart = load_pair(
        with_adapter(random_model("llama", len(tokenizer), 1)),
        random_model("llama", len(tokenizer), 1),
        tokenizer=tokenizer,
    )
    facts = VocabularyReader(adapted, PROMPTS[0], RESPONSES[0]).facts
    assert facts.divergence.min() > 1e-4
    assert_same(facts, VocabularyReader(apart, PROMPTS[0], RESPONSES[0]).facts, 2e-5)


def test_heads_with_padding_rows_of_different_number() -> None:
    """Each model is normalised over all its rows; the divergence counts the shared ones."""
    pair = small_pair()
    torch.manual_seed(0)
    pair.reference.resize_token_embeddings(len(pair.tokenizer) + 8, mean_resizing=False)
    facts = VocabularyReader(pair, PROMPTS[0], RESPONSES[0]).facts
    logps = full_logits(pair.policy, PROMPTS[0], RESPONSES[0]).log_softmax(-1)
    theirs = full_logits(pair.reference, PROMPTS[0], RESPONSES[0]).log_softmax(-1)
    width = logps.shape[1]
    assert theirs.shape[1] == width + 8
    entropy = -(theirs.exp() * theirs).sum(1)
    torch.testing.assert_close(facts.ref_entropy, entropy, atol=1e-5, rtol=0)
    shared = theirs[:, :width]
    divergence = (shared.exp() * (shared - logps)).sum(1)
    torch.testing.assert_close(facts.divergence, divergence, atol=1e-5, rtol=0)


def test_tokens_that_a_model_excludes() -> None:
    """Probability 0 under both counts nothing; 0 under the policy alone diverges without end."""
    logits = torch.tensor([[1.0, 0.5, -torch.inf, 0.0]]).repeat(2, 1)
    others = torch.tensor([[0.2, 0.1, -torch.inf, 0.3], [0.2, 0.1, 0.0, 0.3]])
    facts, logps, ref_logps = vocabulary._read_(
        logits.clone(), others.clone(), torch.tensor([[0], [0]])
    )
    kept = [0, 1, 3]
    ours = torch.distributions.Categorical(logits=logits[:1, kept])
    theirs = torch.distributions.Categorical(logits=others[:1, kept])
    torch.testing.assert_close(facts.entropy, ours.entropy().repeat(2))
    torch.testing.assert_close(facts.ref_entropy[:1], theirs.entropy())
    expected = torch.distributions.kl_divergence(theirs, ours)
    torch.testing.assert_close(facts.divergence, torch.cat([expected, torch.tensor([torch.inf])]))
    assert facts.ratio_variance.isfinite().tolist() == [True, False]
    assert facts.policy_divergence.isfinite().all()
    everything = best_tokens(logps[:1], ref_logps[:1], Search(k=4, beta=1.0))
    assert sorted(everything.token_id) == kept


@pytest.mark.parametrize("min_probability", [0.0, 0.003, 0.02])
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_best_tokens_are_those_of_a_full_sort(k: int, min_probability: float) -> None:
    torch.manual_seed(0)
    logps, ref_logps = (torch.randn(7, 211).mul(2).log_softmax(1) for _ in range(2))
    found = best_tokens(logps, ref_logps, Search(k, 0.3, min_probability))
    expected = []
    for row in range(7):
        scored = [
            (0.3 * (float(logps[row, v]) - float(ref_logps[row, v])), row, v)
            for v in range(211)
            if logps[row, v].exp() >= min_probability
        ]
        expected += sorted(scored, reverse=True)[:k]
    assert [(row, v) for _, row, v in expected] == list(
        zip(found.row.tolist(), found.token_id.tolist(), strict=True)
    )
    assert found.reward.tolist() == pytest.approx([reward for reward, _, _ in expected])


def test_texts_of_tokens_are_kept_a_tokenizer() -> None:
    first, second = small_pair().tokenizer, small_pair().tokenizer
    asked = []
    decode = second.decode
    second.decode = lambda *args, **more: asked.append(1) or decode(*args, **more)
    token = first(" film", add_special_tokens=False)["input_ids"][0]
    assert token_text(first, token) == token_text(second, token)
    before = len(asked)
    assert before > 0
    token_text(second, token)
    assert len(asked) == before
