"""The summary that programs read."""

import json
import math
from pathlib import Path

from histories import made_history, made_logs

from tokenq.monitor.decision import decide
from tokenq.monitor.findings.rules import findings
from tokenq.monitor.measures import MEASURES, measured
from tokenq.monitor.readings import History
from tokenq.monitor.summary import summarise, write_summary

STEPS = (0, 50, 100)


def test_it_holds_verdict_findings_and_every_measure(tmp_path: Path) -> None:
    history = made_history("displacement", steps=STEPS, pairs=8)
    assert history.setup is not None
    written = write_summary(tmp_path, history, ended=True)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found == written
    assert json.loads((tmp_path / "findings.json").read_text()) == found["findings"]
    assert found["ended"] is True
    assert (found["steps"], found["readings"], found["beta"]) == (100, 3, history.setup.beta)
    assert found["verdict"]["verdict"] == decide(history).verdict
    assert [each["name"] for each in found["findings"]] == [x.name for x in findings(history)]
    first, last = (measured(history.setup, history.readings[i]) for i in (0, -1))
    for name, interval in last.items():
        measure = found["measures"][name]
        assert (measure["mean"], measure["low"], measure["high"]) == (
            interval.mean, interval.low, interval.high,
        )  # fmt: skip
        assert measure["unit"] == MEASURES[name].unit
        if name in first:
            assert measure["start"]["mean"] == first[name].mean
    # Drawn in the first and the third probe; start_gap is known before the first step only.
    assert found["measures"]["likelihood/sample_tokens"]["step"] == 100
    assert found["measures"]["likelihood/start_gap"]["step"] == 0


def test_time_in_the_monitor_is_a_share_of_the_training() -> None:
    history = made_history("healthy", steps=STEPS, pairs=4)
    found = summarise(history, ended=False)
    assert math.isclose(found["monitor_seconds"], 0.6)
    assert math.isclose(found["training_seconds"], 50 - 0.6)
    assert math.isclose(found["overhead"], 0.6 / 49.4)
    assert summarise(history, ended=False, monitor_seconds=4.94)["overhead"] == 0.1


def test_of_logs_it_holds_what_they_say_and_null_for_what_is_no_number(tmp_path: Path) -> None:
    logs = made_logs("not_finite")
    found = write_summary(tmp_path, logs, ended=True)
    assert found["readings"] == 0
    assert found["policy"] is None
    finite = [line for line in logs.logs if math.isfinite(line["loss"])]
    assert found["measures"]["loss"]["mean"] == finite[-1]["loss"]
    assert found["measures"]["loss"]["step"] == finite[-1]["step"]
    assert found["measures"]["loss"]["low"] is None


def test_a_run_without_anything_has_a_summary() -> None:
    found = summarise(History(None, [], []), ended=False)
    assert found["measures"] == {}
    assert found["steps"] == 0
