"""`tokenq reproduce uses`: its measures worked by hand, and a whole run on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_pairs import TEMPLATE
from tiny_training import save_model, tiny_llama, tiny_tokenizer

from tokenq.cli.main import main
from tokenq.credit.ranking import ResponseSums
from tokenq.data.film_snippets import SnippetTable
from tokenq.errors import UserError
from tokenq.reproduce.credit_uses import film as film_module
from tokenq.reproduce.credit_uses.cleaning import (
    MEMORISED,
    POLICY,
    REFERENCE,
    SAME,
    Cleaned,
    Cleaning,
    calibration,
    cleaned,
)
from tokenq.reproduce.credit_uses.film import (
    HeldOutPair,
    exchanged,
    held_out_pairs,
    pair_rows,
    read_by_reference,
    relabelled,
)
from tokenq.reproduce.credit_uses.locating import PLAIN, SIGNALS, SURPRISAL, judged, locating
from tokenq.reproduce.credit_uses.ranking import BEST, LONGER, RANDOM, ranking, rating_of_first
from tokenq.reproduce.credit_uses.settings import QUICK
from tokenq.reproduce.localisation import tasks
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import Task, TestText, TrainingPair

PAIRS = [HeldOutPair(f"good {n}", f"bad {n}", 2.0, -1.0 - n) for n in range(40)]


def side(text: str, reward: float, ref_logp: float) -> dict[str, Any]:
    """A response of one word and its end, whose reward is all on the word."""
    return {
        "response": text,
        "reward": reward,
        "token_ids": [0, 1],
        "offsets": [[0, len(text)], [len(text), len(text)]],
        "logps": [reward + ref_logp, 0.0],
        "ref_logps": [ref_logp, 0.0],
        "rewards": [reward, 0.0],
    }


def records(margins: list[float]) -> list[dict[str, Any]]:
    """Of PAIRS; the reference finds the rejected answer the likelier one."""
    return [
        {
            "row": number,
            "responses": {
                "chosen": side(pair.chosen, margin, -3.0),
                "rejected": side(pair.rejected, 0.0, -2.0),
            },
            "margin": margin,
        }
        for number, (pair, margin) in enumerate(zip(PAIRS, margins, strict=True))
    ]


def test_first_by_each_signal() -> None:
    sums = [
        ResponseSums(reward=1.0, logp=-9.0, ref_logp=-10.0, tokens=4),
        ResponseSums(reward=0.9, logp=-3.0, ref_logp=-3.9, tokens=2),
        ResponseSums(reward=-2.0, logp=-7.0, ref_logp=-1.0, tokens=9),
    ]
    ratings = [1.0, 2.0, 3.0]
    expected = {
        "implicit_reward": 1.0,
        "implicit_reward_per_token": 2.0,
        "policy_logp": 2.0,
        "reference_logp": 3.0,
        "shorter": 2.0,
        LONGER: 3.0,
        RANDOM: 2.0,
        BEST: 3.0,
    }
    for signal, rating in expected.items():
        assert rating_of_first(signal, sums, ratings) == rating, signal


def test_a_reward_that_knows_the_ratings_is_the_best() -> None:
    def rated(sign: float) -> list[dict[str, Any]]:
        return [
            {
                "responses": {
                    "chosen": side(pair.chosen, sign * pair.chosen_rating, -3.0),
                    "rejected": side(pair.rejected, sign * pair.rejected_rating, -2.0),
                }
            }
            for pair in PAIRS
        ]

    right, wrong = rated(1.0), rated(-1.0)
    found = ranking(PAIRS, [right, right], [2, 4], 50)
    assert found["2"]["groups"] == 40
    best = found["4"]["rating"][BEST]
    assert found["4"]["rating"]["implicit_reward"]["value"] == best["value"]
    assert found["4"]["reward less"][BEST]["high"] == 0
    assert found["4"]["reward less"][RANDOM]["low"] > 0
    assert ranking(PAIRS, [wrong], [4], 50)["4"]["reward less"][RANDOM]["high"] < 0


def test_exchanged_labels_are_a_share_that_the_seed_draws() -> None:
    drawn = exchanged(40, 0.25, 0)
    assert sum(drawn) == 10
    assert drawn == exchanged(40, 0.25, 0) != exchanged(40, 0.25, 1)
    assert not any(exchanged(40, 0.0, 0))


def test_an_exchanged_label_turns_row_and_record() -> None:
    rows = pair_rows(PAIRS[:2], [False, True])
    texts = [row["chosen"][-1]["content"] for row in rows.dataset]
    assert texts == ["good 0", "bad 1"]
    record = records([0.5] * 40)[1]
    turned = relabelled(record, True)
    assert turned["responses"]["chosen"]["response"] == "bad 1"
    assert turned["margin"] == -0.5
    assert relabelled(turned, True) == record
    assert read_by_reference(record)["margin"] == -1.0


def test_a_judge_that_is_never_wrong_finds_all_exchanged_labels() -> None:
    wrong = exchanged(40, 0.25, 0)
    margins = [3.0 + n / 40 for n in range(40)]
    found = cleaned(PAIRS, records(margins), wrong)
    assert found.disputed == wrong
    assert found.margins[0] == (-3.0 if wrong[0] else 3.0)
    assert found.low <= 0.25 <= found.high
    assert min(p for p, w in zip(found.probability, wrong, strict=True) if w) > 0.5
    known = Cleaning(40, 50)
    measures = known.measures([found])
    values = [measures[name]["value"] for name in ("auroc", "precision", "recall", "false alarm")]
    assert values == [1.0, 1.0, 1.0, 0.0]
    assert not found.warned
    by_reference = [read_by_reference(each) for each in records(margins)]
    judges = {
        POLICY: [found],
        REFERENCE: [cleaned(PAIRS, by_reference, wrong)],
        SAME: [cleaned(PAIRS[:20], records(margins)[:20], wrong[:20])],
        MEMORISED: [cleaned(PAIRS[:20], records([-3.0] * 40)[:20], wrong[:20])],
    }
    differences = known.differences(judges)
    assert [each["value"]["value"] for each in differences.values()] == [0.5, 1.0, 1.0]


def test_a_judge_that_has_memorised_disputes_nothing() -> None:
    wrong = exchanged(40, 0.25, 0)
    margins = [-2.0 if turned else 2.0 for turned in wrong]
    found = cleaned(PAIRS, records(margins), wrong)
    assert not any(found.disputed)
    assert found.warned
    measures = Cleaning(40, 50).measures([found])
    assert measures["recall"]["value"] == 0
    assert "precision" not in measures


def test_calibration_compares_what_is_said_with_what_is_so() -> None:
    said = [0.05, 0.05, 0.4, 0.4, 0.9]
    wrong = [False, False, True, False, True]
    found = calibration([Cleaned(wrong, [0.0] * 5, [False] * 5, said, 0.3, 0.1, 0.5, False)])
    assert [(each["labels"], each["wrong"]) for each in found["bins"]] == [(2, 0), (2, 0.5), (1, 1)]
    assert found["error"] == pytest.approx((2 * 0.05 + 2 * 0.1 + 0.1) / 5)
    assert found["brier"] == pytest.approx((2 * 0.05**2 + 0.6**2 + 0.4**2 + 0.1**2) / 5)
    assert found["brier of the share"] == pytest.approx(0.4 * 0.6)


def item(number: int, kind: str, blames: list[float], truth: list[int]) -> dict[str, Any]:
    """A text of three words; the end token is not searched."""
    text = "aa bb cc"
    offsets = [[0, 2], [2, 5], [5, 8], [8, 8]]
    signals = {name: [*blames, 9.0] for _, name in SIGNALS.values()}
    return {
        "id": f"{number}:{kind}",
        "group": f"package {number}",
        "kind": kind,
        "text": text,
        "offsets": offsets,
        "truth": [*truth, 0],
        "signals": signals,
    }


@pytest.fixture
def items() -> list[dict[str, Any]]:
    """Wrong words are blamed more than anything else; the `consistent` edits are as well."""
    found = []
    for number in range(40):
        calm = [0.1 + number / 1000, 0.2, 0.1]
        found += [
            item(number, "truthful", calm, [0, 0, 0]),
            item(number, "paraphrase", calm, [0, 0, 0]),
            item(number, "consistent", [0.1, 5.0, 0.1], [0, 0, 0]),
            item(number, "number", [0.1, 5.0, 0.1], [0, 1, 0]),
        ]
    return found


def test_half_of_the_packages_calibrate_and_the_others_are_judged(
    items: list[dict[str, Any]],
) -> None:
    found = judged(items, "plain", [0.1, 0.2], 0)
    groups = {each.group for each in found[0.1]}
    assert len(groups) == 20
    assert groups != {each.group for each in judged(items, "plain", [0.1], 1)[0.1]}
    assert all(len(each.flags) == 3 for each in found[0.1])
    with pytest.raises(UserError, match="too few for a rate"):
        judged(items[:40], "plain", [0.01], 0)


def test_spans_of_a_signal_that_tells_errors_but_not_harmless_edits(
    items: list[dict[str, Any]],
) -> None:
    table = {"items": items, "training": {}}
    tables = {arm: [table, table] for arm, _ in SIGNALS.values()}
    found = locating(tables, [0.1], 3, 50)
    assert found["summaries"] == {
        "truthful": 40,
        "paraphrase": 40,
        "consistent": 40,
        "wrong": 40,
    }
    measures = found["rates"]["0.1"][PLAIN]["measures"]
    assert measures["flagged truthful"]["value"] <= 0.2
    assert measures["flagged consistent"]["value"] == 1
    assert [measures[name]["value"] for name in ("flagged", "touched", "F1")] == [1, 1, 1]
    assert found["rates"]["0.1"][PLAIN]["less"][SURPRISAL]["touched"]["value"] == 0


def packages(options: object) -> Task:
    """Made-up packages, each with a wrong summary and three true ones."""
    words = ["fast", "small", "free", "safe"]

    def text(number: int, kind: str, wording: str, wrong: bool) -> TestText:
        name = f"package {number}"
        at = wording.index("tool")
        prompt = [{"role": "user", "content": f"Describe {name}."}]
        errors = ((at, at + 4),) if wrong else ()
        return TestText(f"{name}:{kind}", name, kind, prompt, wording, errors)

    def tests() -> list[TestText]:
        found = []
        for number in range(24):
            word = words[number % 4]
            found += [
                text(number, "antonym", f"a {word} tool {number}", True),
                text(number, "truthful", f"{word} tool {number}", False),
                text(number, "paraphrase", f"tool, {word}, {number}", False),
                text(number, "consistent", f"the {word} tool {number}", False),
            ]
        return found

    pair = TrainingPair([{"role": "user", "content": "Describe."}], "fast tool", "slow tool")
    return Task(lambda seed, variant: [pair] * 8, tests)


def test_a_run_from_end_to_end_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, film_snippets: SnippetTable
) -> None:
    monkeypatch.setitem(tasks.TASKS, "planted", packages)
    model, out = save_model(tmp_path / "tiny", tiny_llama(layers=3)), tmp_path / "out"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    arguments = ["reproduce", "uses", "--quick", "--model", str(model), "--out", str(out)]
    assert main(arguments) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert set(results["rank"]) == {"2", "4"}
    assert set(results["clean"]) == {"0", "25"}
    assert set(results["clean"]["25"]["judges"]) == {POLICY, REFERENCE, SAME, MEMORISED}
    assert results["clean"]["25"]["judges"][MEMORISED]["pairs"] == QUICK.film.memorised
    assert set(results["locate"]["rates"]["0.2"]) == set(SIGNALS)
    assert len(results["rank"]["2"]["rating"]["implicit_reward"]["by_seed"]) == 2
    page = (out / "README.md").read_text()
    assert all(f"## {use}" in page for use in ("Rank", "Clean", "Locate"))
    assert "nan" not in page
    monkeypatch.setattr(film_module, "credit_dataset", None)
    monkeypatch.setattr(Bench, "_loaded", None)
    assert main([*arguments, "--credit", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["results"] == results


def test_held_out_pairs_share_no_text(film_snippets: SnippetTable) -> None:
    pairs = held_out_pairs(QUICK.film)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(texts)) == len(texts)
    assert QUICK.film.memorised < len(pairs) <= QUICK.film.film.tests / 2
    assert all(pair.chosen_rating - pair.rejected_rating >= 1 for pair in pairs)
