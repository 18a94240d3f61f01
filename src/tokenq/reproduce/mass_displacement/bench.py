"""The model with its prompts: everything that all runs of the experiment share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenq.data import film_reviews
from tokenq.errors import UserError
from tokenq.models.forward import causal_lm, response_hidden
from tokenq.models.head import vocabulary_logps
from tokenq.models.logps import token_logps
from tokenq.models.reference import scoring
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import TrainingPair
from tokenq.reproduce.mass_displacement.answers import (
    EVADED,
    EVASIONS,
    EVERY,
    QUESTION,
    WORDS,
    Kind,
    Meaning,
    Pair,
    contrary,
    drawn_pair,
    usual,
)
from tokenq.reproduce.mass_displacement.settings import DisplacementSettings

Ids = list[int]
TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class Prompt:
    """A question about a film sentence; `right` is what people's ratings of it answer.

    The question tells whether the writer recommends the film, so that the tuned start is fairly
    sure of the right answer, as it is where likelihood displacement does harm.
    """

    text: str
    right: Meaning

    @property
    def question(self) -> str:
        """As the model is asked."""
        return QUESTION.format(text=self.text, verdict=self.right)


@dataclass(frozen=True)
class Masses:
    """What answers begin with, for N prompts: probability in [0, 1] of the words of a meaning.

    right, opposite: [N]
    """

    right: Tensor
    opposite: Tensor


class DisplacementBench:
    """Loads the model once; its lower layers are computed once for each prompt and answer."""

    def __init__(self, settings: DisplacementSettings) -> None:
        self.settings = settings
        self.bench = Bench(settings.model, settings.layers)
        self.training = film_prompts("train", settings.prompts, settings)
        self.held_out = film_prompts("test", settings.held_out, settings)
        self._ids: dict[tuple[str, str], tuple[Ids, Ids]] = {}

    @property
    def model(self) -> PreTrainedModel:
        """As it is now: tuned inside :meth:`tuned`."""
        return self.bench.model

    @cached_property
    def words(self) -> dict[Meaning, Tensor]:
        """Ids of the words of each meaning that are one token (and the end) as an answer."""
        found: dict[Meaning, Tensor] = {}
        for meaning, words in WORDS.items():
            ids = [self.ids(self.training[0], word)[1] for word in words]
            single = sorted({each[0] for each in ids if len(each) == 2})
            found[meaning] = torch.tensor(single, dtype=torch.long)
        return found

    def ids(self, prompt: Prompt, answer: str) -> tuple[Ids, Ids]:
        """Token ids of the question and of the answer with its end."""
        key = (prompt.text, answer)
        if key not in self._ids:
            found = self.bench.encoder(prompt.question, answer)
            self._ids[key] = (found.prompt_ids, found.response_ids)
        return self._ids[key]

    def remember(self) -> None:
        """Compute the lower layers for every question and answer, once for all runs."""
        for prompt in (*self.training, *self.held_out):
            question, _ = self.ids(prompt, EVERY[0])
            answers = [self.ids(prompt, answer)[1] for answer in EVERY]
            with scoring(self.model):
                response_hidden(self.model, [question] * len(answers), answers)

    @contextmanager
    def tuned(self, seed: int) -> Iterator[None]:
        """Tune the model on right answers and some evasions, drawn by `seed`."""
        draw = Random(seed)
        settings = self.settings
        rows = [
            TrainingPair(
                prompt.question,
                draw.choice(EVASIONS) if draw.random() < EVADED else usual(prompt.right, draw),
                usual(contrary(prompt.right), draw),
            )
            for prompt in self.training
        ]
        recipe = Recipe(
            settings.batch_size, settings.tuning_rate, settings.lora_r, settings.tuning_epochs
        )
        with self.bench.tuned(rows, recipe, seed):
            yield

    @contextmanager
    def policy(self) -> Iterator[PeftModel]:
        """An adapter on the model, to be set back by :func:`fresh` for each run."""
        rank = self.settings.lora_r
        policy = get_peft_model(
            self.model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=rank,
                lora_alpha=2 * rank,
                target_modules=self.bench.adapted,
            ),
        )
        assert isinstance(policy, PeftModel)
        try:
            yield policy
        finally:
            policy.unload()

    def sums(self, model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[str]) -> Tensor:
        """log pi of whole answers [N], nats; differentiable unless gradients are off."""
        rows = [self.ids(*row) for row in zip(prompts, answers, strict=True)]
        logps = token_logps(model, *zip(*rows, strict=True), token_budget=TOKEN_BUDGET)
        return torch.stack([row.sum() for row in logps])

    def first(self, model: nn.Module, prompts: Sequence[Prompt]) -> Tensor:
        """log pi of every first token after the questions, [N, V], no gradient."""
        rows = [self.ids(prompt, EVERY[0]) for prompt in prompts]
        with scoring(model):
            questions, answers = zip(*rows, strict=True)
            states = response_hidden(model, questions, answers, TOKEN_BUDGET)
            return vocabulary_logps(causal_lm(model), torch.stack([each[0] for each in states]))

    def masses(self, first: Tensor, prompts: Sequence[Prompt]) -> Masses:
        """Sum :meth:`first` over the words of the right and of the contrary meaning."""
        by_meaning = {m: first[:, ids].double().exp().sum(-1) for m, ids in self.words.items()}
        yes = torch.tensor([prompt.right == "yes" for prompt in prompts])
        right = torch.where(yes, by_meaning["yes"], by_meaning["no"])
        return Masses(right, torch.where(yes, by_meaning["no"], by_meaning["yes"]))


def film_prompts(split: str, count: int, settings: DisplacementSettings) -> list[Prompt]:
    """The first sentences of a split, as many liked as disliked ones, mixed.

    Raises UserError where there are fewer.
    """
    sides: dict[Meaning, list[Prompt]] = {"yes": [], "no": []}
    for snippet in film_reviews.snippets().kept:
        if snippet.split == split and snippet.words <= settings.max_words:
            right: Meaning = "yes" if snippet.mean > 0 else "no"
            if abs(snippet.mean) >= settings.gap:
                sides[right].append(Prompt(snippet.text, right))
    half = count // 2
    fewest = min(map(len, sides.values()))
    if fewest < half:
        raise UserError(
            f"{count} {split} film sentences: there are {fewest} of the rarer sort; accepted: "
            f"up to {2 * fewest}"
        )
    found = [prompt for side in sides.values() for prompt in side[:half]]
    Random(0).shuffle(found)
    return found


def data_set(prompts: Sequence[Prompt], seed: int) -> list[Pair]:
    """One pair a prompt: near-duplicates for half of them, the rest contrary or evasive alike."""
    draw = Random(f"pairs {seed}")
    cycle: tuple[Kind, ...] = ("near", "opposite", "near", "evasive")
    kinds = [cycle[i % len(cycle)] for i in range(len(prompts))]
    draw.shuffle(kinds)
    return [
        drawn_pair(number, prompt.right, kind, draw)
        for number, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]


def fresh(policy: PeftModel, seed: int) -> list[nn.Parameter]:
    """Set the adapter back to its first weights, drawn by `seed`; returns what is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in policy.named_parameters():
            if "lora_A" in name:
                nn.init.kaiming_uniform_(weight, a=5**0.5)
            elif "lora_B" in name:
                nn.init.zeros_(weight)
    return [weight for weight in policy.parameters() if weight.requires_grad]
