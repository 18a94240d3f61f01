"""An outcome reward model on the same frozen trunk: a scalar head, taught by the same pairs.

Its score of a token is the difference of two prefixes' rewards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import get_cosine_schedule_with_warmup

from tokenq.models.forward import causal_lm, enable_packed, response_hidden
from tokenq.models.packing import Ids
from tokenq.reproduce.adapter_training import TOKEN_BUDGET, Recipe
from tokenq.reproduce.localisation.bench import Bench


@dataclass(frozen=True)
class RewardModel:
    """A causal model with an adapter, and the head [H] -> 1 that reads its last hidden state."""

    model: PeftModel
    head: nn.Linear

    def prefix_rewards(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Tensor]:
        """[T_i] reward of the prompt with the first 0 .. T_i - 1 tokens of each response.

        The last of them has all but the end token, that is the whole text: it is the response's
        reward, which training compares.
        """
        states = response_hidden(self.model, prompts, responses, TOKEN_BUDGET)
        return [self.head(each).squeeze(-1) for each in states]

    def differences(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Tensor]:
        """[T_i] what each token adds to the reward; 0 for the end token, which is not read."""
        with torch.no_grad():
            rewards = self.prefix_rewards(prompts, responses)
        return [torch.cat([each.diff(), each.new_zeros(1)]) for each in rewards]


@contextmanager
def reward_model_trained(
    bench: Bench, rows: datasets.Dataset, recipe: Recipe, seed: int
) -> Iterator[RewardModel]:
    """Train adapter and head by the Bradley-Terry loss on tokenised pairs; then take them off.

    -log sigmoid(r(chosen) - r(rejected)), eq. 1 of "Training language models to follow instructions
    with human feedback" (arXiv 2203.02155). Order, steps and schedule are the recipe's, as for the
    policies.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=2 * recipe.lora_r,
        target_modules=bench.adapted,
    )
    model = get_peft_model(bench.model, config)
    enable_packed(model)
    width = causal_lm(model).config.get_text_config().hidden_size
    learner = RewardModel(model, nn.Linear(width, 1, bias=False))
    try:
        _train(learner, rows, recipe, seed)
        yield learner
    finally:
        model.unload()


def _train(learner: RewardModel, rows: datasets.Dataset, recipe: Recipe, seed: int) -> None:
    weights = [
        weight
        for module in (learner.model, learner.head)
        for weight in module.parameters()
        if weight.requires_grad
    ]
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, 1, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(rows), generator=generator)
        if recipe.in_order:
            order = torch.arange(len(rows))
        for part in order.split(recipe.batch_size):
            batch = rows.select(part.tolist())
            prompts = 2 * list(batch["prompt_ids"])
            responses = [*batch["chosen_ids"], *batch["rejected_ids"]]
            rewards = torch.stack([each[-1] for each in learner.prefix_rewards(prompts, responses)])
            chosen, rejected = rewards.view(2, -1)
            loss = -logsigmoid(chosen - rejected).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
