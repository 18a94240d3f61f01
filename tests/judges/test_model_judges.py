"""Reward models and implicit rewards as judges against the models' own answers, row by row."""

import pytest
import torch
from small_pairs import config, small_pair, small_tokenizer
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from tokenq import credit
from tokenq.errors import UserError
from tokenq.judges import Comparison, ImplicitReward, RewardModel, judge_comparisons
from tokenq.models.pair import load_pair

PROMPTS = ["Write one sentence of a film review.", "Go", "Go", "Go"]
RESPONSES = [" A dull mess.", " A warm, funny film that earns its tears.", " A dull mess.", ""]


def reward_model(family: str = "llama", labels: int = 1, pad: int | None = 0) -> PreTrainedModel:
    torch.manual_seed(5)
    options = config(family, len(small_tokenizer()))
    options.num_labels = labels
    options.pad_token_id = pad
    model = AutoModelForSequenceClassification.from_config(options, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def own_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize("token_budget", [4096, 8])
def test_a_reward_model_gives_its_own_answer_to_prompt_and_response(
    family: str, pad: int | None, token_budget: int
) -> None:
    model, tokenizer = reward_model(family, pad=pad), small_tokenizer()
    scores = RewardModel(model, tokenizer, token_budget=token_budget)(PROMPTS, RESPONSES)
    for prompt, response, score in zip(PROMPTS, RESPONSES, scores, strict=True):
        ids = [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
        assert score == pytest.approx(float(own_logits(model, ids)), abs=1e-5)
    assert len({round(score, 4) for score in scores}) == 4


def test_messages_go_through_the_chat_template() -> None:
    model, tokenizer = reward_model(), small_tokenizer()
    turns = [{"role": "user", "content": "Go"}]
    [score] = RewardModel(model, tokenizer)([turns], ["A dull mess."])
    whole = [*turns, {"role": "assistant", "content": "A dull mess."}]
    text = tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert score == pytest.approx(float(own_logits(model, ids)), abs=1e-5)


def test_of_several_labels_the_log_odds_of_one_are_the_score() -> None:
    model, tokenizer = reward_model(labels=3), small_tokenizer()
    [score] = RewardModel(model, tokenizer, label=1)(PROMPTS[:1], RESPONSES[:1])
    ids = [*tokenizer(PROMPTS[0] + RESPONSES[0])["input_ids"], tokenizer.eos_token_id]
    share = float(own_logits(model, ids).softmax(0)[1])
    assert score == pytest.approx(torch.tensor(share).logit().item(), abs=1e-4)
    with pytest.raises(UserError, match="3 labels; accepted: label="):
        RewardModel(model, tokenizer)


def test_an_encoder_reads_two_texts() -> None:
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    torch.manual_seed(4)
    options = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, num_labels=1, initializer_range=0.3,
        pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(options, dtype=torch.float32).eval()
    scores = RewardModel(model, tokenizer)(PROMPTS, RESPONSES)
    for prompt, response, score in zip(PROMPTS, RESPONSES, scores, strict=True):
        row = tokenizer(prompt, response, return_token_type_ids=True, return_tensors="pt")
        with torch.no_grad():
            assert score == pytest.approx(float(model(**row).logits), abs=1e-5)
    with pytest.raises(UserError, match="the model reads two texts; accepted: text"):
        RewardModel(model, tokenizer)([[{"role": "user", "content": "Go"}]], ["x"])
    with pytest.raises(UserError, match="accepted: 64, what the model reads"):
        RewardModel(model, tokenizer)(["Go"], [" film" * 80])


def test_the_implicit_reward_is_the_sum_of_token_credit() -> None:
    pair = small_pair()
    scores = ImplicitReward(pair, beta=0.3)(PROMPTS[:3], RESPONSES[:3])
    for prompt, response, score in zip(PROMPTS, RESPONSES, scores, strict=False):
        assert score == pytest.approx(float(credit(pair, prompt, response, 0.3).rewards.sum()))


def test_an_empty_response_is_its_end_token() -> None:
    pair = small_pair()
    [score] = ImplicitReward(pair, beta=1.0)(["Go"], [""])
    ids = torch.tensor([pair.tokenizer("Go")["input_ids"]])
    logps = []
    for model in (pair.policy, pair.reference):
        with torch.no_grad():
            logps.append(model(ids).logits[0, -1].log_softmax(-1)[pair.tokenizer.eos_token_id])
    assert score == pytest.approx(float(logps[0] - logps[1]), abs=1e-5)


def test_what_a_model_cannot_read_whole_is_refused_by_name() -> None:
    judges = [ImplicitReward(small_pair()), RewardModel(reward_model(), small_tokenizer())]
    for judge in judges:
        with pytest.raises(UserError, match=r"prompt 'Go': prompt and response have \d+ tokens; a"):
            judge(["Go"], [" film" * 200])


def test_a_pair_without_a_reference_judges_nothing() -> None:
    pair = small_pair()
    alone = load_pair(pair.policy, tokenizer=pair.tokenizer)
    with pytest.raises(UserError, match="has no reference"):
        ImplicitReward(alone)
    with pytest.raises(UserError, match="beta is 0"):
        ImplicitReward(pair, beta=0)


def test_verdicts_follow_the_scores() -> None:
    judge = RewardModel(reward_model(), small_tokenizer())
    comparisons = [Comparison("Go", RESPONSES[1], RESPONSES[2]), Comparison("Go", " x", " x")]
    first, equal = judge_comparisons(judge, comparisons)
    assert first.scores == pytest.approx(tuple(judge(["Go"] * 2, RESPONSES[1:3])), abs=1e-5)
    assert first.preference == float(first.scores[0] > first.scores[1])
    assert equal.preference == 0.5
