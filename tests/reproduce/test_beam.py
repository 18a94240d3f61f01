"""`tokenq reproduce beam`: counts worked by hand, judges, policies, and a run on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_pairs import TEMPLATE
from tiny_training import save_model, tiny_llama, tiny_tokenizer

from tokenq.cli.main import main
from tokenq.data.debian import Archive, Description
from tokenq.data.film_snippets import SnippetTable
from tokenq.errors import UserError
from tokenq.models.logps import token_logps
from tokenq.reproduce import beam as experiment
from tokenq.reproduce.beam_decoding import debian, film, policies
from tokenq.reproduce.beam_decoding.analysis import Resampler
from tokenq.reproduce.beam_decoding.beams import beams_decoded
from tokenq.reproduce.beam_decoding.decoding import (
    ALIGNMENT,
    OTHERS,
    SUM,
    beam,
    decoded,
    opened,
    sampled,
)
from tokenq.reproduce.beam_decoding.material import Example, Start, start_ids
from tokenq.reproduce.beam_decoding.measures import _distinct
from tokenq.reproduce.beam_decoding.policies import DPO, REFERENCE, Policies, Policy, Workshop
from tokenq.reproduce.beam_decoding.settings import QUICK, BeamSettings, FilmSettings
from tokenq.reproduce.beam_decoding.work import chosen_pieces, methods, pieces
from tokenq.reproduce.localisation.material import TrainingPair

PROMPT = [{"role": "user", "content": "Say it."}]
PAIRS = [TrainingPair(PROMPT, f"good {n}", f"bad film {n}") for n in range(6)]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "tiny", tiny_llama(layers=3))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


# ---- What is counted of a summary ----


def test_checks_of_a_summary() -> None:
    description = "A fast parser library for RSS feeds. It reads Atom 1.0 feeds as well."
    found = debian.checks("parser library for JSON feeds", description, "RSS parser library")
    # parser, library, feeds are there, JSON is not; runs: 1 of 3 stands so in the description.
    assert found.unsupported == pytest.approx(1 / 4)
    assert found.foreign == 1.0
    assert found.copied == pytest.approx(1 / 3)
    # {rss, parser, library} and {parser, library, json, feed} share two.
    assert found.overlap == pytest.approx(2 * 2 / (3 + 4))
    good = debian.checks("Parser for Atom feed", description, "Parser for Atom feed")
    assert (good.unsupported, good.foreign, good.overlap) == (0.0, 0.0, 1.0)
    assert debian.checks("parser 2.0 thing", description, "x").foreign == 1.0
    assert debian.checks("parser", description, "x").copied is None


def test_a_first_capital_is_no_name() -> None:
    assert debian.checks("Quick parser", "a parser", "x").foreign == 0.0
    assert debian.checks("a Quick parser", "a parser", "x").foreign == 1.0


def described(count: int) -> list[Description]:
    kinds = ["parser", "viewer", "editor", "player", "server", "indexer", "monitor"]
    return [
        Description(
            f"pkg{n}",
            f"src{n}",
            "utils",
            f"{kinds[n % 7]} of number{n} files",
            f"This is a {kinds[n % 7]} that reads all of the number{n} files you have here.",
        )
        for n in range(count)
    ]


def test_pairs_of_the_judge_have_three_kinds() -> None:
    own = described(8)
    samples = ["a sample"] * 7 + [own[7].synopsis]
    by_kind = debian.judged_pairs(own, samples)
    assert len(by_kind[debian.SAMPLE]) == 7  # a sample that is the synopsis makes no pair
    assert by_kind[debian.OTHER][-1].rejected == own[0].synopsis
    spoiled = by_kind[debian.SPOILED][0]
    ours, theirs = spoiled.chosen.split(), spoiled.rejected.split()
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) == 1
    chosen = debian.training_pairs(own, samples)
    assert [pair.chosen for pair in chosen] == [each.synopsis for each in own]
    assert [pair.rejected == "a sample" for pair in chosen] == [True, False] * 4


def test_packages_of_different_uses_share_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    every = described(80)
    monkeypatch.setattr(debian, "read", lambda: Archive({}, tuple(every)))
    settings = replace(QUICK.debian, prompt_tokens=200)
    found = debian.packages(settings, tiny_tokenizer())
    uses = [found.tuning, found.pool, found.judge, found.held_out, found.tests]
    sources = [each.source for use in uses for each in use]
    assert len(set(sources)) == len(sources) == 8 + 12 + 8 + 6 + 4
    with pytest.raises(UserError, match="500 packages of the part 'test'"):
        debian.packages(replace(settings, prompts=500), tiny_tokenizer())


# ---- Judges of film reviews ----


def test_the_regressor_is_ridge_regression() -> None:
    texts = ["good film", "bad film", "good good plot", "a bad plot", "good plot", "bad end"]
    ratings = [2.0, -2.0, 2.5, -1.0, 1.0, -3.0]
    found = film.fitted(texts, ratings)
    features = film._features(texts, found.places, found.rarity).toarray()
    assert set(found.places) == {"good", "film", "bad", "plot", "good plot"}
    lengths = np.sqrt((features**2).sum(axis=1))
    np.testing.assert_allclose(lengths, 1.0)
    centred = np.array(ratings) - np.mean(ratings)
    exact = np.linalg.solve(features.T @ features + np.eye(5), features.T @ centred)
    np.testing.assert_allclose(found.weights, exact, atol=1e-6)
    assert found(["unknown"])[0] == pytest.approx(np.mean(ratings))
    assert found(["good"])[0] > found(["bad"])[0]


def test_judge_and_policies_share_no_text(film_snippets: SnippetTable) -> None:
    own = film.material(FilmSettings())
    judged = {each.text for each in film_snippets.kept if film._of_judge(each)}
    texts = {each.text for each in own.tuning}
    texts |= {side for pair in own.pairs(0) for side in (pair.chosen, pair.rejected)}
    assert not texts & judged
    held_out = {each.text for each in film_snippets.kept if each.split == "test"}
    assert all(start.human in held_out for start in own.starts)
    assert len({start.text for start in own.starts}) == 256
    assert own.pairs(0) != own.pairs(1)


def test_judges_agree_with_people(film_snippets: SnippetTable) -> None:
    texts, ratings = film.rated()
    assert np.corrcoef(film.regressor()(texts), ratings)[0, 1] > 0.6
    valence = [film.lexicon_valence(text) for text in texts]
    assert np.corrcoef(valence, ratings)[0, 1] > 0.35


def test_repetition() -> None:
    assert _distinct(["a", "b", "a", "b"], 1) == 0.5
    assert _distinct(["a", "b", "a", "b"], 2) == pytest.approx(2 / 3)
    assert _distinct(["a"], 2) == 1.0


# ---- Policies ----


def test_kept_weights_are_the_policy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "cache_dir", lambda *parts: _folder(tmp_path / "kept"))
    workshop = Workshop(str(tiny), 1)
    made = Policies(workshop, {}, QUICK.sft, QUICK.preferences)
    tuning = [Example(PROMPT, f"good film {n}") for n in range(12)]
    reference = made.policy(Policy(REFERENCE), tuning, [])
    trained = made.policy(Policy(DPO, 0.1), tuning, PAIRS)
    assert any(not torch.equal(trained[name], reference[name]) for name in trained)
    assert any(not torch.equal(reference[n], workshop.untrained[n]) for n in reference)

    encoded = [workshop.encoder(PROMPT, "good film 1")]
    prompts, answers = [encoded[0].prompt_ids], [encoded[0].response_ids]
    workshop.set(trained)
    with torch.no_grad():
        wanted = token_logps(workshop.model, prompts, answers)[0]
        found = token_logps(opened(str(tiny), trained, "float32"), prompts, answers)[0]
    torch.testing.assert_close(found, wanted)
    # A second time nothing is trained.
    monkeypatch.setattr(Workshop, "weights_after", None)
    again = made.policy(Policy(DPO, 0.1), tuning, PAIRS)
    assert all(torch.equal(again[name], trained[name]) for name in trained)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def test_a_beginning_is_the_answers_own(tiny: Path) -> None:
    encoder = Workshop(str(tiny), 1).encoder
    start = Start("0", PROMPT, "good film", "good film 7 here")
    ids, given = start_ids(encoder, start)
    whole = encoder(PROMPT, start.human)
    assert ids[: len(ids) - given] == whole.prompt_ids
    assert encoder.tokenizer.decode(ids[len(ids) - given :]) == "good film"
    assert whole.response_ids[:given] == ids[len(ids) - given :]
    assert start_ids(encoder, replace(start, text="")) == (whole.prompt_ids, 0)


def test_samples_say_how_likely_they_are(tiny: Path) -> None:
    model = opened(str(tiny), Workshop(str(tiny), 1).untrained, "float32")
    starts = [[5, 9, 30], [7, 8]]
    found = sampled(model, starts, 4, 6, seed=3)
    assert found == sampled(model, starts, 4, 6, seed=3)
    assert found != sampled(model, starts, 4, 6, seed=4)
    for start, answers in zip(starts, found, strict=True):
        assert len(answers) == 4
        for answer in answers:
            with torch.no_grad():
                logps = token_logps(model, [start], [answer.token_ids])[0]
            assert answer.logp == pytest.approx(float(logps.sum()), abs=1e-4)
            assert answer.ended == (answer.token_ids[-1] == 1)


def test_alignment_aware_decoding_is_greedy_in_the_log_ratio(tiny: Path) -> None:
    policy, reference = tiny_llama(1).eval(), tiny_llama(2).eval()
    method = next(each for each in OTHERS if each.name == ALIGNMENT)
    found = decoded(policy, reference, [[5, 9, 30]], method, 1)[0]
    with torch.no_grad():
        ours, theirs = (
            m(torch.tensor([[5, 9, 30]])).logits[0, -1].log_softmax(-1) for m in (policy, reference)
        )
    ratio = torch.where(ours.exp() >= 0.1 * ours.exp().max(), ours - theirs, -torch.inf)
    assert found.token_ids == [int(ratio.argmax())]
    assert found.logp == pytest.approx(float(ours[ratio.argmax()]), abs=1e-4)


def test_a_wider_beam_finds_no_less(tiny: Path) -> None:
    model = opened(str(tiny), Workshop(str(tiny), 1).untrained, "float32")
    narrow, wide = (decoded(model, None, [[5, 9]], beam(width), 2)[0] for width in (1, 300))
    assert wide.logp / len(wide.token_ids) >= narrow.logp / len(narrow.token_ids)


# ---- The numbers ----


def test_intervals_are_over_prompts() -> None:
    values = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    found = Resampler(4, 500)(values)
    assert found.value == 0.5
    assert found.by_seed == [0.5, 0.5]
    assert found.low < 0.5 < found.high
    same = Resampler(4, 500)(np.full((2, 4), 0.25))
    assert (same.low, same.high) == (0.25, 0.25)


def test_pieces_and_their_names() -> None:
    settings = BeamSettings()
    every = pieces(settings, ["film", "debian"], 3)
    keys = [piece.key for piece in every]
    assert len(set(keys)) == len(keys)
    assert "film/dpo-0.1-2/beams" in keys
    first, other = chosen_pieces(every, ["film/dpo-0.1-0/beams", "film/dpo-0.03-0/beams"])
    assert [m.width for m in methods(settings, first)] == [*settings.film.widths, 5]
    assert [m.width for m in methods(settings, other)] == [1, 5, 20]
    with pytest.raises(UserError, match=r"--only: 'film/dpo-1-0/beams' is unknown"):
        chosen_pieces(every, ["film/dpo-1-0/beams"])


def test_a_whole_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, film_snippets: SnippetTable
) -> None:
    monkeypatch.setattr(policies, "cache_dir", lambda *parts: _folder(tmp_path / parts[-1]))
    every = described(80)
    monkeypatch.setattr(debian, "read", lambda: Archive({}, tuple(every)))
    monkeypatch.setattr(experiment.debian, "read", lambda: None)
    small = replace(QUICK, dtype="float32", debian=replace(QUICK.debian, prompt_tokens=200))
    monkeypatch.setattr(experiment, "QUICK", small)
    out = tmp_path / "out"
    arguments = ["reproduce", "beam", "--quick", "--model", str(tiny), "--out", str(out)]
    assert main([*arguments, "--join"]) == 2
    assert main([*arguments, "--only", "film/reference-0/beams"]) == 0
    assert "Pieces of the whole" in (out / "README.md").read_text()
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    arms = results["tasks"]["film"]["arms"]
    assert set(arms) == {"reference", "dpo 0.1", "sft"}
    assert arms["dpo 0.1"]["beam 2"]["seeds"] == [0, 1]
    assert {"best of samples 5", "alignment-aware 1", "log-ratio beam 20"} <= set(arms["dpo 0.1"])
    own = arms["reference"]["beam 1"]["against own greedy"]["rating"]["win rate"]
    assert (own["value"], own["ties"]) == (0.5, 4)
    assert set(results["tasks"]["debian"]["judges"]) == {
        debian.SAMPLE,
        debian.OTHER,
        debian.SPOILED,
    }
    page = (out / "README.md").read_text()
    assert "## Film reviews" in page
    assert "## Summaries of software packages" in page
    assert "nan" not in page
    # Everything is there: nothing is decoded again, and joining gives the same.
    monkeypatch.setattr("tokenq.reproduce.beam_decoding.work.decoded", None)
    assert main([*arguments, "--join"]) == 0
    assert json.loads((out / "results.json").read_text())["results"] == results


@pytest.mark.parametrize("seed", range(4))
def test_widths_together_find_what_each_finds_alone(seed: int) -> None:
    model = tiny_llama(seed).eval()
    starts = [[5, 9, 30], [7, 8], [200, 31, 12, 4], [44], [99, 98]]
    every = [beam(1), beam(2), beam(3), beam(7), SUM]
    # A random model hardly ever ends; a token that it likes ends its answers here.
    eos = decoded(model, None, starts, beam(2), 9)[seed].token_ids[-2]
    model.generation_config.eos_token_id = eos
    together = beams_decoded(model, starts, every, 9, eos, prompts_at_once=2)
    for method, found in zip(every, together, strict=True):
        alone = decoded(model, None, starts, method, 9)
        assert [each.token_ids for each in found] == [each.token_ids for each in alone]
        assert [each.ended for each in found] == [each.ended for each in alone]
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.logp == pytest.approx(theirs.logp, abs=1e-4)
    assert any(answer.ended for found in together for answer in found)
