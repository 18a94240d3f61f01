"""The rate of false alarms holds: by enumeration, by simulation, in every bin of lengths."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pairs import TEXTS, random_model, small_pair, small_tokenizer, with_adapter

import tokenq
from tokenq.credit.calibration import (
    BlameSource,
    SpanCalibration,
    blame_source,
    calibrate_spans,
    calibrated_spans,
    text_blames,
)
from tokenq.credit.localisation import Marked, span_f1
from tokenq.errors import UserError
from tokenq.models.fingerprint import weight_hash
from tokenq.models.pair import Pair, load_pair

SOURCE = BlameSource("policy", "reference", "aa", "bb", 0.1)


def calibration(blames: list[list[float]], **options: object) -> SpanCalibration:
    return calibrate_spans(blames, SOURCE, **options)


def smallest_p(found: SpanCalibration, blames: list[float]) -> float:
    return min((p for _, _, _, p in found.segments(blames)), default=1.0)


def random_blames(random: np.random.Generator, lengths: list[int]) -> list[list[float]]:
    """Heavy-tailed blame that wanders a little, so that stretches matter and not only tokens."""
    out = []
    for length in lengths:
        noise = random.standard_t(3, size=length + 1)
        out.append((noise[1:] + 0.5 * noise[:-1]).tolist())
    return out


def test_p_values_worked_out_by_hand() -> None:
    # Blame 1 is granted: the worst stretches of the good responses have 0, 1, 2 and 2 + 3 - 1.
    good = [[0.5, 1.0], [2.0, -4.0, 1.5], [3.0], [3.0, 0.0, 4.0, -9.0]]
    found = calibration(good, tolerance=1.0)
    assert found.largest == ((0.0, 1.0, 2.0, 4.0),)
    assert [found.p_value(excess, 3) for excess in (0.5, 1, 2, 3, 4, 4.1)] == pytest.approx(
        [4 / 5, 4 / 5, 3 / 5, 2 / 5, 2 / 5, 1 / 5]
    )
    spans = found.segments([3.5, -2.0, 6.0, 0.9, 1.2])
    assert [(first, last) for first, last, _, _ in spans] == [(2, 5), (0, 1)]
    assert [p for _, _, _, p in spans] == pytest.approx([1 / 5, 2 / 5])
    assert [excess for _, _, excess, _ in spans] == pytest.approx([5.1, 2.5])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-2, 4).map(float), min_size=1, max_size=6), min_size=3, max_size=12
    ),
    st.floats(0.05, 0.95),
)
def test_whichever_of_the_good_responses_is_judged_by_the_others(
    responses: list[list[float]], rate: float
) -> None:
    # Exchangeability is that each of them is as likely to be the one; ties only make it rarer.
    flagged = 0
    for at, judged in enumerate(responses):
        others = responses[:at] + responses[at + 1 :]
        found = calibration(others, tolerance=1.0)
        flagged += found.flags(smallest_p(found, judged), rate)
    assert flagged <= np.floor(rate * len(responses) + 1e-9)


def test_good_responses_are_flagged_at_the_rate_and_as_unevenly_as_said() -> None:
    random = np.random.default_rng(0)
    rate, count, judged = 0.1, 80, 100
    shares, inside = [], 0
    for seed in range(300):
        lengths = random.integers(5, 40, count + judged).tolist()
        blames = random_blames(random, lengths)
        found = calibration(blames[:count], seed=seed)
        flags = [found.flags(smallest_p(found, each), rate) for each in blames[count:]]
        shares.append(np.mean(flags))
        low, high = found.realised_rate(rate, 20, responses=judged)
        inside += low <= shares[-1] <= high
    # 60 calibrate, so a response is flagged with probability floor(6.1) / 61; standard error 0.003.
    assert np.mean(shares) == pytest.approx(6 / 61, abs=0.009)
    assert inside / 300 >= 0.93  # an interval of 95 %, which counts cannot make exact
    low, high = found.realised_rate(rate, 20, responses=10**6)
    assert found.realised_rate(rate, 20) == pytest.approx((low, high), abs=1e-4)
    assert 0.03 < low < 0.1 < high < 0.19


def test_the_rate_holds_in_every_bin_of_lengths() -> None:
    random = np.random.default_rng(1)
    rate = 0.1
    plain: dict[bool, list[bool]] = {False: [], True: []}
    binned: dict[bool, list[bool]] = {False: [], True: []}
    for seed in range(100):
        lengths = random.choice([*range(5, 12), *range(80, 120)], size=320).tolist()
        blames = random_blames(random, lengths)
        good, judged = blames[:240], blames[240:]
        one, two = (calibration(good, length_bins=bins, seed=seed) for bins in (1, 2))
        [edge] = two.edges
        for each in judged:
            longer = len(each) >= edge
            plain[longer].append(one.flags(smallest_p(one, each), rate))
            binned[longer].append(two.flags(smallest_p(two, each), rate))
    # About 4,000 coins of each kind, in lots that share a calibration.
    assert np.mean([*plain[False], *plain[True]]) == pytest.approx(rate, abs=0.02)
    assert np.mean(plain[True]) > 0.12
    assert np.mean(plain[False]) < 0.08
    for flags in binned.values():
        assert np.mean(flags) == pytest.approx(rate, abs=0.02)


def test_one_bad_token_does_not_hide_another() -> None:
    good = random_blames(np.random.default_rng(2), [20] * 100)
    found = calibration(good)
    calm = [0.0] * 20
    one = [*calm[:5], 30.0, *calm[6:]]
    alone = [*calm[:15], 25.0, *calm[16:]]
    two = [*one[:15], 25.0, *one[16:]]
    assert found.segments(two) == found.segments(one) + found.segments(alone)
    assert [p for _, _, _, p in found.segments(two)] == [1 / 76, 1 / 76]


@pytest.mark.parametrize(
    ("gap", "stretches"), [(0, [(1, 2), (3, 4), (6, 7)]), (1, [(1, 4), (6, 7)]), (2, [(1, 7)])]
)
def test_a_stretch_bridges_so_many_calm_tokens(gap: int, stretches: list[tuple[int, int]]) -> None:
    found = calibration([[1.0]] * 9, tolerance=1.0, gap=gap)
    segments = found.segments([0.9, 6.0, 0.9, 5.0, 0.9, 0.8, 4.0, 0.9])
    assert sorted((first, last) for first, last, _, _ in segments) == stretches


def test_what_the_tolerance_comes_from_does_not_calibrate() -> None:
    good = [[float(at)] for at in range(40)]
    found = calibration(good)
    assert (found.fitted_on, len(found.largest[0])) == (10, 30)
    fitted = 0
    for at in range(40):
        changed = calibration([*good[:at], [9000.0], *good[at + 1 :]])
        moved = changed.tolerance != found.tolerance
        assert moved != (changed.largest[0][-1] > 8000)
        fitted += moved
    assert fitted == 10
    given = calibration(good, tolerance=2.0)
    assert (given.fitted_on, len(given.largest[0])) == (0, 40)
    assert calibration(good, seed=1) != found


def test_the_threshold_is_where_p_values_pass_the_rate() -> None:
    found = calibration(random_blames(np.random.default_rng(4), [15] * 60), tolerance=1.0)
    for rate in (1 / 61, 0.05, 0.1, 0.5, 0.99):
        threshold = found.threshold(rate, 15)
        assert not found.flags(found.p_value(threshold, 15), rate)
        assert found.flags(found.p_value(np.nextafter(threshold, np.inf), 15), rate)


def test_too_few_good_responses_for_a_rate_are_refused() -> None:
    good = [[1.0, 2.0]] * 19
    calibration(good, tolerance=1.0).check_rate(0.05)
    few = calibration(good[1:], tolerance=1.0)
    with pytest.raises(
        UserError, match=r"18 good responses are too few for a rate of 0.05: below 19"
    ):
        few.check_rate(0.05)
    few.check_rate(0.06)
    binned = calibration([[1.0] * (1 + at) for at in range(40)], length_bins=2)
    with pytest.raises(UserError, match=r"good responses of \d+ (to|or more) .*fewer length bins"):
        binned.check_rate(0.05)
    with pytest.raises(UserError, match="between 0 and 1"):
        few.check_rate(1.0)


@pytest.mark.parametrize(
    ("blames", "options", "message"),
    [
        ([], {}, "0 good responses; accepted: more than 1"),
        ([[1.0]], {}, "1 good responses"),
        ([[1.0]] * 9, {"length_bins": 0}, "length_bins is 0"),
        ([[1.0]] * 9, {"gap": -1}, "gap is -1"),
        ([[1.0]] * 9, {"fit_share": 1.0}, "fit_share is 1.0"),
    ],
)
def test_what_cannot_calibrate_is_input_to_mend(
    blames: list[list[float]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        calibration(blames, **options)


def test_flags_of_tokens_are_those_of_the_flagged_stretches() -> None:
    found = calibration([[1.0 + at / 10] for at in range(19)], tolerance=1.0, gap=0)
    blames = [0.0, 2.0, 2.0, 0.5, 2.5, 0.0, 3.0]  # excess 2, 1.5 and 2 against 1.8 at the most
    assert found.token_flags(blames, 0.05) == [0, 1, 1, 0, 0, 0, 1]
    assert found.token_flags(blames, 0.5) == [0, 1, 1, 0, 1, 0, 1]
    items = [Marked(found.token_flags(blames, 0.05), [at in (1, 2, 3) for at in range(7)], "g")]
    assert span_f1(items) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    with pytest.raises(UserError, match="too few"):
        found.token_flags(blames, 0.01)


@pytest.mark.parametrize("bad", [[], [float("nan")], [float("inf")]])
def test_numbers_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        calibration([[1.0]] * 8 + [bad])


def test_saved_and_read_again(tmp_path: Path) -> None:
    found = calibration(random_blames(np.random.default_rng(5), list(range(3, 90))), length_bins=3)
    assert len(found.edges) == 2
    found.save(tmp_path / "calibration.json")
    assert SpanCalibration.load(tmp_path / "calibration.json") == found


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("policy_hash", "cc", "another policy"),
        ("reference_hash", "cc", "another reference"),
        ("beta", 0.2, "another beta"),
        ("estimator", "centred", "another estimator"),
    ],
)
def test_a_calibration_is_refused_for_another_source(field: str, value: object, what: str) -> None:
    found = calibration([[1.0]] * 9)
    found.check_source(replace(SOURCE, policy="moved", reference="elsewhere"))
    with pytest.raises(UserError, match=what):
        found.check_source(replace(SOURCE, **{field: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(format="other"), "is no span calibration"),
        (lambda found: found["source"].pop("beta"), "'source'"),
        (lambda found: found.update(edges=[3, 1]), "'edges'"),
        (lambda found: found.update(edges=None), "'edges'"),
        (lambda found: found.update(largest=[[1.0], [2.0]]), "'largest'"),
        (lambda found: found.update(largest=[[2.0, 1.0]]), "'largest'"),
        (lambda found: found.update(tolerance="0"), "'tolerance'"),
        (lambda found: found.pop("gap"), "'gap'"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    path = tmp_path / "calibration.json"
    plain = json.loads(json.dumps(calibration([[1.0]] * 9).to_dict()))
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=message) as caught:
        SpanCalibration.load(path)
    assert str(path) in str(caught.value)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        SpanCalibration.load(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"format"')
    with pytest.raises(UserError, match="is no JSON"):
        SpanCalibration.load(tmp_path / "torn.json")


def test_spans_are_places_of_the_text_and_leave_the_end_token_out() -> None:
    text = "It costs 250k."
    offsets = [(0, 2), (2, 8), (8, 11), (11, 13), (13, 14), (14, 14)]
    blames = [-1.0, 0.1, 6.0, 3.0, -2.0, 50.0]
    assert text_blames(blames, offsets) == ([0, 1, 2, 3, 4], blames[:5])
    found = calibration([[0.5, 2.0, 0.5]] * 20, tolerance=1.0)
    [span] = calibrated_spans(text, offsets, blames, found)
    assert (span.first, span.last, span.start, span.end) == (2, 4, 8, 13)
    assert span.text == " 250k"
    assert (span.reward, span.excess) == (-9.0, 7.0)
    assert span.p_value == 1 / 21
    # A token outside the text in the middle (of another turn, say) is stepped over.
    inner = [(0, 2), (2, 8), (8, 8), (8, 13), (13, 14), (14, 14)]
    [bridged] = calibrated_spans(text, inner, [-1.0, 4.0, 70.0, 3.0, -2.0, 0.0], found)
    assert (bridged.first, bridged.last, bridged.start, bridged.end) == (1, 4, 2, 13)
    assert bridged.reward == -7.0


def of_pair(pair: Pair, estimator: str = "plain") -> SpanCalibration:
    """Made from words of the small tokenizer's texts as if they were good responses."""
    blames = []
    for text in " ".join(TEXTS[:4]).split():
        found = tokenq.credit(pair, "Review:", f" {text}", beta=0.2)
        estimates = found.estimate(estimator).tolist()
        blames.append(text_blames([-each for each in estimates], found.offsets)[1])
    return calibrate_spans(blames, blame_source(pair, 0.2, estimator), tolerance=0.05, gap=0)


@pytest.mark.parametrize("estimator", ["plain", "centred"])
def test_spans_of_a_credit_carry_p_values(estimator: str) -> None:
    pair = small_pair()
    found = of_pair(pair, estimator)
    reading = tokenq.credit(pair, "Review:", " The plot lands 🎬, uneven and dull.", beta=0.2)
    spans = reading.spans(calibration=found)
    blames = (-reading.estimate(estimator)).tolist()
    assert spans == calibrated_spans(reading.response, reading.offsets, blames, found)
    assert spans
    assert all(reading.response[span.start : span.end] == span.text for span in spans)
    assert len({span.p_value for span in spans}) > 1
    least = spans[0].p_value
    flagged = reading.spans(calibration=found, rate=least)
    assert flagged == [span for span in spans if span.p_value == least]
    assert reading.spans(calibration=found, limit=1) == spans[:1]


def test_spans_are_refused_for_other_weights_than_were_calibrated() -> None:
    pair = small_pair()
    found = of_pair(pair)
    reading = tokenq.credit(pair, "Review:", " A warm film.", beta=0.2)
    reading.spans(calibration=found)
    with pytest.raises(UserError, match="another beta"):
        tokenq.credit(pair, "Review:", " A film.", beta=0.1).spans(calibration=found)
    with pytest.raises(UserError, match=r"too few for a rate of 0\.001"):
        reading.spans(calibration=found, rate=0.001)
    with pytest.raises(ValueError, match="needs a calibration"):
        reading.spans(rate=0.1)
    with pytest.raises(ValueError, match="a calibration is of blame"):
        reading.spans("liked", calibration=found)
    with pytest.raises(ValueError, match="own tolerance"):
        reading.spans(calibration=found, tolerance=0.1)
    with torch.no_grad():
        next(pair.policy.parameters()).mul_(1.01)
    with pytest.raises(UserError, match="another policy"):
        reading.spans(calibration=found)


def test_adapter_on_and_off_are_two_models() -> None:
    tokenizer = small_tokenizer()
    pair = load_pair(with_adapter(random_model("llama", len(tokenizer), 1)), tokenizer=tokenizer)
    source = blame_source(pair, 0.1)
    assert source.policy_hash != source.reference_hash
    assert blame_source(pair, 0.1) == source
    with torch.no_grad():
        for name, each in pair.policy.named_parameters():
            if "lora_B" in name:
                each.mul_(2)
    trained = blame_source(pair, 0.1)
    assert trained.policy_hash != source.policy_hash
    assert trained.reference_hash == source.reference_hash


def test_converted_weights_are_hashed_again() -> None:
    pair = small_pair()
    before = blame_source(pair, 0.1)
    pair.policy.to(torch.bfloat16)
    after = blame_source(pair, 0.1)
    assert after.policy_hash == weight_hash(pair.policy) != before.policy_hash
    assert after.reference_hash == before.reference_hash
