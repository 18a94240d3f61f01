"""Measures of signals: hand-made tables whose answers are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tokenq.credit.aggregation import word_spans
from tokenq.reproduce.localisation import analysis
from tokenq.reproduce.localisation.measures import (
    Localisation,
    Signal,
    Words,
    averaged,
    changed_words,
    counterparts,
    edits_of,
    half,
    marked,
    signals_of,
)
from tokenq.reproduce.localisation.page import page
from tokenq.reproduce.localisation.reading import headline_rows

TRUE = "convert TIFF files to PDF"
WRONG = "convert TIFF files to PNG"
HARMLESS = "transform TIFF files to PDF"
REWORDED = "lets you convert TIFF files to PDF"


def item(
    number: int, kind: str, text: str, signals: Mapping[str, Sequence[float]], wrong: str = ""
) -> dict[str, Any]:
    """A text whose tokens are its words and an end token, which has the last value."""
    spans = [*word_spans(text), (len(text), len(text))]
    truth = [int(bool(wrong) and text[start:end] == wrong) for start, end in spans]
    return {
        "id": f"{number}:{kind}",
        "group": f"group {number}",
        "kind": kind,
        "text": text,
        "offsets": [list(span) for span in spans],
        "truth": truth,
        "words": [],
        "signals": {name: list(values) for name, values in signals.items()},
    }


def planted_items(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """`knows` is high on the wrong word only, `edits` on every edit, `noise` on anything."""
    draw = np.random.default_rng(seed)
    items = []
    for number in range(count):

        def signals(length: int, wrong_at: int | None, edit_at: int | None) -> dict[str, Any]:
            knows, edits = draw.normal(0, 0.1, length + 1), draw.normal(0, 0.1, length + 1)
            if wrong_at is not None:
                knows[wrong_at] += 5
            for place in (wrong_at, edit_at):
                if place is not None:
                    edits[place] += 5
            noise = draw.normal(0, 1, length + 1)
            # The end token would win everywhere if it were counted.
            knows[-1] = edits[-1] = noise[-1] = 99.0
            return {"plain": knows, "standardised": edits, "surprisal": noise}

        items += [
            item(number, "entity", WRONG, signals(5, 4, None), "PNG"),
            item(number, "truthful", TRUE, signals(5, None, None)),
            item(number, "paraphrase", REWORDED, signals(7, None, None)),
            item(number, "consistent", HARMLESS, signals(5, None, 0)),
        ]
    return items


def table(items: list[dict[str, Any]], words: Sequence[str] = ()) -> dict[str, Any]:
    return {"items": items, "training": {"pairs": 3, "words": list(words)}}


@pytest.fixture(scope="module")
def known() -> tuple[Localisation, dict[str, Signal]]:
    tables = [table(planted_items(seed=seed)) for seed in range(2)]
    signals = {each.name: each for each in signals_of({"dpo": tables})}
    return Localisation(tables[0]["items"], resamples=50), signals


def test_a_signal_that_knows_is_perfect_and_its_end_token_is_not_counted(known: Any) -> None:
    localisation, signals = known
    found = localisation.measures(signals["plain"])
    for name in ("AUROC", "AUROC within", "AP", "AP within", "top-1"):
        assert found[name].value == 1.0, name
    # Thresholds are those of the other half.
    assert found["F1"].value > 0.9
    assert found["IoU"].value > 0.9
    assert found["detected at 10 %"].value == 1.0
    assert found["false positives, consistent"].value <= 0.3
    assert found["error told from consistent"].value == 1.0
    assert found["error told from consistent edit, at the edit"].value == 1.0


def test_a_signal_that_knows_edits_finds_errors_and_blames_harmless_edits(known: Any) -> None:
    localisation, signals = known
    found = localisation.measures(signals["standardised"])
    assert found["AUROC within"].value == 1.0
    assert found["false positives, consistent"].value == 1.0
    assert found["false positives, truthful"].value <= 0.3
    assert abs(found["error told from consistent edit, at the edit"].value - 0.5) < 0.1


def test_noise_is_at_chance_with_an_interval_that_says_so(known: Any) -> None:
    localisation, signals = known
    found = localisation.measures(signals["surprisal"])["AUROC within"]
    assert found.low < 0.5 < found.high
    assert len(found.by_seed) == 2


def test_by_kind_and_on_half_see_parts_of_the_texts(known: Any) -> None:
    localisation, signals = known
    assert list(localisation.by_kind(signals["plain"])) == ["entity"]
    halves = {half(each) for each in signals["plain"].items()[0]}
    assert halves == {0, 1}


def test_accuracy_compares_whole_texts_with_their_own_counterpart() -> None:
    items = [
        item(0, "entity", WRONG, {"s": [0, 0, 0, 0, 1, 0]}, "PNG"),
        item(0, "truthful", TRUE, {"s": [0, 0, 0, 0, 0, 0]}),
        item(1, "entity", WRONG, {"s": [0, 0, 0, 0, 0, 0]}, "PNG"),
        item(1, "truthful", TRUE, {"s": [0, 0, 0, 0, 0, 1]}),
        item(2, "entity", WRONG, {"s": [0, 0, 0, 0, 1, 0]}, "PNG"),
        item(2, "truthful", TRUE, {"s": [0, 0, 0, 0, 0, 1]}),
        item(3, "entity", WRONG, {"s": [1, 0, 0, 0, 0, 0]}, "PNG"),
    ]
    localisation = Localisation(items, resamples=20)
    found = localisation.accuracies(Signal("dpo", "s", [table(items)]))
    # Right, wrong (its end token is worse), a tie; the last has no true text.
    assert found["against truthful"].value == pytest.approx((1 + 0 + 0.5) / 3)


def test_counterparts_are_the_likest_text_of_the_same_group() -> None:
    wrong = [item(0, "entity", WRONG, {})]
    near, far = item(0, "truthful", TRUE, {}), item(0, "truthful", "play music", {})
    far["id"] = "0b:truthful"
    other = item(1, "truthful", WRONG, {})
    assert counterparts(wrong, [far, other, near]) == {"0:entity": "0:truthful"}
    assert counterparts(wrong, [other]) == {}


def test_changed_words_and_edits() -> None:
    assert [HARMLESS[s:e] for s, e in changed_words(TRUE, HARMLESS)] == ["transform"]
    assert [REWORDED[s:e] for s, e in changed_words(TRUE, REWORDED)] == ["lets", "you"]
    items = [item(0, "truthful", TRUE, {}), item(0, "consistent", HARMLESS, {})]
    assert edits_of(items)["0:consistent"].tolist() == [True, False, False, False, False, False]


def test_averaged_is_the_mean_over_seeds() -> None:
    first, second = (table([item(0, "truthful", TRUE, {"s": [v] * 6})]) for v in (1.0, 4.0))
    assert averaged([first, second])["items"][0]["signals"]["s"] == [2.5] * 6


def test_marked_leaves_out_what_cannot_be_seen() -> None:
    one = item(0, "entity", WRONG, {"s": range(6)}, "PNG")
    assert marked(one, "s").scores.tolist() == [0, 1, 2, 3, 4]
    assert marked(one, "s").truth.tolist() == [False] * 4 + [True]


# ---- words ----

VALENCE = {"great": 3.0, "good": 2.0, "plain": 0.5, "weak": -1.5, "awful": -3.0}


def film_items(noise: float) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    items = []
    for number in range(30):
        words = draw.permutation(list(VALENCE))[:3]
        text = " ".join(words)
        values = [-VALENCE[word] + noise * draw.normal() for word in words] + [50.0]
        found = item(number, "review", text, {"plain": values, "surprisal": [0.0] * 4})
        found["truth"] = None
        found["words"] = [[s, e, VALENCE[text[s:e]]] for s, e in word_spans(text)]
        items.append(found)
    return items


def test_words_agree_with_their_valence_and_unseen_ones_are_counted_alone() -> None:
    items = film_items(0.0)
    known = Words(items, resamples=20)
    tables = [table(items, ["great", "awful"])]
    found = known.measures(Signal("dpo", "plain", tables))
    assert found["Spearman"].value == pytest.approx(1.0)
    assert found["AUROC"].value == 1.0
    assert found["Spearman, unseen words"].value == pytest.approx(1.0)
    assert found["AUROC"].undefined == 0
    turned = Signal("dpo", "other", tables)
    for each in items:
        each["signals"]["other"] = [-value for value in each["signals"]["plain"]]
    assert known.measures(turned)["Spearman"].value == pytest.approx(-1.0)


def test_agreement_of_words_is_the_rank_correlation_of_their_means() -> None:
    items = film_items(2.0)
    found = Words(items, resamples=20).measures(Signal("dpo", "plain", [table(items)]))
    values: dict[str, list[float]] = {}
    for each in items:
        for word, value in zip(each["text"].split(), each["signals"]["plain"], strict=False):
            values.setdefault(word, []).append(value)
    means = [-np.mean(values[word]) for word in VALENCE]
    expected = stats.spearmanr(means, list(VALENCE.values())).statistic
    assert found["Spearman"].value == pytest.approx(expected)


def test_a_flat_signal_tells_nothing_of_words() -> None:
    items = film_items(0.0)
    found = Words(items, resamples=20).measures(Signal("dpo", "surprisal", [table(items, ["x"])]))
    assert np.isnan(found["Spearman"].value)
    assert found["AUROC"].value == 0.5


# ---- the whole ----


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    def tables(items: Any) -> dict[str, list[dict[str, Any]]]:
        return {
            "start": [table(items(9))] * 2,
            "dpo": [table(items(seed), ["great"]) for seed in (0, 1)],
        }

    return {
        "settings": {"film": {"model": "tiny", "layers": 1}},
        "seeds": [0, 1],
        "resamples": 20,
        "missing": {"qa": "no data"},
        "tasks": {
            "film": analysis.words(tables(lambda seed: film_items(seed + 0.1)), 20),
            "planted": analysis.localisation(tables(lambda seed: planted_items(seed=seed)), 20),
        },
    }


def test_less_than_plain_is_on_the_same_resamples(results: dict[str, Any]) -> None:
    arms = results["tasks"]["planted"]["arms"]
    less = arms["dpo"]["surprisal"]["less plain dpo"]["AUROC within"]
    own, plain = (arms["dpo"][name]["measures"]["AUROC within"] for name in ("surprisal", "plain"))
    assert less["value"] == pytest.approx(own["value"] - plain["value"])
    assert less["high"] < 0
    assert "less plain dpo" not in arms["dpo"]["plain"]


def test_the_chosen_estimator_is_judged_on_the_other_half(results: dict[str, Any]) -> None:
    chosen = results["tasks"]["planted"]["chosen"]
    assert [each["arm"] for each in chosen]
    for each in chosen:
        assert each["less plain dpo"]["value"] == pytest.approx(0.0, abs=1e-9)


def test_the_page_says_what_holds(results: dict[str, Any]) -> None:
    text = page(results)
    assert "| expected | film, Spearman | planted, AUROC within | planted, AP within |" in text
    [line] = [each for each in text.splitlines() if "tells more than chance" in each]
    assert line.split(" | ")[2] == "+ +0.500 [+0.500, +0.500]"
    assert "Left out for want of data: qa." in text
    rows = headline_rows(results["tasks"]["planted"], "AUROC within")
    values = [row.entry["measures"]["AUROC within"]["value"] for row in rows]
    assert values == sorted(values, reverse=True)


def test_a_word_that_any_seed_has_seen_is_not_unseen_to_their_mean() -> None:
    tables = [
        {"items": [], "training": {"pairs": 1, "words": words}}
        for words in (["dull", "warm"], ["dull", "funny"])
    ]
    assert averaged(tables)["training"] == {"pairs": 1, "words": ["dull", "funny", "warm"]}
