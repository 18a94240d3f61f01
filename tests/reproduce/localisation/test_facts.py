"""What models say of tokens, against whole distributions and plain gradients."""

import pytest
import torch
from peft import PeftModel
from tiny_training import tiny_llama
from torch import Tensor
from wrong_words import LAYERS, training_pairs, wrong_and_right_texts

from tokenq.models import load_policy
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.localisation.arms import DPO
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.facts import (
    Reading,
    gradient_input,
    read_pair,
    read_start,
    rounded,
)

RECIPE = Recipe(batch_size=4, learning_rate=0.05, lora_r=4)


@pytest.fixture
def reading(bench: Bench) -> Reading:
    return Reading([bench.encoder(each.prompt, each.text) for each in wrong_and_right_texts()])


def distributions(model: torch.nn.Module, reading: Reading) -> list[Tensor]:
    """[T, V] log-probs at the positions of each text, by one plain forward each."""
    found = []
    for prompt, response in zip(reading.prompts, reading.responses, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        found.append(logits.double().log_softmax(-1)[len(prompt) - 1 : -1])
    return found


def plain_model() -> torch.nn.Module:
    return tiny_llama(layers=LAYERS).eval()


def test_log_probs_and_entropy_of_the_start(bench: Bench, reading: Reading) -> None:
    facts = read_start(bench.model, reading)
    pairs = zip(distributions(plain_model(), reading), reading.responses, strict=True)
    for number, (logps, ids) in enumerate(pairs):
        taken = logps.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert facts["logps"][number] == pytest.approx(taken.tolist(), rel=1e-4)
        entropy = -(logps.exp() * logps).sum(-1)
        assert facts["entropy"][number] == pytest.approx(entropy.tolist(), rel=1e-4)


def test_facts_of_a_trained_policy_are_those_of_whole_distributions(
    bench: Bench, reading: Reading
) -> None:
    states = reading.states(bench.model)
    with bench.trained(DPO, training_pairs(0, ""), RECIPE, 0) as policy:
        assert isinstance(policy, PeftModel)
        facts = read_pair(policy, bench.tokenizer, reading, states)
        ours = distributions(policy, reading)
    theirs = distributions(plain_model(), reading)
    assert max(max(row) for row in facts["divergence"]) > 1e-3
    for number, (logps, before, ids) in enumerate(
        zip(ours, theirs, reading.responses, strict=True)
    ):
        ratio, index = logps - before, torch.tensor(ids)[:, None]
        mean = (before.exp() * ratio).sum(-1)
        expected = {
            "logps": logps.gather(1, index)[:, 0],
            "ref_logps": before.gather(1, index)[:, 0],
            "entropy": -(logps.exp() * logps).sum(-1),
            "divergence": -mean,
            "policy_divergence": (logps.exp() * ratio).sum(-1),
            "ratio_variance": (before.exp() * (ratio - mean[:, None]) ** 2).sum(-1),
        }
        for name, values in expected.items():
            assert facts[name][number] == pytest.approx(values.tolist(), rel=2e-3, abs=1e-5), name


def test_gradient_times_input_is_that_of_each_text_by_itself(
    bench: Bench, reading: Reading
) -> None:
    found = gradient_input(bench.model, reading)
    model = plain_model()
    for number, (prompt, response) in enumerate(
        zip(reading.prompts, reading.responses, strict=True)
    ):
        ids = torch.tensor([[*prompt, *response]])
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        logps = model(inputs_embeds=inputs, use_cache=False).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        total = sum(logps[at, ids[0, at + 1]] for at in places)
        [slope] = torch.autograd.grad(total, inputs)
        expected = (slope * inputs).sum(-1)[0, len(prompt) :].tolist()
        assert found[number] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert found[number][-1] == 0  # nothing follows the end token
    # The trunk remembers as before.
    assert read_start(bench.model, reading) == read_start(bench.model, reading)


def test_texts_of_one_token_have_no_input(bench: Bench) -> None:
    short = Reading([bench.encoder("Say: the film ", "a") for _ in range(1)])
    short.encoded[0].response_ids[:] = short.encoded[0].response_ids[-1:]
    assert gradient_input(bench.model, short) == [[0.0]]


def test_parts_keep_significant_digits() -> None:
    assert rounded(torch.tensor([1.23456789e-7, -123.456789])) == [1.23457e-7, -123.457]


def test_the_model_is_left_as_it_was(bench: Bench, reading: Reading) -> None:
    before = read_start(bench.model, reading)
    with bench.trained(DPO, training_pairs(0, ""), RECIPE, 0):
        pass
    assert read_start(bench.model, reading) == before
    assert load_policy(bench.name, dtype="float32", device="cpu") is not bench.model
