"""Runs on one shared model: labels, tuning, the reward model, and that nothing stays behind."""

from dataclasses import replace

import pytest
import torch
from wrong_words import training_pairs

from tokenq.models import token_logps
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.localisation.arms import DPO
from tokenq.reproduce.localisation.bench import SFT, Bench, first
from tokenq.reproduce.localisation.reward_model import reward_model_trained

RECIPE = Recipe(batch_size=4, learning_rate=0.02, lora_r=4)
PAIRS = training_pairs(0, "")


def logps(bench: Bench, model: torch.nn.Module) -> torch.Tensor:
    rows = bench.encoder.rows(PAIRS)
    prompts = [*rows["prompt_ids"], *rows["prompt_ids"]]
    responses = [*rows["chosen_ids"], *rows["rejected_ids"]]
    with torch.no_grad():
        found = token_logps(model, prompts, responses)
    return torch.stack([each.sum() for each in found])


def margins(bench: Bench, before: torch.Tensor, share: float) -> float:
    arm = replace(DPO, flipped=share)
    with bench.trained(arm, PAIRS, RECIPE, 0) as policy:
        chosen, rejected = (logps(bench, policy) - before).view(2, -1)
    return float((chosen - rejected).mean())


def test_a_run_learns_its_labels(bench: Bench) -> None:
    before = logps(bench, bench.model)
    assert margins(bench, before, 0.0) > 0.1
    assert margins(bench, before, 1.0) < -0.1
    assert torch.equal(logps(bench, bench.model), before)


def test_inside_tuning_the_model_is_the_tuned_one(bench: Bench) -> None:
    before = logps(bench, bench.model)
    with bench.trained(SFT, PAIRS, RECIPE, 0) as policy:
        tuned = logps(bench, policy)
    with bench.tuned(PAIRS, RECIPE, 0):
        torch.testing.assert_close(logps(bench, bench.model), tuned, rtol=1e-4, atol=1e-3)
        with bench.trained(DPO, PAIRS, RECIPE, 0) as policy:
            assert not torch.allclose(logps(bench, policy), tuned, atol=1e-2)
    assert not torch.allclose(tuned, before, atol=1e-2)
    assert torch.equal(logps(bench, bench.model), before)


def test_an_arm_sees_its_share(bench: Bench) -> None:
    assert first(replace(DPO, share=0.25), PAIRS) == PAIRS[:2]
    assert first(replace(DPO, share=0.01), PAIRS) == PAIRS[:1]


def test_the_reward_model_ranks_its_pairs_and_reads_prefixes(bench: Bench) -> None:
    rows = bench.encoder.rows(PAIRS)
    before = logps(bench, bench.model)
    prompts, responses = list(rows["prompt_ids"]), list(rows["chosen_ids"])
    with reward_model_trained(bench, rows, replace(RECIPE, epochs=4), 0) as learner:
        with torch.no_grad():
            chosen = learner.prefix_rewards(prompts, responses)
            rejected = learner.prefix_rewards(prompts, list(rows["rejected_ids"]))
        wins = [float(a[-1]) > float(b[-1]) for a, b in zip(chosen, rejected, strict=True)]
        assert sum(wins) >= 7
        for prompt, response, rewards in zip(prompts, responses, chosen, strict=True):
            for length, reward in enumerate(rewards.tolist()):
                ids = torch.tensor([[*prompt, *response[:length]]])
                states = learner.model.base_model.model.model(ids, use_cache=False)
                whole = learner.head(states.last_hidden_state[0, -1])
                assert float(whole) == pytest.approx(reward, rel=1e-3, abs=1e-4)
        for rewards, steps in zip(chosen, learner.differences(prompts, responses), strict=True):
            assert len(steps) == len(rewards)
            assert float(steps.sum()) == pytest.approx(float(rewards[-1] - rewards[0]), abs=1e-4)
            assert steps[-1] == 0
    assert torch.equal(logps(bench, bench.model), before)
