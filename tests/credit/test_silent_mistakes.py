"""Eight ways in which a per-token reward can be silently wrong, each shown not to happen here."""

from pathlib import Path

import pytest
import torch
from small_pairs import config, random_model, small_pair, small_tokenizer, with_adapter
from transformers import AutoModelForSequenceClassification, ByT5Tokenizer

import tokenq
from tokenq.credit import credit_dataset
from tokenq.credit.dataset import CreditOptions
from tokenq.data.loading import load_rows
from tokenq.errors import UserError
from tokenq.models.pair import load_pair

PROMPT = "Write one sentence of a film review."


def plain_rewards(policy, reference, prompt: list[int], response: list[int]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """0.1 * log-ratio of each response token from two unbatched, unpadded forwards."""
    sides = []
    for model in (policy, reference):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        sides.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return 0.1 * (sides[0] - sides[1])


def write_rows(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_1_a_response_that_also_stands_in_the_prompt() -> None:
    pair = small_pair()
    response = " A dull mess."
    prompt = f"Say:{response} And again:"
    ids = [pair.tokenizer(each)["input_ids"] for each in (prompt, response)]
    ids[1].append(pair.tokenizer.eos_token_id)
    credit = tokenq.credit(pair, prompt, response)
    expected = plain_rewards(pair.policy, pair.reference, *ids)
    torch.testing.assert_close(credit.rewards, expected, atol=1e-5, rtol=0)
    first = plain_rewards(pair.policy, pair.reference, pair.tokenizer("Say:")["input_ids"], ids[1])
    assert not torch.allclose(credit.rewards, first, atol=1e-3)


def test_2_a_long_prompt_is_refused_or_left_out_never_scored_in_place_of_the_response(
    tmp_path: Path,
) -> None:
    pair = small_pair()
    long_prompt = "The plot is a dull mess of jokes. " * 30
    with pytest.raises(UserError, match=r"have \d+ tokens; accepted: 128"):
        tokenq.credit(pair, long_prompt, " A warm film.")

    rows = load_rows(
        write_rows(
            tmp_path / "rows.jsonl",
            f'{{"prompt": "{long_prompt}", "completion": " A warm film."}}',
            f'{{"prompt": "{PROMPT}", "completion": " A warm, funny film that earns its tears."}}',
        )
    )
    longest = len(pair.tokenizer(PROMPT)["input_ids"]) + 3
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(max_length=longest))
    assert run.summary.skipped == {
        f"the prompt leaves no room for a response in {longest} tokens": 1
    }
    [record] = run.records()
    side = record["responses"]["completion"]
    whole = tokenq.credit(pair, PROMPT, " A warm, funny film that earns its tears.")
    assert side["token_ids"] == list(whole.token_ids[:3])
    assert side["rewards"] == pytest.approx(whole.rewards[:3].tolist(), abs=1e-5)
    assert side["tokens_cut"] == len(whole) - 3
    assert run.summary.truncated == 1


def test_3a_a_template_that_trims() -> None:
    pair = small_pair()
    pair.tokenizer.chat_template = pair.tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content | trim }}"
    )
    messages = [{"role": "user", "content": PROMPT}]
    trimmed = tokenq.credit(pair, messages, "  A dull mess. ")
    clean = tokenq.credit(pair, messages, "A dull mess.")
    assert trimmed.token_ids == clean.token_ids
    torch.testing.assert_close(trimmed.rewards, clean.rewards)
    assert trimmed.offsets[0][0] == 2
    assert "".join(trimmed.tokens[:-1]) == "A dull mess."


def test_3b_a_tokenizer_without_offsets_is_refused() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    models = [random_model("llama", len(tokenizer), seed) for seed in (1, 2)]
    pair = load_pair(*models, tokenizer=tokenizer)
    with pytest.raises(UserError, match="no character offsets"):
        tokenq.credit(pair, PROMPT, " A film.")


def test_3c_an_empty_response_is_refused() -> None:
    pair = small_pair()
    with pytest.raises(UserError, match="the response is empty"):
        tokenq.credit(pair, PROMPT, "")
    with pytest.raises(UserError, match="the response is empty"):
        tokenq.credit(pair, [{"role": "user", "content": PROMPT}], "")


@pytest.mark.parametrize("alternatives", [0, 2])
def test_4_absolute_positions_do_not_depend_on_the_batch(tmp_path: Path, alternatives: int) -> None:
    pair = small_pair("gpt2")
    texts = [" A.", " A warm, funny and deeply felt film that earns every one of its tears."]
    lines = [
        f'{{"prompt": "{prompt}", "completion": "{text}"}}'
        for prompt in ("Go", PROMPT)
        for text in texts
    ]
    rows = load_rows(write_rows(tmp_path / "rows.jsonl", *lines))
    run = credit_dataset(pair, rows, tmp_path / "out", CreditOptions(alternatives=alternatives))
    for record in run.records():
        side = record["responses"]["completion"]
        prompt = pair.tokenizer(record["prompt"])["input_ids"]
        expected = plain_rewards(pair.policy, pair.reference, prompt, side["token_ids"])
        assert side["rewards"] == pytest.approx(expected.tolist(), abs=2e-5)


def test_5_the_base_inside_an_adapted_policy_is_a_real_reference() -> None:
    tokenizer = small_tokenizer()
    separate = random_model("llama", len(tokenizer), 1)
    policy = with_adapter(random_model("llama", len(tokenizer), 1))
    expected = tokenq.credit(
        load_pair(policy, separate, tokenizer=tokenizer), PROMPT, " A dull mess."
    )
    assert expected.rewards.abs().min() > 1e-5
    for reference in (None, policy.get_base_model()):
        pair = load_pair(policy, reference, tokenizer=tokenizer)
        credit = tokenq.credit(pair, PROMPT, " A dull mess.")
        torch.testing.assert_close(credit.rewards, expected.rewards, atol=1e-5, rtol=0)
        best, same = credit.alternatives(1, 3), expected.alternatives(1, 3)
        assert [each.token_id for each in best] == [each.token_id for each in same]


@pytest.mark.parametrize(("ours", "theirs"), [(400, 380), (380, 400)])
def test_6_another_vocabulary_is_refused_naming_the_token(
    tmp_path: Path, ours: int, theirs: int
) -> None:
    for name, size in (("policy", ours), ("reference", theirs)):
        tokenizer = small_tokenizer(size)
        random_model("llama", len(tokenizer), 1).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(UserError, match=r"do not share a vocabulary: token id \d+"):
        load_pair(tmp_path / "policy", tmp_path / "reference")


def test_7_a_model_without_a_language_head_is_refused(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    random_model("llama", len(tokenizer), 1).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    classifier = AutoModelForSequenceClassification.from_config(config("llama", len(tokenizer)))
    classifier.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    with pytest.raises(UserError, match="classifier"):
        load_pair(tmp_path / "policy", tmp_path / "classifier")
    with pytest.raises(UserError, match="classifier"):
        load_pair(tmp_path / "classifier", tmp_path / "policy")


def test_8_the_end_has_its_own_term() -> None:
    pair = small_pair()
    for prompt in (PROMPT, [{"role": "user", "content": PROMPT}]):
        credit = tokenq.credit(pair, prompt, " A dull mess.")
        assert credit.token_ids[-1] == pair.tokenizer.eos_token_id
        assert credit.token_ids.count(pair.tokenizer.eos_token_id) == 1
        assert float(credit.rewards[-1].abs()) > 1e-4
        assert credit.alternatives(-1, 1)
