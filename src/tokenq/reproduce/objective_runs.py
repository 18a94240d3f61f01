"""One small training run of any objective, and what is measured after it."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy import stats
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, set_seed

from tokenq.data import film_reviews, lexicon
from tokenq.demo.words import REWARD, log_odds, occurrences, score_words, words_of
from tokenq.models import AdapterOff, load_policy, load_tokenizer, token_logps
from tokenq.models.forward import reference_predictions
from tokenq.models.head import Extras, Predictions
from tokenq.models.packing import Pack, pack_trees
from tokenq.objectives import OBJECTIVES
from tokenq.reproduce.adapter_training import TOKEN_BUDGET, Recipe, adapter_trained, coin
from tokenq.reproduce.film_pairs import FilmPairs, film_pairs
from tokenq.reproduce.frozen_trunk import freeze_trunk
from tokenq.reproduce.objective_arms import Arm


@dataclass(frozen=True)
class Settings:
    """What is the same for all objectives.

    model:         any name that `load_policy` takes
    pairs, gap:    training pairs (drawn by the seed) and the least difference of their ratings
    held_out, split, held_out_gap: the pairs that are measured on, the same for every seed
    max_words:     longest text of a training pair, in words; held-out texts may have two more
    batch_size:    pairs of an optimiser step; every pair is seen once
    learning_rate: peak of AdamW's, one step of warm-up, then a cosine
    layers:        last layers of the model that carry the adapter; all below are frozen
    lora_r:        rank of the adapter, its scale is twice the rank
    samples, sample_tokens: responses drawn from a model, and their most tokens
    """

    model: str = "bundled:smollm2-135m-instruct"
    pairs: int = 120
    gap: float = 2.0
    held_out: int = 120
    split: str = "test"
    held_out_gap: float = 1.0
    max_words: int = 12
    batch_size: int = 10
    learning_rate: float = 1e-3
    layers: int = 6
    lora_r: int = 16
    samples: int = 24
    sample_tokens: int = 24

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


class Bench:
    """The model, loaded once; every run adds a fresh adapter and takes it off again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(settings.model)
        self._training: dict[int, FilmPairs] = {}

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, str]:
        model = load_policy(self.settings.model, dtype="float32", device="cpu")
        assert isinstance(model, PreTrainedModel)
        adapted = freeze_trunk(model, self.settings.layers)
        return model, adapted

    @cached_property
    def held_out(self) -> FilmPairs:
        """The pairs that are measured on."""
        known = self.settings
        return film_pairs(
            self.tokenizer,
            known.split,
            count=known.held_out,
            gap=known.held_out_gap,
            max_words=known.max_words + 2,
            seed=0,
        )

    def training(self, seed: int) -> FilmPairs:
        """The training pairs of a seed, the same for every objective."""
        if seed not in self._training:
            known = self.settings
            self._training[seed] = film_pairs(
                self.tokenizer,
                "train",
                count=known.pairs,
                gap=known.gap,
                max_words=known.max_words,
                seed=seed,
            )
        return self._training[seed]

    @cached_property
    def _reference_logps(self) -> list[Tensor]:
        model, _ = self._loaded
        with torch.no_grad():
            return token_logps(model, *self.held_out.flat(), token_budget=TOKEN_BUDGET)

    def start(self) -> dict[str, float]:
        """Measure the model as it is before training."""
        logps = self._reference_logps
        measures = held_out_measures(self.held_out, logps, logps)
        return measures | self._lengths(self._start_samples) | {"kl": 0.0}

    def run(
        self, arm: Arm, seed: int, rewards: Sequence[Sequence[float]] | None = None
    ) -> dict[str, float]:
        """Train one arm with one seed and measure it; `rewards` as in `FilmPairs.rows`."""
        started = time.process_time()
        with self.trained(arm, seed, rewards) as policy:
            trained = time.process_time()
            with torch.no_grad():
                logps = token_logps(policy, *self.held_out.flat(), token_budget=TOKEN_BUDGET)
            measures = held_out_measures(self.held_out, logps, self._reference_logps)
            measures |= self._lengths(self._samples(policy, seed))
            measures["kl"] = self._divergence(policy)
        spent = {"training": trained - started, "measuring": time.process_time() - trained}
        return measures | {f"cpu_seconds_{name}": value for name, value in spent.items()}

    def token_rewards(self, arm: Arm, seed: int) -> list[list[float]]:
        """beta * log(pi / pi_ref) of each token of the training answers after training `arm`."""
        with self.trained(arm, seed, None) as policy, torch.no_grad():
            rows = self.training(seed).flat()
            ours = token_logps(policy, *rows, token_budget=TOKEN_BUDGET)
            theirs = token_logps(AdapterOff(policy), *rows, token_budget=TOKEN_BUDGET)
        beta = OBJECTIVES[arm.loss_type](**arm.arguments).beta
        return [(beta * (a - b)).tolist() for a, b in zip(ours, theirs, strict=True)]

    @contextmanager
    def trained(
        self, arm: Arm, seed: int, rewards: Sequence[Sequence[float]] | None
    ) -> Iterator[PeftModel]:
        model, adapted = self._loaded
        known = self.settings
        # What the start says is asked before an adapter is on.
        _ = self._reference_logps, self._start_predictions
        pairs = self.training(seed)
        pairs = pairs.flipped(coin(seed, len(pairs), arm.flipped))
        recipe = Recipe(known.batch_size, known.learning_rate, known.lora_r)
        rows = pairs.rows(rewards)
        with adapter_trained(model, adapted, self.tokenizer, rows, arm, recipe, seed) as policy:
            yield policy

    def _samples(self, model: PreTrainedModel | PeftModel, seed: int) -> list[list[int]]:
        """Responses that a model writes itself, the random numbers being those of the seed."""
        set_seed(seed)
        return sample(
            model,
            self.held_out.prompt_ids,
            count=self.settings.samples,
            tokens=self.settings.sample_tokens,
            end=self._end,
        )

    @cached_property
    def _start_samples(self) -> list[list[int]]:
        return self._samples(self._loaded[0], 0)

    @property
    def _end(self) -> int:
        return self.held_out.encoded[0][0].response_ids[-1]

    def _lengths(self, responses: list[list[int]]) -> dict[str, float]:
        return {
            "length": float(np.mean([len(response) for response in responses])),
            "ended": float(np.mean([response[-1] == self._end for response in responses])),
        }

    @cached_property
    def _start_predictions(self) -> list[tuple[Pack, Predictions]]:
        model, _ = self._loaded
        prompts = [self.held_out.prompt_ids] * len(self._start_samples)
        packs = pack_trees(prompts, self._start_samples, TOKEN_BUDGET)
        return [(pack, reference_predictions(model, pack)) for pack in packs]

    def _divergence(self, policy: PeftModel) -> float:
        """KL(pi_start || pi) of whole responses, estimated on the same samples for every run.

        Mean over samples of the start of the sum over their tokens of the exact KL between the two
        next-token distributions: unbiased up to the length at which samples are cut, with less
        variance than log-ratios of the sampled tokens.
        """
        total = 0.0
        for pack, start in self._start_predictions:
            with torch.no_grad():
                kl = policy(packed=pack, extras=Extras(reference=start)).kl
            total += float(kl.sum())
        return total / len(self._start_samples)

    def controls(self, seed: int) -> dict[str, float]:
        """Accuracy on the held-out pairs of two rules that need no model."""
        chosen, rejected = zip(*self.training(seed).texts, strict=True)
        weights = {
            "words of the training pairs": log_odds(chosen, rejected),
            "human valence of words": valence(),
        }
        return {
            name: _wins(
                [
                    [sum(weight.get(word, 0.0) for word in words_of(text)) for text in pair]
                    for pair in self.held_out.texts
                ]
            )
            for name, weight in weights.items()
        }


def valence() -> dict[str, float]:
    """Human valence of each word of the lexicon, -4..4."""
    return {word: entry.mean for word, entry in lexicon.load().items()}


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel, prompt: list[int], *, count: int, tokens: int, end: int
) -> list[list[int]]:
    """Draw responses at temperature 1 from the whole distribution, up to and with `end`."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt])
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(count)
    generate: Any = model.generate  # annotated for models of their own kind only
    drawn = generate(
        input_ids=ids.expand(count, -1),
        attention_mask=torch.ones(count, len(prompt), dtype=torch.long),
        past_key_values=cache,
        max_new_tokens=tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=end,
        pad_token_id=end,
    )
    return [_until(row.tolist(), end) for row in drawn[:, len(prompt) :]]


def held_out_measures(
    pairs: FilmPairs, logps: list[Tensor], ref_logps: list[Tensor]
) -> dict[str, float]:
    """What trained and start log-probs of the held-out answers tell (in the order of `flat`).

    reward accuracy, likelihood accuracy, likelihood accuracy a token: share of pairs whose chosen
    side has the higher log-ratio, log-prob, log-prob a token. chosen, rejected, end: mean change of
    the log-prob of a chosen and a rejected answer and of the end token, nats. valence: Spearman's
    rho of words' mean log-ratio with their human valence; valence of log-probs: a control.
    """
    sums = np.array([float(row.sum()) for row in logps]).reshape(-1, 2)
    before = np.array([float(row.sum()) for row in ref_logps]).reshape(-1, 2)
    lengths = np.array([len(row) for row in logps]).reshape(-1, 2)
    ends = [float(row[-1] - start[-1]) for row, start in zip(logps, ref_logps, strict=True)]
    change = sums - before
    words = _words(pairs, logps, ref_logps)
    return {
        "reward accuracy": _wins(change),
        "likelihood accuracy": _wins(sums),
        "likelihood accuracy a token": _wins(sums / lengths),
        "chosen": float(change[:, 0].mean()),
        "rejected": float(change[:, 1].mean()),
        "end": float(np.mean(ends)),
        "valence": words[0],
        "valence of log-probs": words[1],
    }


def _words(pairs: FilmPairs, logps: list[Tensor], ref_logps: list[Tensor]) -> tuple[float, float]:
    sides = []
    flat = [
        (text, side)
        for texts, encoded in zip(pairs.texts, pairs.encoded, strict=True)
        for text, side in zip(texts, encoded, strict=True)
    ]
    for (text, side), ours, theirs in zip(flat, logps, ref_logps, strict=True):
        sides.append(
            {
                "response": text,
                "offsets": side.offsets,
                "rewards": (ours - theirs).tolist(),
                "logps": ours.tolist(),
                "ref_logps": theirs.tolist(),
            }
        )
    human = valence()
    found = occurrences(sides, human, _frequency(), {})
    scores = score_words(found, human, ())
    liked = [score.valence for score in scores]
    return tuple(  # type: ignore[return-value]
        _spearman([score.signals[name] for score in scores], liked)
        for name in (REWARD, "policy log-prob")
    )


def _frequency() -> Counter[str]:
    texts = (each.text for each in film_reviews.snippets().kept if each.split == "train")
    return Counter(word for text in texts for word in words_of(text))


def _spearman(values: list[float], target: list[float]) -> float:
    """Rank correlation; 0 for values that are all the same, which tell nothing of the target."""
    if len(set(values)) < 2:
        return 0.0
    return float(stats.spearmanr(values, target).statistic)


def _wins(scores: Any) -> float:
    """Share of rows [n, 2] whose first value is the higher one; ties count half."""
    first, second = np.asarray(scores, dtype=np.float64).T
    return float(np.mean((first > second) + 0.5 * (first == second)))


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
