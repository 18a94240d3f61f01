"""`tokenq locate` from the command line to its files."""

import json
from pathlib import Path

import pytest

import tokenq
from tokenq.cli.main import main
from tokenq.credit.calibration import SpanCalibration

WORDS = (
    "a", "warm", "funny", "film", "that", "earns", "tears", "the", "plot", "is", "dull", "mess",
    "of", "jokes", "land", "with", "thud",
)  # fmt: skip
GOOD = [
    {"prompt": "Review:", "completion": f" The {one} {two} and {one}."}
    for one, two in zip(WORDS, (*WORDS[1:], WORDS[0]), strict=True)
] * 2
PAIRS = [
    {"prompt": f"Review {i}:", "chosen": " A warm, funny film 🎬.", "rejected": f" {i} dull mess."}
    for i in range(5)
]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "DATA": write(tmp_path / "pairs.jsonl", PAIRS),
        "GOOD": write(tmp_path / "good.jsonl", GOOD),
    }


def test_spans_of_a_data_set_are_those_of_its_credits(
    models: list[str], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["locate", *models, "--data", files["DATA"], "--out", str(out), "--beta", "0.3"]
    command += ["--rate", "0.4", "--gap", "0", "--candidates", "2"]
    assert main([*command, "--good", files["GOOD"], "--show", "1"]) == 0
    printed = capsys.readouterr().out
    found = lines(out / "spans.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    calibration = SpanCalibration.load(out / "calibration.json")
    assert (calibration.fitted_on, len(calibration.largest[0])) == (8, 26)

    pair = tokenq.load_pair(models[1], models[3])
    flagged: dict[str, int] = {"chosen": 0, "rejected": 0}
    expected = []
    for at, row in enumerate(PAIRS):
        for name in flagged:
            reading = tokenq.credit(pair, row["prompt"], row[name], beta=0.3)
            spans = reading.spans(calibration=calibration)
            bad = reading.spans(calibration=calibration, rate=0.4)
            assert bad == spans[: len(bad)]
            flagged[name] += bool(bad)
            expected += [(at, name, span, span in bad) for span in spans[: max(len(bad), 2)]]
    assert 0 < sum(flagged.values()) < 10  # or the models of this test show nothing
    assert len(found) == len(expected)
    for line, (row, name, span, is_flagged) in zip(found, expected, strict=True):
        assert (line["row"], line["response"]) == (row, name)
        assert line["text"] == span.text.strip() == PAIRS[row][name][line["start"] : line["end"]]
        assert line["tokens"] == [span.first, span.last]
        assert line["blame"] == pytest.approx(-span.reward, abs=1e-4)
        assert line["p_value"] == pytest.approx(span.p_value, abs=1e-6)
        assert line["flagged"] == is_flagged
    assert summary["flagged_responses"] == flagged
    assert summary["responses"] == {"chosen": 5, "rejected": 5}
    assert summary["flagged_spans"] == sum(line["flagged"] for line in found)
    assert summary["rate"] == 0.4
    [known] = summary["calibration"]["bins"]
    assert known["good_responses"] == 26
    assert known["threshold"] == calibration.threshold(0.4, 9)
    low, high = known["realised_rate"]
    assert low < 0.4 < high

    assert f"chosen: {flagged['chosen']} of 5 responses flagged" in printed
    assert printed.count("row ") == 1
    page = (out / "index.html").read_text()
    assert '"spans":[{' in page
    assert not list(out.glob("**/*.part"))

    # Nothing is scored again; the calibration of a run serves another, with no good rows.
    before = [(out / name).read_text() for name in ("spans.jsonl", "summary.json")]
    assert main([*command, "--good", files["GOOD"]]) == 0
    assert [(out / name).read_text() for name in ("spans.jsonl", "summary.json")] == before
    again = ["locate", *models, "--data", files["DATA"], "--out", str(tmp_path / "again")]
    again += ["--beta", "0.3", "--rate", "0.4", "--candidates", "2"]
    assert main([*again, "--calibration", str(out / "calibration.json")]) == 0
    assert (tmp_path / "again/spans.jsonl").read_text() == before[0]
    assert not (tmp_path / "again/good").exists()


def test_scored_data_sets_need_no_model(
    models: list[str], files: dict[str, str], tmp_path: Path
) -> None:
    for name, data in (("data", "DATA"), ("good", "GOOD")):
        command = ["credit", *models, "--data", files[data], "--out", str(tmp_path / name)]
        assert main([*command, "--show", "0", "--alternatives", "0"]) == 0
    out = tmp_path / "out"
    fit = ["--rate", "0.3", "--tolerance", "0.02"]
    scored = ["--credit", str(tmp_path / "data"), "--good_credit", str(tmp_path / "good")]
    assert main(["locate", "--data", files["DATA"], "--out", str(out), *scored, *fit]) == 0
    direct = tmp_path / "direct"
    read = [*models, "--good", files["GOOD"]]
    assert main(["locate", "--data", files["DATA"], "--out", str(direct), *read, *fit]) == 0
    assert (out / "spans.jsonl").read_text() == (direct / "spans.jsonl").read_text()
    calibration = SpanCalibration.load(out / "calibration.json")
    assert (calibration.fitted_on, len(calibration.largest[0])) == (0, 34)
    assert calibration.largest == SpanCalibration.load(direct / "calibration.json").largest


def test_another_estimator_is_searched_and_stays_with_its_calibration(
    models: list[str], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["locate", *models, "--data", files["DATA"], "--rate", "0.3"]
    centred = ["--good", files["GOOD"], "--estimator", "centred", "--out", str(out)]
    assert main([*command, *centred]) == 0
    calibration = SpanCalibration.load(out / "calibration.json")
    assert calibration.source.estimator == "centred"
    pair = tokenq.load_pair(models[1], models[3])
    reading = tokenq.credit(pair, PAIRS[0]["prompt"], PAIRS[0]["rejected"])
    worst = reading.spans(calibration=calibration, limit=1)[0]
    [line] = [
        each
        for each in lines(out / "spans.jsonl")
        if (each["row"], each["response"], each["tokens"][0]) == (0, "rejected", worst.first)
    ]
    assert line["excess"] == pytest.approx(worst.excess, abs=1e-4)
    again = ["--calibration", str(out / "calibration.json"), "--out", str(tmp_path / "again")]
    assert main([*command, *again]) == 0
    assert (tmp_path / "again/spans.jsonl").read_text() == (out / "spans.jsonl").read_text()

    plain = tmp_path / "scored"
    assert main(["credit", *models, "--data", files["DATA"], "--out", str(plain)]) == 0
    held = ["--credit", str(plain), "--calibration", str(out / "calibration.json")]
    capsys.readouterr()
    assert main(["locate", "--data", files["DATA"], *held, "--out", str(tmp_path / "o")]) == 2
    assert "hold no estimator 'centred'; accepted: plain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([{"prompt": "R:", "chosen": " good", "rejected": " bad"}] * 30, 30),
        ([{"prompt": "R:", "completion": " x", "label": at % 3 > 0} for at in range(45)], 30),
        ([{"prompt": "R:", "completions": [" good", " bad", " bad"]}] * 30, 30),
    ],
)
def test_only_the_better_responses_of_the_good_set_calibrate(
    rows: list[dict], count: int, models: list[str], files: dict[str, str], tmp_path: Path
) -> None:
    good = write(tmp_path / "better.jsonl", rows)
    out = tmp_path / "out"
    command = ["locate", *models, "--data", files["DATA"], "--out", str(out), "--rate", "0.3"]
    assert main([*command, "--good", good, "--tolerance", "0.0"]) == 0
    [largest] = SpanCalibration.load(out / "calibration.json").largest
    assert len(largest) == count
    scored = {name for each in lines(out / "good/credit.jsonl") for name in each["responses"]}
    assert scored in ({"completion"}, {"1", "2", "3"})


def test_a_calibration_of_other_models_is_refused_before_scoring(
    models: list[str],
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["locate", "--data", files["DATA"], "--rate", "0.3"]
    assert main([*command, *models, "--good", files["GOOD"], "--out", str(out)]) == 0
    swapped = ["--policy", models[3], "--reference", models[1]]
    given = ["--calibration", str(out / "calibration.json"), "--out", str(tmp_path / "o")]
    assert main([*command, *swapped, *given]) == 2
    assert "the calibration was made with another policy" in capsys.readouterr().err
    assert main([*command, *models, *given, "--beta", "0.2"]) == 2
    assert "made with another beta" in capsys.readouterr().err
    assert not (tmp_path / "o/credit.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "0 of --good, --good_credit, --calibration are given"),
        (["--good", "GOOD", "--calibration", "c"], "2 of --good, --good_credit, --calibration"),
        (["--good", "GOOD", "--rate", "0"], "rate is 0.0; accepted: between 0 and 1"),
        (["--good", "GOOD", "--rate", "0.01"], "34 good responses are too few for a rate of 0.01"),
        (["--good", "GOOD", "--rate", "0.1", "--length_bins", "4"], "36 are needed"),
        (["--good", "GOOD", "--estimator", "nonsense"], "estimator is 'nonsense'; accepted: plain"),
        (["--calibration", "c", "--estimator", "plain"], "--estimator is fixed in --calibration"),
        (["--good", "GOOD", "--gap", "-1"], "gap is -1"),
        (["--good", "GOOD", "--tolerance", "-1"], "tolerance is -1.0"),
        (["--good", "GOOD", "--candidates", "-1"], "candidates is -1"),
        (["--good", "GOOD", "--show", "-1"], "--show is -1"),
        (["--good", "GOOD", "--credit", "c"], "--good has yet to be scored"),
        (["--good", "none.jsonl"], "none.jsonl"),
        (["--calibration", "none.json"], "none.json: cannot be read"),
        (["--calibration", "DATA"], "is no"),
        (["--calibration", "c", "--gap", "2"], "--gap is fixed in --calibration"),
        (["--good_credit", "none"], "none: no credit.jsonl"),
    ],
)
def test_input_to_mend_is_found_before_a_model_is_loaded(
    options: list[str],
    message: str,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def load(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("tokenq.cli.locate.load_models", load)
    monkeypatch.setattr("tokenq.cli.locate.check_reference", lambda arguments: None)
    models = [] if "--credit" in options else ["--policy", "p", "--reference", "r"]
    given = [files.get(option, option) for option in options]
    assert main(["locate", *models, "--data", files["DATA"], "--out", "o", *given]) == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "o/spans.jsonl").exists()
