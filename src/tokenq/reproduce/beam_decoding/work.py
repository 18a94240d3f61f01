"""The work in pieces: a policy trained, a group of ways to decode with it, its answers scored.

Every piece leaves parts, so that several processes can share the work and a run can be gone on
with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenq.data.hashing import json_hash
from tokenq.errors import UserError
from tokenq.models import load_policy
from tokenq.models.logps import token_logps
from tokenq.reproduce.beam_decoding.beams import beams_decoded
from tokenq.reproduce.beam_decoding.decoding import (
    OTHERS,
    SAMPLES,
    SUM,
    WIDE_LOG_RATIO,
    Answer,
    Method,
    beam,
    decoded,
    opened,
    sampled,
)
from tokenq.reproduce.beam_decoding.policies import DPO, REFERENCE, TUNED, Policy, Workshop
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM, BeamSettings
from tokenq.reproduce.beam_decoding.tasks import TASKS, BeamTask, DebianTask
from tokenq.reproduce.experiment import Results, Run

BEAMS, OTHER, WIDE, SAMPLED, PRECISE = "beams", "others", "wide", "samples", "float32"
_PROMPTS_AT_ONCE = 12
CHECKED = 32
"""Prompts that are decoded in float32 too."""


@dataclass(frozen=True)
class Piece:
    """What one process does at a time."""

    task: str
    policy: Policy
    group: str

    @property
    def key(self) -> str:
        """As `--only` takes it."""
        return f"{self.task}/{self.policy.key}/{self.group}"


def pieces(settings: BeamSettings, tasks: Sequence[str], seeds: int) -> list[Piece]:
    """All of them, those first without which nothing can be said."""
    middle, *others = settings.betas
    first: list[Piece] = []
    for task in tasks:
        first.append(Piece(task, Policy(REFERENCE), BEAMS))
        for seed in range(seeds):
            first.append(Piece(task, Policy(DPO, middle, seed), BEAMS))
            first.append(Piece(task, Policy(TUNED, None, seed), BEAMS))
    if FILM in tasks:
        first += [Piece(FILM, Policy(DPO, beta), BEAMS) for beta in others]
        first.append(Piece(FILM, Policy(DPO, middle), PRECISE))
        for seed in range(seeds):
            first += [Piece(FILM, Policy(DPO, middle, seed), each) for each in (OTHER, SAMPLED)]
        first.append(Piece(FILM, Policy(DPO, middle), WIDE))
    if DEBIAN in tasks:
        first += [Piece(DEBIAN, Policy(DPO, beta), BEAMS) for beta in reversed(others)]
        first += [Piece(DEBIAN, Policy(DPO, middle), each) for each in (OTHER, SAMPLED)]
    return first


def chosen_pieces(all_pieces: Sequence[Piece], keys: Sequence[str] | None) -> list[Piece]:
    """Those with these keys, in the order of the keys; all for None. UserError for an unknown."""
    if keys is None:
        return list(all_pieces)
    by_key = {piece.key: piece for piece in all_pieces}
    for key in keys:
        if key not in by_key:
            raise UserError(f"--only: {key!r} is unknown; accepted: {', '.join(by_key)}")
    return [by_key[key] for key in keys]


def methods(settings: BeamSettings, piece: Piece) -> list[Method]:
    """The ways to decode of a piece."""
    if piece.group == BEAMS:
        own = getattr(settings, piece.task)
        policy = piece.policy
        whole = policy.seed == 0 and policy.beta in (None, settings.betas[0])
        widths = own.widths if whole else settings.few_widths
        further = [SUM] if whole and piece.task == FILM else []
        return [*map(beam, widths), *further]
    if piece.group == PRECISE:
        return [beam(width) for width in settings.few_widths]
    if piece.group == OTHER:
        return list(OTHERS)
    return [WIDE_LOG_RATIO] if piece.group == WIDE else [SAMPLES]


class Worker:
    """Does pieces, or finds them done. Answers are lists of one a start, or of `width` samples."""

    def __init__(self, run: Run, settings: BeamSettings) -> None:
        self._run, self.settings = run, settings
        self._workshop = Workshop(settings.model, settings.layers)
        self._opened: tuple[str, PreTrainedModel] | None = None
        self._together: dict[tuple[Piece, Method], list[list[Answer]]] = {}

    @cached_property
    def _tasks(self) -> dict[str, BeamTask]:
        return {name: make(self.settings, self._workshop) for name, make in TASKS.items()}

    def task(self, name: str) -> BeamTask:
        """The task of this name."""
        return self._tasks[name]

    def is_done(self, piece: Piece) -> bool:
        """Whether all parts of a piece are there."""
        scores = self._run.out / "runs" / f"{self._key(piece, f'{piece.group}-scores')}.json"
        made = all(self._is_made(piece, each) for each in methods(self.settings, piece))
        return made and (piece.group == PRECISE or scores.is_file())

    def do(self, piece: Piece) -> None:
        """Train, decode and score."""
        if piece.policy.name != REFERENCE:
            self.training(piece)
        if piece.group == PRECISE:
            self.answers(piece)
        else:
            self.scores(piece)

    def training(self, piece: Piece) -> dict[str, float]:
        """What the policy of a piece says of held-out pairs."""
        task, policy = self.task(piece.task), piece.policy
        facts = {**self.settings.training(piece.task), "policy": policy.key}
        return self._run.part(
            f"{piece.task}-{policy.key}-training", facts, lambda: dict(task.accuracy(policy))
        )

    def answers(self, piece: Piece) -> dict[str, list[list[Answer]]]:
        """By key of the method: the answers to each start (of the group `PRECISE` to the first
        starts), the best first."""
        found = {}
        for method in methods(self.settings, piece):
            facts = {**self._facts(piece), "method": method.to_dict()}
            if piece.group == PRECISE:
                facts |= {"dtype": "float32", "starts": CHECKED}

            def make(method: Method = method) -> Results:
                own = self._answers(piece, method)
                return {"answers": [[each.to_list() for each in row] for row in own]}

            part = self._run.part(self._method_key(piece, method), facts, make)
            found[method.key] = [[Answer(*each) for each in row] for row in part["answers"]]
        return found

    def scores(self, piece: Piece) -> dict[str, dict[str, list[list[float]]]]:
        """By measure and method: numbers that need a model, for the answers of a piece."""
        answers = self.answers(piece)
        tokens = {
            key: [[a.token_ids for a in row] for row in rows] for key, rows in answers.items()
        }
        facts = {**self._facts(piece), "answers": json_hash(tokens)}
        key = self._key(piece, f"{piece.group}-scores")
        return self._run.part(key, facts, lambda: self._scored(piece, tokens))

    def judge_accuracy(self, task: DebianTask) -> dict[str, Any]:
        """How often the judge of summaries is right, by what the worse side of a pair is."""

        def make() -> Results:
            judge = task.judge()
            return {
                kind: {"pairs": len(pairs), "accuracy": judge.accuracy(pairs)}
                for kind, pairs in task.judged_pairs().items()
            }

        facts = {**self.settings.training(DEBIAN), "dtype": self.settings.dtype}
        return self._run.part(f"{DEBIAN}-judge", facts, make)

    def _facts(self, piece: Piece) -> dict[str, Any]:
        return {**self.settings.of_task(piece.task), "policy": piece.policy.key}

    def _key(self, piece: Piece, last: str) -> str:
        return f"{piece.task}-{piece.policy.key}-{last}"

    def _method_key(self, piece: Piece, method: Method) -> str:
        precise = f"{PRECISE}-" if piece.group == PRECISE else ""
        return self._key(piece, precise + method.key)

    # ---- Decoding ----

    def _answers(self, piece: Piece, method: Method) -> list[list[Answer]]:
        """Beams of all widths whose parts are not there are decoded together, by the first."""
        if piece.group not in (BEAMS, PRECISE):
            return self._decoded(piece, method)
        if (piece, method) not in self._together:
            lacking = [m for m in methods(self.settings, piece) if not self._is_made(piece, m)]
            task = self.task(piece.task)
            found = beams_decoded(
                self._policy(piece),
                self._starts(piece),
                lacking,
                task.new_tokens,
                int(self._workshop.tokenizer.eos_token_id),
                _PROMPTS_AT_ONCE,
            )
            for each, own in zip(lacking, found, strict=True):
                self._together[piece, each] = [[answer] for answer in own]
        return self._together[piece, method]

    def _starts(self, piece: Piece) -> list[list[int]]:
        starts = self.task(piece.task).start_ids
        return starts[:CHECKED] if piece.group == PRECISE else starts

    def _is_made(self, piece: Piece, method: Method) -> bool:
        return (self._run.out / "runs" / f"{self._method_key(piece, method)}.json").is_file()

    def _decoded(self, piece: Piece, method: Method) -> list[list[Answer]]:
        task = self.task(piece.task)
        model = self._policy(piece)
        if method == SAMPLES:
            seed = piece.policy.seed
            return sampled(model, task.start_ids, method.width, task.new_tokens, seed)
        reference = None
        if method.score != "likelihood":
            weights = task.weights(Policy(REFERENCE))
            reference = opened(self.settings.model, weights, self.settings.dtype)
        found = decoded(model, reference, task.start_ids, method, task.new_tokens)
        return [[each] for each in found]

    def _policy(self, piece: Piece) -> PreTrainedModel:
        dtype = "float32" if piece.group == PRECISE else self.settings.dtype
        name = f"{piece.task}-{piece.policy.key}-{dtype}"
        if self._opened is None or self._opened[0] != name:
            weights = self.task(piece.task).weights(piece.policy)
            self._opened = (name, opened(self.settings.model, weights, dtype))
        return self._opened[1]

    # ---- Scores that need a model ----

    def _scored(
        self, piece: Piece, tokens: dict[str, list[list[list[int]]]]
    ) -> dict[str, dict[str, list[list[float]]]]:
        task = self.task(piece.task)
        places = list(_places(tokens))
        wanted = list(dict.fromkeys((start, ids) for _, start, ids in places))
        found = {"fluency": self._fluency(task, wanted)}
        if piece.group == SAMPLED:
            found["log_ratio"] = self._log_ratios(task, piece, wanted)
        if isinstance(task, DebianTask):
            found["judge"] = self._judged(task, wanted)
        result: dict[str, dict[str, list[list[float]]]] = {}
        for name, values in found.items():
            known = dict(zip(wanted, values, strict=True))
            result[name] = {
                key: [
                    [round(known[start, tuple(ids)], 4) for ids in row]
                    for start, row in enumerate(rows)
                ]
                for key, rows in tokens.items()
            }
        return result

    def _fluency(
        self, task: BeamTask, wanted: Sequence[tuple[int, tuple[int, ...]]]
    ) -> list[float]:
        """Mean log-probability of a token, the end token left out, under the untrained model."""
        model = load_policy(self.settings.model, dtype=self.settings.dtype, device="cpu")
        eos = int(self._workshop.tokenizer.eos_token_id)
        kept = [(start, _without_end(ids, eos)) for start, ids in wanted]
        return [
            value / max(1, len(ids))
            for value, (_, ids) in zip(_sums(model, task, kept), kept, strict=True)
        ]

    def _log_ratios(
        self, task: BeamTask, piece: Piece, wanted: Sequence[tuple[int, tuple[int, ...]]]
    ) -> list[float]:
        """log(policy / reference) of whole answers: the implicit reward over beta."""
        weights = task.weights(Policy(REFERENCE))
        theirs = _sums(opened(self.settings.model, weights, self.settings.dtype), task, wanted)
        ours = _sums(self._policy(piece), task, wanted)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _judged(
        self, task: DebianTask, wanted: Sequence[tuple[int, tuple[int, ...]]]
    ) -> list[float]:
        decode = self._workshop.tokenizer.decode
        texts = [str(decode(list(ids), skip_special_tokens=True)).strip() for _, ids in wanted]
        return task.judge()([task.starts[start].prompt for start, _ in wanted], texts)


def _places(
    tokens: dict[str, list[list[list[int]]]],
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    for key, rows in tokens.items():
        for start, row in enumerate(rows):
            for ids in row:
                yield key, start, tuple(ids)


def _without_end(ids: Sequence[int], eos: int) -> tuple[int, ...]:
    return tuple(ids[:-1]) if ids[-1] == eos and len(ids) > 1 else tuple(ids)


def _sums(model: Any, task: BeamTask, wanted: Sequence[tuple[int, tuple[int, ...]]]) -> list[float]:
    """Log-probability of each answer, nats."""
    with torch.no_grad():
        found = token_logps(
            model, [task.start_ids[start] for start, _ in wanted], [list(ids) for _, ids in wanted]
        )
    return [float(each.double().sum()) for each in found]
