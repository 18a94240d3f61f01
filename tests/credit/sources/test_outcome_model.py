"""Prefix differences of reward models against scoring every prefix by itself."""

from pathlib import Path

import pytest
import torch
from small_pairs import config, small_tokenizer
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tokenq.credit.sources import (
    OutcomeEncoder,
    OutcomeModel,
    continues_text,
    open_outcome_model,
)
from tokenq.errors import UserError

PROMPTS = ["Write one sentence of a film review.", "Go", "Go"]
RESPONSES = [" A dull mess.", " A warm, funny film 🎬 that earns its tears.", " A dull mess."]


def reward_model(family: str = "llama", labels: int = 1, pad: int | None = 0) -> PreTrainedModel:
    """A random classifier on a causal backbone whose rewards differ clearly between prefixes."""
    torch.manual_seed(5)
    options = config(family, len(small_tokenizer()))
    options.num_labels = labels
    options.pad_token_id = pad
    model = AutoModelForSequenceClassification.from_config(options, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def own_answer(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def ids_of(tokenizer: PreTrainedTokenizerFast, row: int) -> tuple[list[int], list[int]]:
    prompt, response = (tokenizer(each[row])["input_ids"] for each in (PROMPTS, RESPONSES))
    return prompt, [*response, tokenizer.eos_token_id]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [0, 2, None])
@pytest.mark.parametrize("token_budget", [4096, 8])
def test_one_forward_equals_scoring_every_prefix(
    family: str, pad: int | None, token_budget: int
) -> None:
    """Also where padding is the end token (2), which the model then never looks at."""
    model, tokenizer = reward_model(family, pad=pad), small_tokenizer()
    source = OutcomeModel(model, tokenizer, token_budget=token_budget)
    for row, scores in enumerate(source.score(PROMPTS, RESPONSES)):
        prompt, response = ids_of(tokenizer, row)
        prefixes = [prompt + response[:end] for end in range(len(response) + 1)]
        rewards = torch.stack([own_answer(model, prefix)[0] for prefix in prefixes])
        torch.testing.assert_close(scores.scores, rewards.diff(), atol=2e-5, rtol=1e-5)
        assert float(scores.scores[:-1].abs().min()) > 1e-5
        assert (float(scores.scores[-1]) == 0) == (pad == 2)
        whole = own_answer(model, prompt + response) - own_answer(model, prompt)
        assert float(scores.scores.sum()) == pytest.approx(float(whole), abs=1e-4)
        assert scores.offsets[-1] == (len(RESPONSES[row]),) * 2


def test_log_odds_of_a_label() -> None:
    model, tokenizer = reward_model(labels=3), small_tokenizer()
    [scores] = OutcomeModel(model, tokenizer, label=1).score(PROMPTS[:1], RESPONSES[:1])
    prompt, response = ids_of(tokenizer, 0)
    odds = []
    for end in range(len(response) + 1):
        chances = own_answer(model, prompt + response[:end]).double().softmax(-1)
        odds.append((chances[1] / (1 - chances[1])).log())
    torch.testing.assert_close(scores.scores, torch.stack(odds).diff().float(), atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="has 3 labels; accepted: label=, 0 to 2"):
        OutcomeModel(model, tokenizer)
    with pytest.raises(UserError, match="label is 3; accepted: 0 to 2"):
        OutcomeModel(model, tokenizer, label=3)


def test_scores_do_not_depend_on_the_batch() -> None:
    source = OutcomeModel(reward_model("gpt2"), small_tokenizer())
    for row, together in enumerate(source.score(PROMPTS, RESPONSES)):
        [alone] = source.score([PROMPTS[row]], [RESPONSES[row]])
        torch.testing.assert_close(together.scores, alone.scores, atol=2e-5, rtol=0)


def test_messages_and_bad_rows() -> None:
    source = OutcomeModel(reward_model(), small_tokenizer())
    messages = [{"role": "user", "content": PROMPTS[0]}]
    [scores] = source.score([messages], ["A dull mess."])
    assert scores.text == "A dull mess."
    with pytest.raises(UserError, match="row 1: the response is empty"):
        source.score(PROMPTS[:2], [" A film.", ""])
    with pytest.raises(UserError, match=r"row 0: prompt and response have \d+ tokens"):
        source.score(["The plot is a dull mess of jokes. " * 30], RESPONSES[:1])


class LooksAhead(torch.nn.Module):
    """A backbone whose every state knows the whole text."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        output = self.inner(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(
            1, keepdim=True
        )
        return output


def test_a_model_that_looks_ahead_is_found_out() -> None:
    model = reward_model()
    assert continues_text(model)
    model.model = LooksAhead(model.model)
    assert not continues_text(model)
    with pytest.raises(UserError, match="does not score every prefix in one forward"):
        OutcomeModel(model, small_tokenizer())


# --- encoders -------------------------------------------------------------------------------------


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The small tokenizer as an encoder's: `<s> prompt </s> response </s>`, no end token."""
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return tokenizer


def encoder(labels: int = 1) -> PreTrainedModel:
    torch.manual_seed(6)
    options = BertConfig(
        vocab_size=len(small_tokenizer()), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
        num_labels=labels, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(options, dtype=torch.float32).eval()


@pytest.mark.parametrize("token_budget", [4096, 32])
def test_an_encoder_reads_every_prefix(token_budget: int) -> None:
    model, tokenizer = encoder(), encoder_tokenizer()
    assert not continues_text(model)
    source = OutcomeEncoder(model, tokenizer, token_budget=token_budget)
    for row, scores in enumerate(source.score(PROMPTS, RESPONSES)):
        sides = [
            tokenizer(each[row], add_special_tokens=False)["input_ids"]
            for each in (PROMPTS, RESPONSES)
        ]
        rewards = []
        for end in range(len(sides[1]) + 1):
            ids = [1, *sides[0], 2, *sides[1][:end], 2]
            types = [0] * (len(sides[0]) + 2) + [1] * (end + 1)
            with torch.no_grad():
                logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
            rewards.append(logits[0, 0])
        expected = torch.stack(rewards).diff()
        torch.testing.assert_close(scores.scores, expected, atol=2e-5, rtol=1e-5)
        assert scores.offsets[-1][1] == len(RESPONSES[row])
        assert float(expected.abs().min()) > 1e-5


def test_an_encoder_reads_texts_only() -> None:
    source = OutcomeEncoder(encoder(), encoder_tokenizer())
    with pytest.raises(UserError, match="row 0: the prompt is messages"):
        source.score([[{"role": "user", "content": "Go"}]], RESPONSES[:1])
    with pytest.raises(UserError, match="row 0: the response has no token"):
        source.score(PROMPTS[:1], [""])
    with pytest.raises(UserError, match=r"row 1: prompt and response have \d+ tokens"):
        source.score([PROMPTS[0], "The plot is a dull mess. " * 20], RESPONSES[:2])


def test_opened_by_name(tmp_path: Path) -> None:
    causal, other = tmp_path / "causal", tmp_path / "encoder"
    reward_model().save_pretrained(causal)
    small_tokenizer().save_pretrained(causal)
    encoder().save_pretrained(other)
    encoder_tokenizer().save_pretrained(other)
    assert isinstance(open_outcome_model(causal), OutcomeModel)
    source = open_outcome_model(other)
    assert isinstance(source, OutcomeEncoder)
    [scores] = source.score(PROMPTS[:1], RESPONSES[:1])
    [expected] = OutcomeEncoder(encoder(), encoder_tokenizer()).score(PROMPTS[:1], RESPONSES[:1])
    torch.testing.assert_close(scores.scores, expected.scores)
    assert str(other) in scores.name
