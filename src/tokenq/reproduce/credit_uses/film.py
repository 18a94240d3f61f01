"""Held-out film review pairs, and what policies say of them that were trained on others or them."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets
from peft import PeftModel

from tokenq.credit.dataset import CreditOptions, credit_dataset
from tokenq.data import film_reviews
from tokenq.data.hashing import json_hash
from tokenq.data.loading import Rows
from tokenq.models import AdapterOff
from tokenq.models.pair import Pair
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.credit_uses.settings import FilmUse, UsesSettings
from tokenq.reproduce.experiment import Results, Run
from tokenq.reproduce.localisation.arms import DPO
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.film import PROMPT, film
from tokenq.reproduce.localisation.material import Encoder, TrainingPair
from tokenq.reproduce.localisation.tables import Table

Record = dict[str, Any]
"""A line of `credit.jsonl` without its prompt and segments."""
_KEPT = ("response", "reward", "token_ids", "offsets", "logps", "ref_logps", "rewards")
_DIGITS = 6


@dataclass(frozen=True)
class HeldOutPair:
    """Two texts and people's mean ratings of them, -4..4; the first has the higher one."""

    chosen: str
    rejected: str
    chosen_rating: float
    rejected_rating: float


def held_out_pairs(use: FilmUse) -> list[HeldOutPair]:
    """Pairs of the task's held-out texts, none of which comes twice."""
    numbers = {int(text.id) for text in film(use.film).tests()}
    texts = [snippet for snippet in film_reviews.snippets().kept if snippet.number in numbers]
    options = film_reviews.PairOptions(gap=use.test_gap, seed=0)
    return [
        HeldOutPair(better.text, worse.text, better.mean, worse.mean)
        for better, worse in film_reviews.pairs_of(texts, options)
    ]


def exchanged(count: int, rate: float, seed: int) -> list[bool]:
    """Which of `count` labels are exchanged: a share `rate` of them, drawn by `seed`."""
    drawn = random.Random(f"{seed}:{rate}").sample(range(count), round(rate * count))
    return [place in drawn for place in range(count)]


def pair_rows(pairs: Sequence[HeldOutPair], wrong: Sequence[bool]) -> Rows:
    """Preference rows, the answers exchanged where the label is `wrong`."""
    rows = []
    for number, (pair, turned) in enumerate(zip(pairs, wrong, strict=True)):
        sides = [pair.chosen, pair.rejected]
        chosen, rejected = (
            [{"role": "assistant", "content": text}] for text in (sides[::-1] if turned else sides)
        )
        rows.append({"row": number, "prompt": PROMPT, "chosen": chosen, "rejected": rejected})
    name = "film review pairs"
    return Rows(datasets.Dataset.from_list(rows), "preference", name, json_hash(rows), 0)


def relabelled(record: Mapping[str, Any], turned: bool) -> Record:
    """The record of the same two answers under the other label, where it is `turned`."""
    if not turned:
        return dict(record)
    sides = record["responses"]
    exchanged = {"chosen": sides["rejected"], "rejected": sides["chosen"]}
    return {**record, "responses": exchanged, "margin": -record["margin"]}


def read_by_reference(record: Mapping[str, Any]) -> Record:
    """The record in which the reference's log-probability stands for the reward."""
    sides = {
        name: {**side, "rewards": side["ref_logps"], "reward": sum(side["ref_logps"])}
        for name, side in record["responses"].items()
    }
    margin = sides["chosen"]["reward"] - sides["rejected"]["reward"]
    return {**record, "responses": sides, "margin": round(margin, _DIGITS)}


def held_out_records(
    pairs: Sequence[HeldOutPair], start: Table, trained: Table, encoder: Encoder, beta: float
) -> list[Record]:
    """Records of pairs, right labels, from the tables of the start and of a policy trained on other
    pairs."""
    sides = {
        before["text"]: _side(before, after, encoder, beta)
        for before, after in zip(start["items"], trained["items"], strict=True)
    }
    found = []
    for number, pair in enumerate(pairs):
        responses = {"chosen": sides[pair.chosen], "rejected": sides[pair.rejected]}
        margin = responses["chosen"]["reward"] - responses["rejected"]["reward"]
        found.append({"row": number, "responses": responses, "margin": round(margin, _DIGITS)})
    return found


def _side(before: Table, after: Table, encoder: Encoder, beta: float) -> dict[str, Any]:
    text = before["text"]
    rewards = [-beta * blame for blame in after["signals"]["plain"]]
    return {
        "response": text,
        "reward": round(sum(rewards), _DIGITS),
        "token_ids": encoder(PROMPT, text).response_ids,
        "offsets": before["offsets"],
        "logps": [-surprisal for surprisal in after["signals"]["surprisal"]],
        "ref_logps": [-surprisal for surprisal in before["signals"]["surprisal"]],
        "rewards": rewards,
    }


class Memoriser:
    """Policies trained on the pairs that they judge; what they say is kept as parts of the run."""

    def __init__(
        self, run: Run, settings: UsesSettings, bench: Bench, pairs: Sequence[HeldOutPair]
    ) -> None:
        self._run, self._settings, self._bench = run, settings, bench
        self._use, self._pairs = settings.film, pairs

    def records(self, seed: int, rate: float) -> list[Record]:
        """Records, right labels, under a policy trained on these very pairs, a share `rate` of
        their labels exchanged: the first pairs, and the first of the exchanges."""
        pairs = self._pairs[: self._use.memorised]
        wrong = exchanged(len(self._pairs), rate, seed)[: len(pairs)]
        training = [
            TrainingPair(PROMPT, pair.rejected, pair.chosen)
            if turned
            else TrainingPair(PROMPT, pair.chosen, pair.rejected)
            for pair, turned in zip(pairs, wrong, strict=True)
        ]
        name = f"memorised-{round(100 * rate)}-{seed}"
        return self._part(name, seed, training, self._use.memorising, pairs)

    def _part(
        self,
        key: str,
        seed: int,
        training: Sequence[TrainingPair],
        recipe: Recipe,
        scored: Sequence[HeldOutPair],
    ) -> list[Record]:
        settings = {
            "model": self._settings.model,
            "layers": self._settings.layers,
            "beta": self._settings.beta,
            "recipe": asdict(recipe),
            "seed": seed,
            "training": json_hash([asdict(each) for each in training]),
            "scored": json_hash([asdict(each) for each in scored]),
        }

        def make() -> Results:
            with self._bench.trained(DPO, training, recipe, seed) as policy:
                return {"records": self._read(policy, scored)}

        found: list[Record] = self._run.part(key, settings, make)["records"]
        return found

    def _read(self, policy: PeftModel, pairs: Sequence[HeldOutPair]) -> list[Record]:
        names = "policy", "start"
        both = Pair(policy, AdapterOff(policy), self._bench.tokenizer, *names)
        options = CreditOptions(beta=self._settings.beta, alternatives=0)
        rows = pair_rows(pairs, [False] * len(pairs))
        with tempfile.TemporaryDirectory() as folder:
            scored = credit_dataset(both, rows, folder, options)
            return [_shortened(record) for record in scored.records()]


def _shortened(record: Mapping[str, Any]) -> Record:
    responses = {
        name: {key: side[key] for key in _KEPT} for name, side in record["responses"].items()
    }
    return {"row": record["row"], "responses": responses, "margin": record["margin"]}
