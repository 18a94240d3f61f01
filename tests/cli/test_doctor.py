"""`tokenq doctor`: true facts, honest about what is missing, never a failure."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import pytest
import torch

from tokenq import __version__, environment
from tokenq.cli import doctor


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def feature(name: str) -> environment.Feature:
    return next(found for found in environment.features() if found.name == name)


def test_json_states_what_this_process_can_check(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TOKENQ_DATA", raising=False)
    assert doctor.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"] == platform.python_version()
    assert facts["versions"]["tokenq"] == __version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["peft"] == importlib.metadata.version("peft")
    assert facts["processor"]["torch_threads"] == torch.get_num_threads()
    assert facts["processor"]["cores_logical"] == os.cpu_count()
    assert len(facts["devices"]) >= 1 + torch.cuda.device_count()
    assert facts["devices"][0]["memory_free"] <= facts["devices"][0]["memory_total"]
    assert facts["variables"]["HF_HUB_OFFLINE"] == "1"
    assert facts["variables"]["TOKENQ_DATA"] is None
    assert facts["cache"]["path"] == str(home)
    assert facts["cache"]["contents"] == []


def test_tables_name_every_fact(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    facts = environment.inspect_environment()
    names = [*facts.versions, *facts.variables]
    names += [found.name for found in (*facts.features, *facts.devices)]
    for name in names:
        assert f" {name} " in out


def test_cache_contents_leave_out_locks_and_unfinished_files(home: Path) -> None:
    model = home / "models" / "tiny-model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"x" * 3000)
    (model / "config.json").write_bytes(b"{}")
    (home / "models" / "tiny-model.lock").touch()
    (home / "models" / ".other.part").mkdir()
    hashed = home / "assets" / "0123abcd"
    hashed.mkdir(parents=True)
    (hashed / "weights.gguf").write_bytes(b"y" * 10)
    (hashed / "weights.gguf.lock").touch()

    assert environment.cache().contents == [
        environment.Cached("assets/0123abcd/weights.gguf", 10),
        environment.Cached("models/tiny-model", 3002),
    ]


def test_a_cache_that_cannot_be_made_is_reported_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path / "file" / "home"))
    found = environment.cache()
    assert found.problem is not None
    assert "TOKENQ_HOME" in found.problem
    assert doctor.main([]) == 0
    assert "TOKENQ_HOME to another folder" in capsys.readouterr().out


def test_compilation_needs_the_compiler_that_cxx_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert feature("torch.compile").on is False
    assert "no-such-compiler" in feature("torch.compile").detail
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", f"{compiler} -O2")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in feature("torch.compile").detail
    (tmp_path / "Python.h").touch()
    assert feature("torch.compile") == environment.Feature(
        "torch.compile", True, f"C++ compiler {compiler}"
    )


def test_flex_attention_follows_the_devices() -> None:
    if not torch.cuda.is_available():
        assert feature("FlexAttention").on is False
        assert feature("accelerator").on is torch.backends.mps.is_available()
    else:
        assert feature("accelerator").on is True


def test_a_missing_optional_package_says_how_to_get_it() -> None:
    missing = environment.optional_package("no-such-package", "moonlight", "trackers")
    assert missing.on is False
    assert "pip install 'tokenq[trackers]'" in missing.detail
    assert environment.optional_package("rich", "tables", "trackers").on is True


def test_memory_respects_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "CGROUP_LIMIT", limit)
    unlimited, _ = environment.cpu_memory()
    limit.write_text("max\n")
    assert environment.cpu_memory()[0] == unlimited
    limit.write_text(f"{2**20}\n")
    assert environment.cpu_memory() == (2**20, 2**20)
