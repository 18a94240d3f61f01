"""Every number of a reading against plain forwards over the whole vocabulary."""

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import (
    END,
    held_out,
    move,
    moved,
    pair_rows,
    plain_logps,
    plain_states,
    row_facts,
    trained,
)
from tiny_checkpoints import gpt2, llama, lora
from torch import nn
from transformers import PreTrainedModel

from tokenq.errors import UserError
from tokenq.models.reference import AdapterOff, scoring
from tokenq.monitor import ProbeOptions, Prober
from tokenq.monitor.likelihood import PARTS, answer_parts
from tokenq.monitor.readings import ProbePair, Reading, Setup

OPTIONS = ProbeOptions(responses=5, samples=4, new_tokens=6)


@dataclass
class Run:
    """A prober that was opened at the start of a run, and the run's policy some steps later.

    reference: a model that says what the reference said
    """

    prober: Prober
    policy: nn.Module
    reference: Any
    reading: Reading

    def tables(self, prompt: Any, answer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with scoring(self.reference) as model:
            theirs = plain_logps(model, prompt, answer)
        return plain_logps(self.policy, prompt, answer), theirs

    def facts(self, prompt: Any, answer: Any) -> dict[str, np.ndarray]:
        return row_facts(*self.tables(prompt, answer), answer)


def whole(make: Any) -> Run:
    """Full fine-tuning: the reference is the policy before its first step, and then gone."""
    policy = make(seed=3)
    kept = copy.deepcopy(policy)
    prober = Prober.open(policy, held_out(), trained(), [END], OPTIONS)
    move(policy)
    return Run(prober, policy, kept, prober.read(policy, 7, samples=True, epoch=0.5))


def frozen(make: Any) -> Run:
    """A reference of its own that is not trained."""
    policy = make(seed=3)
    reference = copy.deepcopy(policy).requires_grad_(False)
    prober = Prober.open(reference, held_out(), trained(), [END], OPTIONS)
    move(policy)
    return Run(prober, policy, reference, prober.read(policy, 7, samples=True, epoch=0.5))


def adapter(make: Any, **options: Any) -> Run:
    """The reference is the base under the policy's adapter."""
    policy = lora(make(seed=3), **options)
    off = AdapterOff(policy)
    prober = Prober.open(off, held_out(), trained(), [END], OPTIONS)
    move(policy, 0.1)
    return Run(prober, policy, off, prober.read(policy, 7, samples=True, epoch=0.5))


def adapted_head(make: Any) -> Run:
    """An adapter on the head as well, which policy and reference otherwise share."""
    return adapter(make, target_modules=["q_proj", "lm_head"])


def trained_head(make: Any) -> Run:
    """A head that is trained as a whole beside the adapter, and the reference's own below it."""
    return adapter(make, modules_to_save=["lm_head"])


CASES = {
    "llama, all weights": (whole, llama),
    "gpt2, all weights": (whole, gpt2),
    "llama, reference beside": (frozen, llama),
    "llama, adapter": (adapter, llama),
    "gpt2, adapter": (adapter, gpt2),
    "llama, adapter on the head": (adapted_head, llama),
    "llama, adapter beside a trained head": (trained_head, llama),
}


@pytest.fixture(scope="module", params=list(CASES))
def run(request: pytest.FixtureRequest) -> Run:
    start, make = CASES[request.param]
    return start(make)


def close(found: Any, expected: Any, size: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=size, atol=size)


def test_what_is_read_is_not_trivial(run: Run) -> None:
    assert float(run.reading.pairs.divergence.min()) > 1e-3
    assert run.reading.step == 7
    assert run.reading.epoch == 0.5
    assert run.reading.seconds > 0


def test_pairs(run: Run) -> None:
    reading, baseline, pairs = run.reading.pairs, run.prober.baseline, run.prober.probe.pairs
    for side, rows in enumerate(pair_rows(run.prober.probe)):
        for number, (prompt, answer) in enumerate(rows):
            pair = pairs[number]
            facts = run.facts(prompt, answer)
            other = pair.rejected if side == 0 else pair.chosen
            parts = np.array(answer_parts(answer, other, [END]))
            for part in range(len(PARTS)):
                inside = parts == part
                assert baseline.tokens[side, part, number] == inside.sum()
                close(reading.logps[side, part, number], facts["logps"][inside].sum())
                close(baseline.ref_logps[side, part, number], facts["ref_logps"][inside].sum())
            close(reading.divergence[side, number], facts["divergence"].sum())
            for name in ("entropy", "peak", "collision", "taken"):
                close(getattr(reading, name)[side, number], facts[name].mean())


def test_the_references_own_view_of_pairs(run: Run) -> None:
    baseline = run.prober.baseline
    for side, rows in enumerate(pair_rows(run.prober.probe)):
        for number, (prompt, answer) in enumerate(rows):
            theirs = run.tables(prompt, answer)[1]
            facts = row_facts(theirs, theirs, answer)
            for name in ("entropy", "peak", "collision", "taken"):
                close(getattr(baseline, f"ref_{name}")[side, number], facts[name].mean())


def test_similarity_is_that_of_the_references_states(run: Run) -> None:
    for number, pair in enumerate(run.prober.probe.pairs):
        with scoring(run.reference) as model:
            ours = plain_states(model, pair.prompt, pair.chosen).double()
            theirs = plain_states(model, pair.prompt, pair.rejected).double()
        sums, others = ours.sum(0), theirs.sum(0)
        close(run.prober.baseline.ches[number], float(sums @ others - sums @ sums), 1e-3)
        means, others = ours.mean(0), theirs.mean(0)
        expected = float(means @ others - means @ means)
        close(run.prober.baseline.ches_normalised[number], expected, 1e-3)


def test_gradients_are_those_of_the_heads_outputs(run: Run) -> None:
    """By the outer products sum_t (onehot - pi) h^T, as matrices."""
    assert run.reading.pairs.gradients is not None
    for number, pair in enumerate(run.prober.probe.pairs):
        matrices = []
        for answer in (pair.chosen, pair.rejected):
            states = plain_states(run.policy, pair.prompt, answer).double()
            residuals = -plain_logps(run.policy, pair.prompt, answer).exp()
            residuals[torch.arange(len(answer)), torch.tensor(answer)] += 1
            matrices.append(residuals.T @ states)
        ours, theirs = matrices
        expected = [(ours * ours).sum(), (theirs * theirs).sum(), (ours * theirs).sum()]
        for found, product in zip(run.reading.pairs.gradients[:, number], expected, strict=True):
            assert found == pytest.approx(float(product), rel=1e-3, abs=1e-2)


def test_responses(run: Run) -> None:
    probe, baseline, reading = run.prober.probe, run.prober.baseline, run.reading.responses
    assert [each.pair for each in probe.responses] == [0, 1, 2, 0, 1]
    for number, response in enumerate(probe.responses):
        assert len(response.ids) <= 6
        assert response.ended == (response.ids[-1] == END)
        assert response.ended or len(response.ids) == 6
        prompt = probe.pairs[response.pair].prompt
        facts = run.facts(prompt, response.ids)
        theirs = run.tables(prompt, response.ids)[1]
        assert baseline.response_tokens[number] == len(response.ids)
        close(baseline.response_logps[number], facts["ref_logps"].sum())
        expected = row_facts(theirs, theirs, response.ids)["entropy"].sum()
        close(baseline.response_entropy[number], expected)
        close(reading.log_ratio[number], (facts["logps"] - facts["ref_logps"]).sum())
        close(reading.divergence[number], facts["divergence"].sum())
        close(reading.reverse[number], facts["reverse"].sum())
        close(reading.entropy[number], facts["entropy"].mean())


def embeddings(run: Run) -> torch.Tensor:
    with scoring(run.reference) as model:
        head: Any = model.get_output_embeddings()
        return head.weight.detach().double()


def test_forks(run: Run) -> None:
    reading = run.reading.forks
    table = embeddings(run)
    for number, pair in enumerate(run.prober.probe.pairs):
        both = zip(pair.chosen, pair.rejected, strict=False)
        places = [place for place, (ours, theirs) in enumerate(both) if ours != theirs]
        if not places:
            assert np.isnan(reading.logps[:, number]).all()
            assert np.isnan([reading.other[number], reading.toward[number]]).all()
            assert np.isnan(run.prober.baseline.ref_fork[:, number]).all()
            assert reading.gains[number] == []
            continue
        ours, theirs = (each[places[0]] for each in run.tables(pair.prompt, pair.chosen))
        tokens = [pair.chosen[places[0]], pair.rejected[places[0]]]
        close(reading.logps[:, number], ours[tokens])
        close(run.prober.baseline.ref_fork[:, number], theirs[tokens])
        change = ours.exp() - theirs.exp()
        others = [token for token in range(len(change)) if token not in tokens]
        close(reading.other[number], change[others].sum())
        own = table - table.mean(0)
        cosines = [torch.cosine_similarity(own, own[token][None], dim=-1) for token in tokens]
        toward = sum(float(change[t] * torch.sign(cosines[0][t] - cosines[1][t])) for t in others)
        close(reading.toward[number], toward)
        greatest = change.argsort(descending=True)[:5].tolist()
        assert [gain[0] for gain in reading.gains[number]] == greatest
        for token, before, after in reading.gains[number]:
            close([before, after], [theirs[token].exp(), ours[token].exp()])


def test_samples(run: Run) -> None:
    reading = run.reading.samples
    assert reading is not None
    assert reading.pair.tolist() == [0, 1, 2, 0]
    gone = run.prober._reference.model is None
    for number, ids in enumerate(reading.ids):
        assert reading.ended[number] == (ids[-1] == END)
        assert 0 <= reading.repetition[number] <= 1
        assert -2 <= reading.likeness[number] <= 2
        if gone:
            assert np.isnan([reading.log_ratio[number], reading.divergence[number]]).all()
            continue
        facts = run.facts(run.prober.probe.pairs[int(reading.pair[number])].prompt, ids)
        close(reading.log_ratio[number], (facts["logps"] - facts["ref_logps"]).sum())
        close(reading.divergence[number], facts["reverse"].sum())


def test_a_reading_survives_its_line(run: Run) -> None:
    again = Reading.from_dict(json.loads(run.reading.to_line()))
    same_numbers(again, run.reading)


def same_numbers(one: Any, other: Any) -> None:
    """Bit for bit, but for the time that it took."""
    ours, theirs = ({**each.to_dict(), "seconds": 0.0} for each in (one, other))
    assert ours == theirs


@pytest.mark.parametrize("start", ["all weights", "adapter"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_before_the_first_step_nothing_has_changed_at_all(start: str, make: Any) -> None:
    policy: nn.Module = make(seed=1)
    reference: Any = policy
    if start == "adapter":
        policy = lora(policy)
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.data.zero_()
        reference = AdapterOff(policy)
    prober = Prober.open(reference, held_out(), trained(), [END], OPTIONS)
    reading = prober.read(policy, 0, samples=True)
    assert (reading.pairs.logps == prober.baseline.ref_logps).all()
    assert not reading.pairs.divergence.any()
    assert not reading.responses.log_ratio.any()
    assert not reading.responses.divergence.any()
    assert not reading.responses.reverse.any()
    assert not any(reading.forks.gains)
    assert set(reading.forks.other[~np.isnan(reading.forks.other)]) == {0.0}
    if start == "adapter":
        assert reading.samples is not None
        assert not reading.samples.log_ratio.any()


def setup_of(prober: Prober) -> Setup:
    setup = Setup(prober.probe, prober.baseline, 0.1, "p", "r", [END], {})
    return Setup.from_dict(json.loads(json.dumps(setup.to_dict())))


@pytest.mark.parametrize("case", list(CASES))
def test_a_resumed_run_reads_the_same_numbers(case: str, tmp_path: Path) -> None:
    start, make = CASES[case]
    run = start(make)
    run.prober.save(tmp_path)
    kept = run.reference if start is frozen else None
    again = Prober.load(tmp_path, setup_of(run.prober), run.policy, OPTIONS, reference=kept)
    same_numbers(again.baseline, run.prober.baseline)
    same_numbers(again.read(run.policy, 7, samples=True, epoch=0.5), run.reading)


def test_only_what_the_policy_cannot_give_is_saved(tmp_path: Path) -> None:
    sizes = {}
    for name, run in (("adapter", adapter(llama)), ("whole", whole(llama))):
        run.prober.save(tmp_path / name)
        sizes[name] = (tmp_path / name / "reference.safetensors").stat().st_size
    assert sizes["whole"] - sizes["adapter"] >= 96 * 32 * 4
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_files_of_another_run_are_refused(tmp_path: Path) -> None:
    policy = llama()
    prober = Prober.open(policy, held_out(), [], [END], OPTIONS)
    with pytest.raises(UserError, match=r"reference\.safetensors: not the states"):
        Prober.load(tmp_path, setup_of(prober), policy, OPTIONS)
    prober.save(tmp_path)
    other = Prober.open(policy, held_out()[:1], [], [END], OPTIONS)
    with pytest.raises(UserError, match="accepted: files of one run"):
        Prober.load(tmp_path, setup_of(other), policy, OPTIONS)
    lost = adapter(llama)
    lost.prober.save(tmp_path)
    with pytest.raises(UserError, match="the policy has no adapter"):
        Prober.load(tmp_path, setup_of(lost.prober), policy, OPTIONS)


def test_samples_depend_on_seed_and_step_only() -> None:
    policy = llama(seed=2)
    prober = Prober.open(policy, held_out(), trained(), [END], OPTIONS)
    again = Prober.open(copy.deepcopy(policy), held_out(), trained(), [END], OPTIONS)
    assert again.probe == prober.probe
    torch.manual_seed(5)
    first: Any = prober.read(policy, 3, samples=True).samples
    torch.manual_seed(6)
    second: Any = again.read(policy, 3, samples=True).samples
    third: Any = prober.read(policy, 4, samples=True).samples
    assert first.ids == second.ids
    assert first.ids != third.ids
    other = ProbeOptions(responses=5, samples=4, new_tokens=6, seed=1)
    elsewhere = Prober.open(policy, held_out(), trained(), [END], other)
    assert elsewhere.probe.responses != prober.probe.responses


def test_a_reading_with_samples_reads_the_rest_as_without() -> None:
    policy = llama(seed=2)
    prober = Prober.open(policy, held_out(), trained(), [END], OPTIONS)
    move(policy)
    with_samples, without = prober.read(policy, 1, samples=True), prober.read(policy, 1)
    assert without.samples is None
    same_numbers(with_samples.pairs, without.pairs)
    same_numbers(with_samples.responses, without.responses)


@pytest.mark.parametrize("start", ["all weights", "adapter"])
def test_models_and_random_numbers_are_left_as_they_were(start: str) -> None:
    base: PreTrainedModel = llama(seed=4)
    policy: nn.Module = lora(base) if start == "adapter" else base
    policy.train()
    base.model.layers[0].eval()
    flags = {name: part.training for name, part in policy.named_modules()}
    grads = {name: weight.requires_grad for name, weight in policy.named_parameters()}
    attributes = dict(base.__dict__)
    implementation = base.config._attn_implementation
    ids = torch.tensor([[5, 6, 7, 8]])
    before = policy(ids).logits
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    given = AdapterOff(policy) if start == "adapter" else policy  # type: ignore[arg-type]
    prober = Prober.open(given, held_out(), trained(), [END], OPTIONS)
    for step in range(2):
        prober.read(policy, step, samples=True)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    assert {name: part.training for name, part in policy.named_modules()} == flags
    assert {name: weight.requires_grad for name, weight in policy.named_parameters()} == grads
    assert all(weight.grad is None for weight in policy.parameters())
    assert dict(base.__dict__) == attributes
    assert base.config._attn_implementation == implementation
    assert torch.equal(policy(ids).logits, before)


def test_no_responses_no_samples_one_list() -> None:
    policy = llama(seed=2)
    options = ProbeOptions(responses=0, samples=0, gradients=False)
    prober = Prober.open(policy, [], trained(), [END], options)
    reading = prober.read(moved(policy), 1, samples=True)
    assert prober.probe.responses == []
    assert prober.probe.new_tokens == 8
    assert reading.responses.log_ratio.shape == (0,)
    assert reading.samples is None
    assert reading.pairs.gradients is None
    assert reading.pairs.logps.shape == (2, 4, 3)
    same_numbers(Reading.from_dict(json.loads(reading.to_line())).pairs, reading.pairs)


def test_equal_answers_alone() -> None:
    policy = llama(seed=2)
    prober = Prober.open(policy, [trained()[1]], [], [END], OPTIONS)
    reading = prober.read(moved(policy), 1)
    assert (reading.pairs.logps[0] == reading.pairs.logps[1]).all()
    assert reading.forks.gains == [[]]
    assert prober.baseline.ches[0] == pytest.approx(0, abs=1e-9)
    assert not prober.baseline.ref_likeness.any()


def test_training_prompts_are_answered_where_there_are_no_others() -> None:
    prober = Prober.open(llama(), [], trained(), [END], OPTIONS)
    assert [each.pair for each in prober.probe.responses] == [0, 1, 2, 0, 1]
    both = Prober.open(llama(), held_out()[:2], trained(), [END], OPTIONS)
    assert [each.pair for each in both.probe.responses] == [0, 1, 0, 1, 0]


def test_prompts_without_room_are_not_answered() -> None:
    long = ProbePair("held_out", 1, [5] * 124, [20, END], [21, END])
    prober = Prober.open(llama(), [long, held_out()[0]], [], [END], OPTIONS)
    assert {each.pair for each in prober.probe.responses} == {1}
    alone = Prober.open(llama(), [long], [], [END], OPTIONS)
    assert alone.probe.new_tokens == 4
    assert {each.pair for each in alone.probe.responses} == {0}


def test_a_probe_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="the probe has no pairs"):
        Prober.open(llama(), [], [], [END], OPTIONS)
    empty = ProbePair("train", 5, [1], [], [3])
    with pytest.raises(UserError, match="train pair 5 has an empty text"):
        Prober.open(llama(), [], [empty], [END], OPTIONS)


@pytest.mark.parametrize(
    "options", [{"held_out": -1}, {"new_tokens": 0}, {"samples": 1.5}, {"token_budget": 0}]
)
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is .*accepted: a whole number"):
        ProbeOptions(**options)


def test_another_vocabulary_is_refused() -> None:
    prober = Prober.open(llama(), held_out(), [], [END], OPTIONS)
    with pytest.raises(UserError, match="the reference scores 96 tokens, the policy 100"):
        prober.read(llama(vocab_size=100), 1)


def test_likeness_by_the_users_own_encoder() -> None:
    def embed(texts: Any) -> torch.Tensor:
        return torch.tensor([[float(len(ids)), 1.0] for ids in texts])

    pair = held_out()[1]
    prober = Prober.open(llama(seed=2), [pair], [], [END], OPTIONS, embed=embed)
    for response, found in zip(prober.probe.responses, prober.baseline.ref_likeness, strict=True):
        # Centred at length 4, the chosen answer (3) and the rejected one (5) lie opposite.
        assert found == pytest.approx(-2 * np.sign(len(response.ids) - 4))


def test_mixed_precision_of_the_caller_changes_little_and_starts_at_zero() -> None:
    policy = llama(seed=2)
    plain = Prober.open(policy, held_out(), trained(), [END], OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prober = Prober.on(plain.probe, policy, [END], OPTIONS)
        reading = prober.read(policy, 0)
    assert not reading.responses.log_ratio.any()
    assert not reading.pairs.divergence.any()
    assert (prober.baseline.ref_logps != plain.baseline.ref_logps).any()
    close(prober.baseline.ref_logps, plain.baseline.ref_logps, 0.1)


def test_a_small_budget_of_tokens_changes_nothing() -> None:
    policy = llama(seed=2)
    small = ProbeOptions(responses=5, samples=4, new_tokens=6, token_budget=20)
    probers = [Prober.open(policy, held_out(), trained(), [END], each) for each in (OPTIONS, small)]
    assert probers[0].probe == probers[1].probe
    move(policy)
    readings = [prober.read(policy, 1) for prober in probers]
    close(readings[0].pairs.logps, readings[1].pairs.logps)
    close(readings[0].responses.divergence, readings[1].responses.divergence)
