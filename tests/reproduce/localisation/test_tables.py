"""Tables of a whole run on a tiny model: their form, and that a second run finds them done."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tokenq.errors import UserError
from tokenq.objectives import OBJECTIVES
from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.experiment import Run
from tokenq.reproduce.localisation import tasks
from tokenq.reproduce.localisation.arms import ARMS, chosen_arms
from tokenq.reproduce.localisation.bench import Bench
from tokenq.reproduce.localisation.material import Task
from tokenq.reproduce.localisation.settings import PlantedSettings, Settings
from tokenq.reproduce.localisation.tables import START, tables

NAMES = ["dpo", "dpo after sft", "q_rm", "tdpo", "reward model"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "out", argparse.Namespace(), Console(quiet=True))


@pytest.fixture
def settings(
    model_folder: Path, made_up: Callable[[object], Task], monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setitem(tasks.TASKS, "planted", made_up)
    options = PlantedSettings(recipe=Recipe(1, 0.05, 4), gradients=2)
    return Settings(str(model_folder), 2, planted=options)


def test_a_run_and_the_same_again(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"planted": chosen_arms("film", NAMES)}
    assert {arm.name for arm in arms["planted"]} == set(NAMES)
    found = tables(run, settings, ["planted"], arms, [0, 1])
    assert set(found) == {("planted", name, seed) for name in (*NAMES, START) for seed in (0, 1)}
    for (_, name, _), table in found.items():
        assert json.loads(json.dumps(table)) == table
        for number, item in enumerate(table["items"]):
            assert len(item["truth"]) == len(item["offsets"])
            assert item["offsets"][-1] == [len(item["text"])] * 2
            wrong = "".join(
                item["text"][start:end]
                for (start, end), truth in zip(item["offsets"], item["truth"], strict=True)
                if truth
            )
            assert wrong.strip() == ("dull" if item["kind"] == "bad" else "")
            for signal, values in item["signals"].items():
                assert len(values) == len(item["offsets"]), signal
            has_gradient = name in (START, "dpo") and number < 2
            assert ("gradient x input" in item["signals"]) == has_gradient
    plain = [found["planted", "dpo", seed]["items"][0]["signals"]["plain"] for seed in (0, 1)]
    assert plain[0] != plain[1]
    training = found["planted", "dpo", 0]["training"]
    assert training["pairs"] == 4
    assert "warm" in training["words"]
    monkeypatch.setattr(Bench, "_loaded", None)
    assert tables(run, settings, ["planted"], arms, [0, 1]) == found


def test_other_settings_are_not_mixed_in(run: Run, settings: Settings) -> None:
    arms = {"planted": chosen_arms("planted", ["dpo"])}
    tables(run, settings, ["planted"], arms, [0])
    with pytest.raises(UserError, match="made with other settings"):
        tables(run, Settings(settings.model, 1, planted=settings.planted), ["planted"], arms, [0])


def test_arms_have_one_name_each_and_an_objective() -> None:
    for arms in ARMS.values():
        assert len({arm.name for arm in arms}) == len(arms)
        for arm in arms:
            if arm.learner == "policy":
                OBJECTIVES[arm.loss_type](**arm.arguments)
            assert 0 < arm.share <= 1
    with pytest.raises(UserError, match="--arms: 'dpoo' is unknown; accepted: 'bmc', "):
        chosen_arms("film", ["dpoo"])
