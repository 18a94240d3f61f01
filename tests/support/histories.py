"""Made histories: runs of small policies whose every probability is known exactly.

A policy here is a table of logits, one row for each pair's prompt and previous token. Training is
played, not run: a kind says how the table moves while the steps pass. Everything that a probe reads
(log-probabilities, entropies, divergences, gradients, samples) is then computed from the tables, so
a history is as consistent as a real one, costs milliseconds, and has the effect that its kind names
and no other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenq.monitor.likelihood import PARTS, answer_parts
from tokenq.monitor.readings import (
    Baseline,
    ForkReading,
    History,
    PairReading,
    ProbePair,
    ProbeResponse,
    ProbeSet,
    Reading,
    ResponseReading,
    SampleReading,
    SetName,
    Setup,
)

Array = NDArray[np.float64]
Table = Array
"""[P, V, V]: logits or log-probabilities by prompt, previous token, next token."""

START, END = 0, 1
VOCABULARY, WIDTH, NEW_TOKENS = 24, 8, 24
COMMON = 2.0
"""What all hidden states have in common, in each of their numbers, as those of real models have."""
BETA = 0.1
STEPS = tuple(range(0, 201, 20))


@dataclass(frozen=True, eq=False)
class World:
    """What does not move: P prompts, one for each pair.

    reference: the reference's log-probabilities
    hidden:    [P, V, WIDTH] hidden state of each state
    embedding: [V, WIDTH] output embeddings
    quality:   [V] what preferences are made of: how good a token is
    chosen, rejected: the answers, with their end tokens where they ended
    held_out:  how many of the pairs, the first ones, training does not see
    """

    reference: Table
    hidden: Array
    embedding: Array
    quality: Array
    chosen: Sequence[tuple[int, ...]]
    rejected: Sequence[tuple[int, ...]]
    held_out: int

    @property
    def trained(self) -> Array:
        """[P, 1, 1] 1 where training sees the pair."""
        return (np.arange(len(self.chosen)) >= self.held_out).astype(float)[:, None, None]


Shift = Callable[[World, float], Table]
"""How far the logits have moved after a share in [0, 1] of the run, as an array that broadcasts
against [P, V, V]."""


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    shift:      how the policy moves, besides the noise of training
    answers:    where the pairs' answers come from, see `_ANSWERS`
    noise:      standard deviation of the logits' random walk over the whole run, nats
    start:      standard deviation of the policy's distance from the reference before training
    drawn:      temperature at which the "reference responses" were drawn; 1 is right
    lines:      changes the log lines as a last thing
    """

    shift: Shift
    answers: str = "best_worst"
    noise: float = 0.05
    start: float = 0.0
    drawn: float = 1.0
    lines: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda lines: lines


def made_history(
    kind: str,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    pairs: int = 32,
    responses: int = 32,
    samples: int = 16,
    samples_every: int = 2,
) -> History:
    """A run of the `kind` (see :data:`KINDS`).

    steps:     of the probes; the last is the end of the run
    pairs:     held-out ones, and as many that training sees
    samples:   of each probe that draws some: every `samples_every`-th one
    """
    made, draw = KINDS[kind], np.random.default_rng(seed)
    world = _world(draw, made, pairs)
    probe = _probe(world, draw, responses, made.drawn)
    texts = _Pairs.of(world)
    written = _Texts.of([r.pair for r in probe.responses], [r.ids for r in probe.responses])
    baseline = _baseline(world, texts, probe, written)
    readings, walk = [], np.zeros((VOCABULARY, VOCABULARY))
    start = draw.normal(0, made.start, walk.shape) if made.start else walk
    last = max(steps[-1], 1)
    before = 0
    for number, step in enumerate(steps):
        walk = walk + draw.normal(0, made.noise * ((step - before) / last) ** 0.5, walk.shape)
        policy = _policy(world, made.shift(world, step / last) + walk + start)
        drawn = samples and number % samples_every == 0
        wrote = _samples(world, policy, samples, draw) if drawn else None
        readings.append(_reading(world, texts, written, policy, step, wrote))
        before = step
    facts = {"objective": "dpo", "learning_rate": 1e-6}
    setup = Setup(probe, baseline, BETA, "made policy", "made reference", [END], facts)
    return History(setup, readings, _logs(world, texts, made, steps, draw))


def made_logs(kind: str, seed: int = 0, steps: Sequence[int] = STEPS) -> History:
    """The same run where nothing but the trainer's logs is known."""
    return History(None, [], made_history(kind, seed, steps).logs)


def cut(history: History, step: int) -> History:
    """The history as it was known after `step`."""
    return replace(
        history,
        readings=[reading for reading in history.readings if reading.step <= step],
        logs=[line for line in history.logs if line["step"] <= step],
    )


def _world(draw: np.random.Generator, made: Kind, pairs: int) -> World:
    """A reference with a linear head, and pairs that it or another policy wrote."""
    count = 2 * pairs
    embedding = draw.normal(size=(VOCABULARY, WIDTH))
    prompt, token = draw.normal(0, 0.5, (count, 1, WIDTH)), draw.normal(size=(VOCABULARY, WIDTH))
    logits = 1.5 * (prompt + token[None]) @ embedding.T / WIDTH**0.5
    hidden = COMMON + prompt + token[None]
    logits[:, :, START] = -20.0
    others = np.delete(logits, END, axis=2)
    logits[:, :, END] = np.logaddexp.reduce(others, axis=2) - 2.2
    logits[:, START, END] -= 3.0
    quality = draw.normal(size=VOCABULARY)
    quality[[START, END]] = 0.0
    world = World(_normalised(logits), hidden, embedding, quality, [], [], pairs)
    answers = [_ANSWERS[made.answers](world, draw, prompt) for prompt in range(count)]
    chosen, rejected = zip(*answers, strict=True)
    return replace(world, chosen=chosen, rejected=rejected)


def _normalised(logits: Table) -> Table:
    lowered = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(lowered - np.log(np.exp(lowered).sum(axis=-1, keepdims=True)))


def _policy(world: World, shift: Table) -> Table:
    return _normalised(world.reference + shift)


def _drawn(
    policy: Table, prompts: NDArray[np.int64], draw: np.random.Generator, length: int = NEW_TOKENS
) -> list[tuple[int, ...]]:
    """A response to each of the prompts, at most `length` tokens."""
    asked, which = np.unique(prompts, return_inverse=True)
    sums = np.exp(policy[asked]).cumsum(axis=-1)
    state = np.full(len(prompts), START)
    tokens = np.full((len(prompts), length), -1)
    for position in range(length):
        row = sums[which, state]
        token = (draw.random((len(prompts), 1)) * row[:, -1:] > row).sum(axis=1)
        live = (tokens[:, position - 1] != END) & (state != END) if position else True
        tokens[:, position] = np.where(live, token, -1)
        state = np.where(live, token, END)
    return [tuple(int(token) for token in row if token >= 0) for row in tokens]


def _goodness(world: World, answer: Sequence[int]) -> float:
    return float(world.quality[list(answer)].sum())


def _best_worst(
    world: World, draw: np.random.Generator, prompt: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The best and the worst of four of the reference's own responses."""
    while True:
        texts = _drawn(world.reference, np.full(4, prompt), draw)
        texts.sort(key=lambda answer: _goodness(world, answer))
        if texts[0] != texts[-1]:
            return texts[-1], texts[0]


def _demonstrated(
    world: World, draw: np.random.Generator, prompt: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A response of the reference, as after SFT on chosen answers, and one of a worse policy."""
    worse = _policy(world, -0.8 * world.quality)
    while True:
        chosen = _drawn(world.reference, np.array([prompt]), draw)[0]
        rejected = _drawn(worse, np.array([prompt]), draw)[0]
        if chosen != rejected:
            return chosen, rejected


def _foreign(
    world: World, draw: np.random.Generator, prompt: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Best and worst of four that a quite different model wrote."""
    other = _normalised(0.2 * world.reference)
    return _best_worst(replace(world, reference=other), draw, prompt)


def _near_duplicates(
    world: World, draw: np.random.Generator, prompt: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The reference's response and the same with one token exchanged for a likely other one."""
    answer: tuple[int, ...] = ()
    while len(answer) < 5:
        answer = _drawn(world.reference, np.array([prompt]), draw)[0]
    at = int(draw.integers(2, len(answer) - 2))
    order = np.argsort(-world.reference[prompt, answer[at - 1]])
    token = next(int(t) for t in order if t not in (answer[at], END, START))
    return answer, (*answer[:at], token, *answer[at + 1 :])


def _likelier(
    world: World, draw: np.random.Generator, prompt: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Near-duplicates of which the chosen one has the likelier token."""
    texts = _near_duplicates(world, draw, prompt)
    likelihoods = [_taken(world.reference, prompt, text) for text in texts]
    return texts if likelihoods[0] > likelihoods[1] else texts[::-1]


_ANSWERS: Mapping[str, Callable[..., tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "best_worst": _best_worst,
    "demonstrated": _demonstrated,
    "foreign": _foreign,
    "near_duplicates": _near_duplicates,
    "likelier": _likelier,
}


def _probe(world: World, draw: np.random.Generator, count: int, temperature: float) -> ProbeSet:
    sources: list[SetName] = [
        "held_out" if row < world.held_out else "train" for row in range(len(world.chosen))
    ]
    pairs = [
        ProbePair(source, row, (100 + row,), world.chosen[row], world.rejected[row])
        for row, source in enumerate(sources)
    ]
    asked = np.arange(count) % world.held_out
    texts = _drawn(_normalised(world.reference / temperature), asked, draw)
    responses = [
        ProbeResponse(int(pair), text, text[-1] == END)
        for pair, text in zip(asked, texts, strict=True)
    ]
    return ProbeSet(pairs, responses, NEW_TOKENS)


def _taken(policy: Table, prompt: int, answer: Sequence[int]) -> float:
    """Log-probability of an answer."""
    return float(policy[prompt, _states(answer), list(answer)].sum())


def _states(answer: Sequence[int]) -> list[int]:
    """The previous token of each of an answer's tokens."""
    return [START, *answer[:-1]]


@dataclass(frozen=True, eq=False)
class _Texts:
    """Texts laid end to end: the policy's table is read for all their tokens at once.

    owner:  [sum T] number of the text
    prompt, state, token: [sum T]
    length: [texts]
    """

    owner: NDArray[np.int64]
    prompt: NDArray[np.int64]
    state: NDArray[np.int64]
    token: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(
        cls, prompts: "Sequence[int] | NDArray[np.int64]", texts: Sequence[Sequence[int]]
    ) -> "_Texts":
        length = np.array([len(text) for text in texts])
        owner = np.repeat(np.arange(len(texts)), length)
        states = [state for text in texts for state in _states(text)]
        tokens = [token for text in texts for token in text]
        return cls(owner, np.asarray(prompts)[owner], np.array(states), np.array(tokens), length)

    def taken(self, policy: Table) -> Array:
        """[sum T] log-probabilities."""
        return policy[self.prompt, self.state, self.token]

    def along(self, table: Array) -> Array:
        """[sum T] values of a table [P, V] in the states on the way."""
        return table[self.prompt, self.state]

    def sums(self, values: Array) -> Array:
        """[texts] sums of values [sum T]."""
        return np.bincount(self.owner, values, len(self.length)).astype(np.float64)

    def means(self, values: Array) -> Array:
        """[texts] means of values [sum T]."""
        return self.sums(values) / self.length


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Both sides' texts, and the part of each token as a number in `PARTS`."""

    sides: tuple[_Texts, _Texts]
    parts: tuple[NDArray[np.int64], NDArray[np.int64]]
    forks: Sequence[tuple[int, int, int] | None]

    @classmethod
    def of(cls, world: World) -> "_Pairs":
        rows = range(len(world.chosen))
        both = list(zip(world.chosen, world.rejected, strict=True))
        parts = [
            np.concatenate([answer_parts(pair[side], pair[1 - side], [END]) for pair in both])
            for side in (0, 1)
        ]
        sides = [_Texts.of(rows, [pair[side] for pair in both]) for side in (0, 1)]
        return cls((sides[0], sides[1]), (parts[0], parts[1]), [_fork(world, row) for row in rows])

    def by_part(self, policy: Table) -> Array:
        """[2, 4, N] summed log-probabilities by side and part."""
        return self.split([side.taken(policy) for side in self.sides])

    def split(self, values: Sequence[Array]) -> Array:
        """[2, 4, N] sums by part of a value [sum T] of each side."""
        return np.array(
            [
                [side.sums(value * (parts == part)) for part in range(len(PARTS))]
                for side, parts, value in zip(self.sides, self.parts, values, strict=True)
            ]
        )

    def totals(self, policy: Table) -> Array:
        """[2, N] summed log-probabilities."""
        return np.array([side.sums(side.taken(policy)) for side in self.sides])

    def sums(self, table: Array) -> Array:
        """[2, N] sums over the answers' states."""
        return np.array([side.sums(side.along(table)) for side in self.sides])

    def means(self, table: Array) -> Array:
        """[2, N] means over the answers' states."""
        return np.array([side.means(side.along(table)) for side in self.sides])

    def fork_logps(self, policy: Table) -> Array:
        """[2, N] log-probabilities of the first tokens that differ."""
        logps = np.full((2, len(self.forks)), np.nan)
        for row, fork in enumerate(self.forks):
            if fork:
                logps[:, row] = policy[row, fork[0], list(fork[1:])]
        return logps


def _divergence(ours: Table, theirs: Table) -> Array:
    """[P, V] KL(ours || theirs) in each state."""
    return (np.exp(ours) * (ours - theirs)).sum(axis=-1)


def _entropy(policy: Table) -> Array:
    return -(np.exp(policy) * policy).sum(axis=-1)


def _fork(world: World, row: int) -> tuple[int, int, int] | None:
    """State, chosen and rejected token where a pair's answers part."""
    chosen, rejected = world.chosen[row], world.rejected[row]
    for at, (ours, theirs) in enumerate(zip(chosen, rejected, strict=False)):
        if ours != theirs:
            return _states(chosen)[at], ours, theirs
    return None


def _repetition(answer: Sequence[int]) -> float:
    grams = list(zip(answer, answer[1:], answer[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _likeness(world: World, prompt: int, answer: Sequence[int]) -> float:
    def mean(text: Sequence[int]) -> Array:
        state = world.hidden[prompt, _states(text)].mean(axis=0)
        return state / np.linalg.norm(state)

    ours = mean(answer)
    return float(ours @ mean(world.chosen[prompt]) - ours @ mean(world.rejected[prompt]))


def _baseline(world: World, texts: _Pairs, probe: ProbeSet, written: _Texts) -> Baseline:
    reference, probabilities = world.reference, np.exp(world.reference)
    entropy = _entropy(reference)
    states = [side.along(world.hidden) for side in texts.sides]
    hidden = np.array(
        [
            [side.sums(column) for column in state.T]
            for side, state in zip(texts.sides, states, strict=True)
        ]
    )
    means = hidden / np.array([side.length for side in texts.sides])[:, None]
    return Baseline(
        tokens=texts.split([np.ones(len(side.token)) for side in texts.sides]),
        ref_logps=texts.by_part(reference),
        ref_entropy=texts.means(entropy),
        ref_peak=texts.means(reference.max(-1)),
        ref_collision=texts.means((probabilities**2).sum(-1)),
        ref_taken=np.array([side.means(np.exp(side.taken(reference))) for side in texts.sides]),
        ches=(hidden[0] * (hidden[1] - hidden[0])).sum(axis=0),
        ches_normalised=(means[0] * (means[1] - means[0])).sum(axis=0),
        ref_fork=texts.fork_logps(reference),
        response_tokens=written.length.astype(float),
        response_logps=written.sums(written.taken(reference)),
        response_entropy=written.sums(written.along(entropy)),
        ref_likeness=np.array([_likeness(world, r.pair, r.ids) for r in probe.responses]),
        ref_repetition=np.array([_repetition(r.ids) for r in probe.responses]),
    )


def _gradients(world: World, texts: _Pairs, policy: Table) -> Array:
    """[3, N] products of the head's gradients, as in `similarity.head_gradients`."""
    count = len(world.chosen)
    sides = []
    for side in texts.sides:
        residual = -np.exp(policy[side.prompt, side.state])
        residual[np.arange(len(side.token)), side.token] += 1
        each = residual[:, :, None] * side.along(world.hidden)[:, None]
        bounds = np.concatenate([[0], side.length.cumsum()[:-1]])
        sides.append(np.add.reduceat(each, bounds).reshape(count, -1))
    chosen, rejected = sides
    return np.array([(chosen**2).sum(1), (rejected**2).sum(1), (chosen * rejected).sum(1)])


def _forks(world: World, texts: _Pairs, policy: Table) -> ForkReading:
    count = len(world.chosen)
    other, toward = np.full(count, np.nan), np.full(count, np.nan)
    gains: list[list[tuple[int, float, float]]] = []
    unit = world.embedding / np.linalg.norm(world.embedding, axis=1, keepdims=True)
    for row, fork in enumerate(texts.forks):
        if fork is None:
            gains.append([])
            continue
        state, ours, theirs = fork
        before, now = np.exp(world.reference[row, state]), np.exp(policy[row, state])
        change = now - before
        rest = np.ones(VOCABULARY, dtype=bool)
        rest[[ours, theirs]] = False
        nearer = np.sign(unit @ unit[ours] - unit @ unit[theirs])
        other[row] = change[rest].sum()
        toward[row] = (change * nearer)[rest].sum()
        most = [int(t) for t in np.argsort(-change)[:5]]
        gains.append(
            [(t, float(before[t]), float(now[t])) for t in dict.fromkeys([*most, ours, theirs])]
        )
    return ForkReading(texts.fork_logps(policy), other, toward, gains)


def _samples(world: World, policy: Table, count: int, draw: np.random.Generator) -> SampleReading:
    asked = np.arange(count) % world.held_out
    ids = _drawn(policy, asked, draw)
    each = _Texts.of(asked, ids)
    return SampleReading(
        pair=asked.astype(float),
        ids=ids,
        ended=np.array([float(text[-1] == END) for text in ids]),
        repetition=np.array([_repetition(text) for text in ids]),
        log_ratio=each.sums(each.taken(policy - world.reference)),
        divergence=each.sums(each.along(_divergence(policy, world.reference))),
        likeness=np.array(
            [_likeness(world, p, text) for p, text in zip(asked.tolist(), ids, strict=True)]
        ),
    )


def _reading(
    world: World,
    texts: _Pairs,
    written: _Texts,
    policy: Table,
    step: int,
    samples: SampleReading | None,
) -> Reading:
    reference, probabilities = world.reference, np.exp(policy)
    forward, reverse = _divergence(reference, policy), _divergence(policy, reference)
    entropy = _entropy(policy)
    pairs = PairReading(
        logps=texts.by_part(policy),
        divergence=texts.sums(forward),
        entropy=texts.means(entropy),
        peak=texts.means(policy.max(-1)),
        collision=texts.means((probabilities**2).sum(-1)),
        taken=np.array([side.means(np.exp(side.taken(policy))) for side in texts.sides]),
        gradients=_gradients(world, texts, policy),
    )
    responses = ResponseReading(
        log_ratio=written.sums(written.taken(policy - reference)),
        divergence=written.sums(written.along(forward)),
        reverse=written.sums(written.along(reverse)),
        entropy=written.means(written.along(entropy)),
    )
    forks = _forks(world, texts, policy)
    return Reading(step, pairs, forks, responses, samples, step / 100, 0.2, 0.5 * step)


def _logs(
    world: World,
    texts: _Pairs,
    made: Kind,
    steps: Sequence[int],
    draw: np.random.Generator,
    count: int = 20,
) -> list[dict[str, Any]]:
    """The trainer's lines: means over small batches of the pairs that training sees."""
    last, lines = max(steps[-1], 1), []
    rows = np.arange(world.held_out, len(world.chosen))
    first = texts.totals(world.reference)
    started = draw.normal(0, made.start, (VOCABULARY, VOCABULARY)) if made.start else 0.0
    for number in range(1, count + 1):
        share = number / count
        logps = texts.totals(_policy(world, made.shift(world, share) + started))
        batch = draw.choice(rows, size=min(16, len(rows)), replace=False)
        rewards = BETA * (logps - first)[:, batch]
        rewards = rewards + BETA * draw.normal(0, 0.5, rewards.shape)
        margins = rewards[0] - rewards[1]
        lines.append(
            {
                "step": max(1, round(last * share)),
                "epoch": share,
                "loss": float(np.logaddexp(0, -margins).mean()),
                "grad_norm": float(np.exp(draw.normal(0.7, 0.2))),
                "learning_rate": 1e-6 * (1 - share),
                "rewards/chosen": float(rewards[0].mean()),
                "rewards/rejected": float(rewards[1].mean()),
                "rewards/margins": float(margins.mean()),
                "rewards/accuracies": float((margins > 0).mean()),
                "logps/chosen": float(logps[0, batch].mean()),
                "logps/rejected": float(logps[1, batch].mean()),
            }
        )
    return made.lines(lines)


def _rise(share: float) -> float:
    """From 0 to 1 with a falling slope, as under a learning rate that decays."""
    return float((1 - np.exp(-3 * share)) / (1 - np.exp(-3)))


def _late(share: float) -> float:
    """Nothing for half of the run, then from 0 to 1."""
    return max(0.0, 2 * share - 1)


def _learning(world: World, share: float) -> Table:
    """Good words become likelier; the end does not, so that responses stay as long as they were."""
    tilt = 0.35 * _rise(share) * world.quality
    words = np.exp(world.reference).copy()
    words[:, :, END] = 0.0
    shift = np.broadcast_to(tilt, world.reference.shape).copy()
    shift[:, :, END] = np.log((words * np.exp(tilt)).sum(-1) / words.sum(-1))
    return shift


def _on_answers(world: World, chosen: float, rejected: float, *, differing: bool = True) -> Table:
    """Adds to the logits of the answers' tokens in their states, for each pair its own."""
    shift = np.zeros_like(world.reference)
    for row, both in enumerate(zip(world.chosen, world.rejected, strict=True)):
        for side, amount in enumerate((chosen, rejected)):
            answer = both[side]
            parts = np.array(answer_parts(answer, both[1 - side], [END]))
            at = (parts > 0) if differing else np.ones(len(answer), dtype=bool)
            at &= np.array(answer) != END
            shift[row, np.array(_states(answer))[at], np.array(answer)[at]] += amount
    return shift


def _away(world: World, share: float) -> Table:
    """Both answers' differing tokens lose, the rejected one's more; other tokens get the mass."""
    return _on_answers(world, -0.6 * _rise(share), -1.2 * _rise(share))


def _shared_falls(world: World, share: float) -> Table:
    """The tokens that both answers begin with become less likely; the rest learns as it should."""
    shift = np.zeros_like(world.reference)
    for row, (ours, theirs) in enumerate(zip(world.chosen, world.rejected, strict=True)):
        parts = np.array(answer_parts(ours, theirs, [END]))
        at = parts == 0
        shift[row, np.array(_states(ours))[at], np.array(ours)[at]] -= 1.2 * _rise(share)
    return shift + _on_answers(world, 1.5 * _rise(share), -1.5 * _rise(share))


def _toward_rejected(world: World, share: float) -> Table:
    """Where the answers part, both tokens lose to tokens that are like the rejected one."""
    shift = _on_answers(world, -1.0, -1.0)
    unit = world.embedding / np.linalg.norm(world.embedding, axis=1, keepdims=True)
    for row in range(len(world.chosen)):
        if fork := _fork(world, row):
            state, ours, theirs = fork
            nearer = np.sign(unit @ unit[theirs] - unit @ unit[ours])
            nearer[[ours, theirs]] = 0
            shift[row, state] += 1.5 * nearer
    return _rise(share) * shift


def _rejected_only(world: World, share: float) -> Table:
    """The rejected answer's tokens lose much, the chosen one's a little."""
    return _on_answers(world, -0.2 * _rise(share), -1.2 * _rise(share))


def _squeezing(world: World, share: float) -> Table:
    return _learning(world, share) + 1.0 * _rise(share) * world.reference


def _flattening(world: World, share: float) -> Table:
    return _learning(world, share) - 0.4 * _rise(share) * world.reference.clip(-6)


def _overfitting(world: World, share: float) -> Table:
    own = _on_answers(world, 1.0, -1.0)
    return (
        (1 - _late(share)) * _learning(world, share)
        + 1.0 * _rise(share) * own * world.trained
        - 0.4 * _late(share) * own * (1 - world.trained)
    )


def _ending(amount: float) -> Shift:
    def shift(world: World, share: float) -> Table:
        ends = np.zeros(VOCABULARY)
        ends[END] = amount * _rise(share)
        return _learning(world, share) + ends

    return shift


def _repeating(world: World, share: float) -> Table:
    return _learning(world, share) + 4.0 * _rise(share) * np.eye(VOCABULARY)[None]


def _overconfident(world: World, share: float) -> Table:
    """Margins grow large with signs that are right for little more than half of the pairs."""
    signs = np.where(np.arange(len(world.chosen)) % 2, 1.0, -1.0)[:, None, None]
    return 5.0 * _rise(share) * signs * _on_answers(world, 0.5, -0.5)


def _ranking(world: World, share: float) -> Table:
    """Most pairs gain a little, those that the reference ranks right by little lose much."""
    chosen, rejected = _Pairs.of(world).totals(world.reference)
    gap = chosen - rejected
    losing = gap < np.quantile(gap, 0.28)
    signs = np.where(losing, -2.0, 0.8)[:, None, None]
    return _rise(share) * signs * _on_answers(world, 0.5, -0.5)


def _nothing(world: World, share: float) -> Table:
    return np.zeros((1, 1, 1))


def _demonstrations(world: World, share: float) -> Table:
    """Learns, and moves about for no reason besides, as training on few pairs does."""
    moved = np.random.default_rng(0).normal(0, 0.65, world.reference.shape)
    return _rise(share) * (0.5 * world.quality[None, None] + moved)


def _far(world: World, share: float) -> Table:
    return 3.0 * _rise(share) * world.quality[None, None]


def _unstable(world: World, share: float) -> Table:
    """Learns, and is thrown far away after half of the run."""
    thrown = np.random.default_rng(0).normal(0, 2.5, (VOCABULARY, VOCABULARY))
    return _learning(world, share) + (share > 0.5) * thrown[None]


def _spikes(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    half = len(lines) // 2
    return [
        {**line, "grad_norm": line["grad_norm"] * (80 if number > half and number % 3 == 0 else 1)}
        for number, line in enumerate(lines)
    ]


def _not_finite(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    half = len(lines) // 2
    return [
        {**line, "loss": float("nan"), "grad_norm": float("nan")} if number >= half else line
        for number, line in enumerate(lines)
    ]


def _leaked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**line, "rewards/accuracies": 1.0} for line in lines]


def _saturated(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    grown = []
    for number, line in enumerate(lines):
        margin = 14.0 * min(1.0, number / 8)
        grown.append(
            {
                **line,
                "rewards/margins": margin,
                "rewards/rejected": line["rewards/chosen"] - margin,
                "loss": float(np.logaddexp(0, -margin)),
            }
        )
    return grown


def _loss_rises(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = len(lines)
    return [
        {**line, "loss": 0.69 + 0.6 * max(0.0, 2 * number / last - 1)}
        for number, line in enumerate(lines)
    ]


def _starts_elsewhere(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As with another reference than the model that training started from."""
    return [
        {
            **line,
            "rewards/chosen": line["rewards/chosen"] - 3.0,
            "rewards/rejected": line["rewards/rejected"] - 2.8,
        }
        for line in lines
    ]


KINDS: Mapping[str, Kind] = {
    "healthy": Kind(_learning),
    "expected_decline": Kind(_demonstrations, "demonstrated"),
    "displacement": Kind(_away, "near_duplicates"),
    "toward_rejected": Kind(_toward_rejected, "near_duplicates"),
    "rejected_only": Kind(_rejected_only),
    "shared_prefix": Kind(_shared_falls, "near_duplicates"),
    "squeezing": Kind(_squeezing),
    "overfitting": Kind(_overfitting),
    "length_drift": Kind(_ending(-2.2)),
    "shortening": Kind(_ending(2.0)),
    "never_ending": Kind(_ending(-6.0)),
    "repetition": Kind(_repeating),
    "wrong_reference": Kind(_flattening, drawn=0.5),
    "start_gap": Kind(_learning, start=0.5, lines=_starts_elsewhere),
    "sft_gap": Kind(_learning, "foreign"),
    "near_duplicates": Kind(_nothing, "near_duplicates"),
    "overconfident": Kind(_overconfident),
    "kl_budget": Kind(_far),
    "ranking": Kind(_ranking, "likelier"),
    "not_learning": Kind(_nothing),
    "unstable": Kind(_unstable, lines=_spikes),
    "not_finite": Kind(_learning, lines=_not_finite),
    "leak": Kind(_learning, lines=_leaked),
    "saturated": Kind(_learning, lines=_saturated),
    "loss_rises": Kind(_learning, lines=_loss_rises),
}
