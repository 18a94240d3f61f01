"""Sources on causal models against plain forwards, and the ways to be silently wrong."""

import pytest
import torch
from small_pairs import random_model, small_pair, small_tokenizer, with_adapter
from torch import Tensor
from transformers import ByT5Tokenizer

import tokenq
from tokenq.credit.sources import (
    Contrast,
    DiscriminativePolicy,
    Entropy,
    Estimated,
    ImplicitReward,
    LanguageModel,
    Length,
    Oracle,
    Position,
    PromptInformation,
    Surprisal,
    TokenScores,
    project,
    shared_forwards,
)
from tokenq.errors import UserError
from tokenq.models.pair import Pair, load_pair

PROMPTS = ["Write one sentence of a film review.", "Go", "Go"]
RESPONSES = [" A dull mess.", " A warm, funny film 🎬 that earns its tears.", " A dull mess."]


def full_logits(model: torch.nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def parts(pair: Pair, row: int) -> tuple[list[int], list[int]]:
    prompt, response = (pair.tokenizer(each[row])["input_ids"] for each in (PROMPTS, RESPONSES))
    return prompt, [*response, pair.tokenizer.eos_token_id]


def plain(model: torch.nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """Logits [T, V] that predict the response, from one unbatched forward; nothing of tokenq."""
    return full_logits(model, prompt + response)[len(prompt) - 1 : -1]


def taken(values: Tensor, response: list[int]) -> Tensor:
    return values.gather(1, torch.tensor(response)[:, None])[:, 0]


def assert_rows(found: list[TokenScores], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for row, (scores, values) in enumerate(zip(found, expected, strict=True)):
        assert scores.text == RESPONSES[row]
        assert scores.offsets[-1] == (len(RESPONSES[row]),) * 2
        torch.testing.assert_close(scores.scores, values.float(), atol=2e-5, rtol=1e-5)


@pytest.fixture(params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return small_pair(request.param)


def test_implicit_reward_is_credit(pair: Pair) -> None:
    found = ImplicitReward(pair, beta=0.3).score(PROMPTS, RESPONSES)
    for row, scores in enumerate(found):
        credit = tokenq.credit(pair, PROMPTS[row], RESPONSES[row], beta=0.3)
        torch.testing.assert_close(scores.scores, credit.rewards, atol=1e-5, rtol=0)
        assert scores.offsets == credit.offsets
    assert found[0].higher == "liked"


def test_estimated_is_the_estimate_of_credit() -> None:
    pair = small_pair()
    for name in ("plain", "centred", "words", "standardised"):
        found = Estimated(pair, name, beta=0.3).score(PROMPTS, RESPONSES)
        for row, scores in enumerate(found):
            expected = tokenq.credit(pair, PROMPTS[row], RESPONSES[row], beta=0.3).estimate(name)
            torch.testing.assert_close(scores.scores, expected.float(), atol=1e-5, rtol=0)
            assert scores.additive == (name in ("plain", "centred"))
    with pytest.raises(UserError, match="estimator is 'best'"):
        Estimated(pair, "best")


def test_surprisal_and_entropy(pair: Pair) -> None:
    for model, reader in (
        (pair.policy, LanguageModel.policy_of(pair)),
        (pair.reference, LanguageModel.reference_of(pair)),
    ):
        surprisals, entropies = [], []
        for row in range(3):
            prompt, response = parts(pair, row)
            logps = plain(model, prompt, response).log_softmax(-1)
            surprisals.append(-taken(logps, response))
            entropies.append(-(logps.exp() * logps).sum(-1))
        assert_rows(Surprisal(reader).score(PROMPTS, RESPONSES), surprisals)
        assert_rows(Entropy(reader).score(PROMPTS, RESPONSES), entropies)


def test_contrast(pair: Pair) -> None:
    policy, reference = LanguageModel.policy_of(pair), LanguageModel.reference_of(pair)
    expected = []
    for row in range(3):
        prompt, response = parts(pair, row)
        ours, theirs = (
            taken(plain(model, prompt, response).log_softmax(-1), response)
            for model in (pair.policy, pair.reference)
        )
        expected.append(theirs - ours)
    assert_rows(Contrast(reference, policy).score(PROMPTS, RESPONSES), expected)


def test_contrast_of_two_vocabularies_is_refused() -> None:
    first = LanguageModel.policy_of(small_pair())
    words = small_tokenizer(380)
    second = LanguageModel(random_model("llama", len(words), 3), words, "other")
    with pytest.raises(UserError, match=r"do not share a vocabulary: token id \d+"):
        Contrast(first, second)


def test_prompt_information(pair: Pair) -> None:
    expected = []
    for row in range(3):
        prompt, response = parts(pair, row)
        with_prompt, without = (
            taken(plain(pair.policy, context, response).log_softmax(-1), response)
            for context in (prompt, [pair.tokenizer.bos_token_id])
        )
        expected.append(with_prompt - without)
    source = PromptInformation(LanguageModel.policy_of(pair))
    assert_rows(source.score(PROMPTS, RESPONSES), expected)


def test_prompt_information_of_messages_and_without_bos() -> None:
    pair = small_pair()
    reader = LanguageModel.policy_of(pair)
    messages = [{"role": "user", "content": PROMPTS[0]}]
    [scores] = PromptInformation(reader).score([messages], ["A dull mess."])
    full, empty = (
        pair.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        for content in (PROMPTS[0], "")
    )
    response = [*pair.tokenizer("A dull mess.")["input_ids"], pair.tokenizer.eos_token_id]
    sides = [
        taken(plain(pair.policy, context, response).log_softmax(-1), response)
        for context in (full, empty)
    ]
    torch.testing.assert_close(scores.scores, sides[0] - sides[1], atol=1e-5, rtol=0)

    pair.tokenizer.bos_token = None
    with pytest.raises(UserError, match=r"no BOS token; .*accepted: without="):
        PromptInformation(reader).score(PROMPTS[:1], RESPONSES[:1])
    assert PromptInformation(reader, without="Say:").score(PROMPTS[:1], RESPONSES[:1])


@pytest.mark.parametrize("gauge", ["logit", "mean", "policy"])
def test_discriminative_policy(pair: Pair, gauge: str) -> None:
    expected = []
    for row in range(3):
        prompt, response = parts(pair, row)
        logits = plain(pair.policy, prompt, response)
        shift = {
            "logit": 0.0,
            "mean": logits.mean(-1, keepdim=True),
            "policy": logits.logsumexp(-1, keepdim=True),
        }[gauge]
        expected.append(0.5 * taken(logits - shift, response))
    source = DiscriminativePolicy(LanguageModel.policy_of(pair), beta=0.5, gauge=gauge)  # type: ignore[arg-type]
    assert_rows(source.score(PROMPTS, RESPONSES), expected)


def test_what_a_shift_of_a_states_logits_moves() -> None:
    """A bias that all logits share moves the raw logit and neither of the other gauges."""
    pair = small_pair()
    head = pair.policy.get_output_embeddings()
    moved = torch.nn.Linear(head.in_features, head.out_features, bias=True)
    moved.weight.data = head.weight.data.clone()
    moved.bias.data.fill_(3.0)
    shifted = {}
    for gauge in ("logit", "mean", "policy"):
        source = DiscriminativePolicy(LanguageModel.policy_of(pair), 1.0, gauge)  # type: ignore[arg-type]
        pair.policy.set_output_embeddings(head)
        [before] = source.score(PROMPTS[:1], RESPONSES[:1])
        pair.policy.set_output_embeddings(moved)
        [after] = source.score(PROMPTS[:1], RESPONSES[:1])
        shifted[gauge] = (after.scores - before.scores).mean().item()
    assert shifted == pytest.approx({"logit": 3.0, "mean": 0.0, "policy": 0.0}, abs=1e-4)


def test_an_unknown_gauge_is_refused() -> None:
    with pytest.raises(UserError, match="gauge is 'q'; accepted: logit, mean, policy"):
        DiscriminativePolicy(LanguageModel.policy_of(small_pair()), gauge="q")  # type: ignore[arg-type]


def test_position_and_length() -> None:
    tokenizer = small_tokenizer()
    _, position = Position(tokenizer).score(PROMPTS[:2], RESPONSES[:2])
    assert position.scores.tolist() == list(range(len(position)))
    lengths = Length(tokenizer).score(PROMPTS, RESPONSES)
    for scores, response in zip(lengths, RESPONSES, strict=True):
        assert float(scores.scores.sum()) == pytest.approx(len("".join(response.split())))
        assert float(scores.scores[-1]) == 0


def test_an_oracle_of_the_same_tokenizer_moves_nothing() -> None:
    pair = small_pair()
    source = ImplicitReward(pair)
    moved = Oracle(source, pair.tokenizer).score(PROMPTS, RESPONSES)
    for own, other in zip(source.score(PROMPTS, RESPONSES), moved, strict=True):
        assert other.offsets == own.offsets
        torch.testing.assert_close(other.scores, own.scores, atol=1e-5, rtol=0)


def test_an_oracle_reads_the_text_of_a_model_with_other_tokens() -> None:
    oracle, words = small_pair(), small_tokenizer(300)
    source = ImplicitReward(oracle, beta=0.4)
    moved = Oracle(source, words).score(PROMPTS, RESPONSES)
    for row, scores in enumerate(moved):
        own = tokenq.credit(oracle, PROMPTS[row], RESPONSES[row], beta=0.4)
        theirs = words(RESPONSES[row], return_offsets_mapping=True)["offset_mapping"]
        assert scores.offsets == (*theirs, own.offsets[-1])
        assert len(scores) > len(own)
        assert float(scores.scores.sum()) == pytest.approx(own.reward, abs=1e-5)
        assert float(scores.scores[-1]) == pytest.approx(float(own.rewards[-1]), abs=1e-6)
        plain_scores = TokenScores(RESPONSES[row], own.offsets, own.rewards, "s", "u")
        expected = project(plain_scores, scores.offsets).scores
        torch.testing.assert_close(scores.scores, expected, atol=1e-5, rtol=0)


def test_models_are_run_once_within_shared_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = small_pair()
    calls = []
    forward = type(pair.policy.base_model).forward

    def counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(self)
        return forward(self, *args, **kwargs)

    policy = LanguageModel.policy_of(pair)
    sources = [ImplicitReward(pair), Surprisal(policy), Entropy(policy)]
    for source in sources:  # the first call of a model probes it
        source.score(PROMPTS, RESPONSES)
    monkeypatch.setattr(type(pair.policy.base_model), "forward", counted)
    alone = [source.score(PROMPTS, RESPONSES) for source in sources]
    assert len(calls) == 4
    calls.clear()
    with shared_forwards():
        together = [source.score(PROMPTS, RESPONSES) for source in sources]
    assert len(calls) == 2
    for first, second in zip(alone, together, strict=True):
        for one, two in zip(first, second, strict=True):
            torch.testing.assert_close(one.scores, two.scores)


def test_shared_forwards_keep_nothing_beyond_themselves() -> None:
    pair = small_pair()
    source = Surprisal(LanguageModel.policy_of(pair))
    with shared_forwards():
        [before] = source.score(PROMPTS[:1], RESPONSES[:1])
    with torch.no_grad():
        pair.policy.get_output_embeddings().weight.mul_(0.5)
    with shared_forwards():
        [after] = source.score(PROMPTS[:1], RESPONSES[:1])
    assert not torch.allclose(before.scores, after.scores, atol=1e-2)


def test_an_adapted_policy_and_its_base_are_two_readers_of_one_model() -> None:
    tokenizer = small_tokenizer()
    separate = random_model("llama", len(tokenizer), 1)
    policy = with_adapter(random_model("llama", len(tokenizer), 1))
    pair = load_pair(policy, tokenizer=tokenizer)
    expected = ImplicitReward(load_pair(policy, separate, tokenizer=tokenizer))
    with shared_forwards():
        found = ImplicitReward(pair).score(PROMPTS, RESPONSES)
        base = Surprisal(LanguageModel.reference_of(pair)).score(PROMPTS, RESPONSES)
    plain_base = Surprisal(LanguageModel(separate, tokenizer, "base")).score(PROMPTS, RESPONSES)
    for ours, theirs in zip(found, expected.score(PROMPTS, RESPONSES), strict=True):
        assert float(ours.scores.abs().min()) > 1e-6
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
    for ours, theirs in zip(base, plain_base, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, atol=2e-5, rtol=0)


# --- the ways to be silently wrong ----------------------------------------------------------------


def every_source(pair: Pair) -> list:  # type: ignore[type-arg]
    policy = LanguageModel.policy_of(pair)
    return [
        ImplicitReward(pair),
        Estimated(pair, "centred"),
        Oracle(ImplicitReward(pair), pair.tokenizer),
        Surprisal(policy),
        Entropy(policy),
        Contrast(policy, LanguageModel.reference_of(pair)),
        PromptInformation(policy),
        DiscriminativePolicy(policy),
        Position(pair.tokenizer),
        Length(pair.tokenizer),
    ]


def test_1_a_response_that_also_stands_in_the_prompt(pair: Pair) -> None:
    prompt, response = f"Say:{RESPONSES[0]} And again:", RESPONSES[0]
    ids = [pair.tokenizer(each)["input_ids"] for each in (prompt, response)]
    ids[1].append(pair.tokenizer.eos_token_id)
    [scores] = Surprisal(LanguageModel.policy_of(pair)).score([prompt], [response])
    expected = -taken(plain(pair.policy, *ids).log_softmax(-1), ids[1])
    torch.testing.assert_close(scores.scores, expected, atol=1e-5, rtol=0)


def test_2_a_long_prompt_is_refused_naming_the_row() -> None:
    pair = small_pair()
    prompts = ["Go", "The plot is a dull mess of jokes. " * 30]
    for source in every_source(pair):
        if isinstance(source, Position | Length):
            continue
        with pytest.raises(UserError, match=r"row 1: prompt and response have \d+ tokens"):
            source.score(prompts, RESPONSES[:2])


def test_3a_a_template_that_trims() -> None:
    pair = small_pair()
    pair.tokenizer.chat_template = pair.tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content | trim }}"
    )
    messages = [[{"role": "user", "content": PROMPTS[0]}]] * 2
    for source in every_source(pair):
        trimmed, clean = source.score(messages, ["  A dull mess. ", "A dull mess."])
        torch.testing.assert_close(trimmed.scores, clean.scores)
        assert trimmed.offsets[0][0] == 2


def test_3b_a_tokenizer_without_offsets_is_refused() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    models = [random_model("llama", len(tokenizer), seed) for seed in (1, 2)]
    for source in every_source(load_pair(*models, tokenizer=tokenizer)):
        with pytest.raises(UserError, match="no character offsets"):
            source.score(PROMPTS, RESPONSES)


def test_3c_an_empty_response_is_refused_naming_the_row() -> None:
    for source in every_source(small_pair()):
        with pytest.raises(UserError, match="row 1: the response is empty"):
            source.score(PROMPTS[:2], [" A film.", ""])


def test_4_scores_do_not_depend_on_the_batch(pair: Pair) -> None:
    for source in every_source(pair):
        together = source.score(PROMPTS, RESPONSES)
        for row, scores in enumerate(together):
            [alone] = source.score([PROMPTS[row]], [RESPONSES[row]])
            torch.testing.assert_close(scores.scores, alone.scores, atol=2e-5, rtol=0)


def test_8_the_end_has_its_own_term() -> None:
    pair = small_pair()
    for source in every_source(pair):
        [scores] = source.score(PROMPTS[:1], RESPONSES[:1])
        assert scores.offsets[-1] == (len(RESPONSES[0]),) * 2
        if not isinstance(source, Length):
            assert abs(float(scores.scores[-1])) > 1e-4


def test_a_pair_without_a_reference_is_refused() -> None:
    pair = small_pair()
    alone = Pair(pair.policy, None, pair.tokenizer, "my-policy")
    with pytest.raises(UserError, match="'my-policy' has no reference"):
        ImplicitReward(alone)
    assert Surprisal(LanguageModel.policy_of(alone)).score(PROMPTS, RESPONSES)


def test_lists_must_agree() -> None:
    with pytest.raises(ValueError, match="3 prompts but 2 responses"):
        ImplicitReward(small_pair()).score(PROMPTS, RESPONSES[:2])


def test_an_answer_of_several_turns_is_refused_naming_the_row() -> None:
    prompt = [{"role": "user", "content": PROMPTS[0]}]
    turns = [
        {"role": "assistant", "content": "A dull mess."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "The jokes."},
    ]
    for source in every_source(small_pair()):
        assert source.score([prompt], [turns[:1]])
        with pytest.raises(UserError, match="row 1: the answer has 3 messages; accepted: text"):
            source.score([prompt, prompt], [turns[:1], turns])
