"""The reference cache: what is read is what was computed, whatever happened in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tokenq.errors import UserError
from tokenq.models import reference_cache
from tokenq.models.fingerprint import weight_hash
from tokenq.models.logps import token_logps
from tokenq.models.reference import AdapterOff
from tokenq.models.reference_cache import ReferenceCache, row_key
from tokenq.models.reference_shards import ShardFolder

FILLER = Path(__file__).parents[1] / "support" / "fill_cache.py"


def rows(count, seed=0):
    """``count`` rows, two responses a prompt."""
    generator = random.Random(seed)

    def ids(low, high):
        return [generator.randrange(3, 96) for _ in range(generator.randrange(low, high))]

    prompts = [ids(4, 12) for _ in range(count // 2) for _ in range(2)]
    prompts[1::2] = prompts[::2]
    return prompts, [ids(3, 9) for _ in prompts]


def plain(model, prompts, responses):
    with torch.no_grad():
        return token_logps(model, prompts, responses)


def assert_rows(cache, model, prompts, responses):
    for got, expected in zip(
        cache.lookup(prompts, responses), plain(model, prompts, responses), strict=True
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Keys of every row that is scored."""
    scored = []
    original = ReferenceCache._score

    def score(self, by_key, keys, token_budget):
        scored.extend(keys)
        return original(self, by_key, keys, token_budget)

    monkeypatch.setattr(ReferenceCache, "_score", score)
    return scored


def test_lookup_gives_the_log_probs_in_order(tmp_path):
    model, (prompts, responses) = tiny.llama(), rows(20)
    cache = ReferenceCache.open(model, tmp_path)
    report = cache.fill(prompts, responses, token_budget=64)
    assert (report.rows, report.found, report.computed) == (20, 0, 20)
    assert_rows(cache, model, prompts, responses)
    assert_rows(cache, model, prompts[::-3], responses[::-3])
    assert cache.lookup([], []) == []
    assert cache.stats().rows == 20


def test_a_later_run_computes_nothing_and_needs_no_model(tmp_path, counted):
    prompts, responses = rows(10)
    ReferenceCache.open(tiny.llama(), tmp_path).fill(prompts, responses)
    counted.clear()
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    cache.reference = None
    assert cache.fill(prompts, responses).found == 10
    assert_rows(cache, tiny.llama(), prompts, responses)
    assert counted == []


def test_only_new_and_distinct_rows_are_computed(tmp_path, counted):
    prompts, responses = rows(10)
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    cache.fill(prompts[:6], responses[:6])
    report = cache.fill(prompts * 2, responses * 2)
    assert (report.rows, report.found, report.computed) == (10, 6, 4)
    assert len(counted) == len(set(counted)) == 10
    assert list(cache.folder.glob("*.lock")) == []


def test_other_weights_have_another_cache(tmp_path):
    prompts, responses = rows(4)
    model = tiny.llama()
    ReferenceCache.open(model, tmp_path).fill(prompts, responses)
    model.lm_head.weight.data[0, 0] += 1e-3
    changed = ReferenceCache.open(model, tmp_path)
    with pytest.raises(UserError, match=r"lacks 4 of 4 rows, first row 0"):
        changed.lookup(prompts, responses)


def test_the_base_of_an_adapter_shares_the_cache_of_the_base(tmp_path, counted):
    prompts, responses = rows(6)
    ReferenceCache.open(tiny.llama(), tmp_path).fill(prompts, responses)
    counted.clear()
    policy = tiny.lora(tiny.llama()).train()
    cache = ReferenceCache.open(AdapterOff(policy), tmp_path)
    assert cache.fill(prompts, responses).computed == 0
    more = rows(4, seed=1)
    assert cache.fill(*more).computed == 4
    assert_rows(cache, tiny.llama(), *more)
    assert policy.training


def test_missing_rows_are_counted(tmp_path):
    prompts, responses = rows(10)
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    cache.fill(prompts[2:7], responses[2:7])
    with pytest.raises(UserError, match=r"lacks 5 of 10 rows, first row 0"):
        cache.lookup(prompts, responses)


def test_rows_of_another_process_are_seen_without_opening_again(tmp_path):
    prompts, responses = rows(4)
    reader = ReferenceCache.open(tiny.llama(), tmp_path)
    ReferenceCache.open(tiny.llama(), tmp_path).fill(prompts, responses)
    assert_rows(reader, tiny.llama(), prompts, responses)


@given(
    st.lists(st.integers(0, 300_000), min_size=1, max_size=4),
    st.lists(st.integers(0, 300_000), min_size=1, max_size=4),
)
def test_the_boundary_is_part_of_the_key(prompt, response):
    whole = prompt + response
    keys = {row_key(whole[:cut], whole[cut:]) for cut in range(1, len(whole))}
    assert len(keys) == len(whole) - 1
    assert row_key(prompt, response) == row_key(tuple(prompt), torch.tensor(response).tolist())


def test_log_probs_stay_on_disk_until_they_are_looked_up(tmp_path):
    folder = ShardFolder(tmp_path)
    keys = [row_key([n], [n]) for n in range(100)]
    folder.write(keys, [torch.zeros(1000) for _ in keys])
    folder.refresh()
    (shard,) = folder.shards
    held = shard.keys.nbytes + shard.offsets.nbytes
    assert held < 100 * 30 < shard.path.stat().st_size / 100
    assert folder.find([keys[7]]) == [(shard, 7)]


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "keys", "foreign", "text"])
def test_damaged_shards_are_reported_and_computed_again(tmp_path, caplog, damage):
    prompts, responses = rows(8)
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    cache.fill(prompts[:4], responses[:4])
    (damaged,) = cache.folder.glob("*.safetensors")
    cache.fill(prompts[4:], responses[4:])
    content = bytearray(damaged.read_bytes())
    tensors = load_file(damaged)
    if damage == "truncate":
        damaged.write_bytes(content[:-10])
    elif damage == "empty":
        damaged.write_bytes(b"")
    elif damage == "flip":
        content[-3] ^= 1
        damaged.write_bytes(content)
    elif damage == "keys":
        save_file({**tensors, "keys": tensors["keys"].flip(0)}, damaged)
    elif damage == "foreign":
        save_file({"weights": torch.zeros(3)}, damaged)
    elif damage == "text":
        damaged.write_text("not a shard")

    again = ReferenceCache.open(tiny.llama(), tmp_path)
    assert again.stats().corrupt == 1
    assert damaged.name in caplog.text
    with pytest.raises(UserError, match="lacks 4 of 8"):
        again.lookup(prompts, responses)
    assert again.fill(prompts, responses).computed == 4
    assert_rows(again, tiny.llama(), prompts, responses)
    assert ReferenceCache.open(tiny.llama(), tmp_path).stats().corrupt == 0


def test_an_error_in_the_middle_keeps_what_was_computed(tmp_path, monkeypatch, counted):
    prompts, responses = rows(40)
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    original = ReferenceCache._score

    def fail_later(self, by_key, keys, token_budget):
        if len(counted) > 15:
            raise KeyboardInterrupt
        return original(self, by_key, keys, token_budget)

    with monkeypatch.context() as patched:
        patched.setattr(ReferenceCache, "_score", fail_later)
        with pytest.raises(KeyboardInterrupt):
            cache.fill(prompts, responses, token_budget=32)
    kept = len(counted)
    assert 15 < kept < 40
    assert list(cache.folder.glob("*.lock")) == []
    assert ReferenceCache.open(tiny.llama(), tmp_path).fill(prompts, responses).found == kept


def test_non_finite_log_probs_are_never_stored(tmp_path):
    model = tiny.llama()
    model.lm_head.weight.data[50] = torch.nan
    cache = ReferenceCache.open(model, tmp_path)
    with pytest.raises(UserError, match=r"log-prob nan to token 8 at place 0"):
        cache.fill([[5, 6]], [[8, 9]])
    assert cache.stats().rows == 0


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    cache = ReferenceCache.open(tiny.llama(), tmp_path)
    usage = type("Usage", (), {"free": 20})
    monkeypatch.setattr(reference_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="MB free"):
        cache.fill(*rows(4))


def test_a_root_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create a folder"):
        ReferenceCache.open(tiny.llama(), tmp_path / "file")


def test_the_default_place_is_the_cache_of_tokenq(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENQ_HOME", str(tmp_path))
    cache = ReferenceCache.open(tiny.llama())
    assert cache.folder.parent == tmp_path / "reference"


# Several processes


@pytest.fixture
def job(tmp_path):
    """Arguments of a filler process: model, root and rows on disk."""
    tiny.llama().save_pretrained(tmp_path / "model")
    prompts, responses = rows(60)
    (tmp_path / "rows.json").write_text(json.dumps([prompts, responses]))
    return [str(tmp_path / "model"), str(tmp_path / "cache"), str(tmp_path / "rows.json")]


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def shards(tmp_path):
    return list((tmp_path / "cache").glob("*/*.safetensors"))


def test_a_killed_fill_goes_on_where_it_was(tmp_path, job):
    process = start([sys.executable, str(FILLER), *job, "0", "0.2"])
    deadline = time.monotonic() + 120
    while len(shards(tmp_path)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    prompts, responses = json.loads(Path(job[2]).read_text())
    cache = ReferenceCache.open(tiny.llama(), tmp_path / "cache")
    kept = cache.stats()
    assert 0 < kept.rows < 60
    assert kept.corrupt == 0
    report = cache.fill(prompts, responses, token_budget=64)
    assert (report.found, report.computed) == (kept.rows, 60 - kept.rows)
    assert_rows(cache, tiny.llama(), prompts, responses)


def test_two_processes_share_the_work(tmp_path, job):
    processes = [start([sys.executable, str(FILLER), *job, "30", "0.1"]) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    computed = [json.loads(output.splitlines()[-1])["computed"] for output in outputs]
    prompts, responses = json.loads(Path(job[2]).read_text())
    assert sum(computed) >= 60
    cache = ReferenceCache.open(tiny.llama(), tmp_path / "cache")
    assert cache.stats().rows == sum(computed)
    assert_rows(cache, tiny.llama(), prompts, responses)


def test_one_process_waits_for_the_rows_that_another_holds(tmp_path, job):
    """The holder writes only at its end; the other must not compute the same rows meanwhile."""
    holder = start([sys.executable, str(FILLER), *job, "1000", "0.3"])
    assert holder.stdout.readline() == "ready\n"
    while not list((tmp_path / "cache").glob("*/*.lock")):
        assert holder.poll() is None
        time.sleep(0.02)
    prompts, responses = json.loads(Path(job[2]).read_text())
    cache = ReferenceCache.open(tiny.llama(), tmp_path / "cache")
    mine = cache.fill(prompts, responses, token_budget=64).computed
    theirs = json.loads(holder.communicate(timeout=200)[0].splitlines()[-1])["computed"]
    assert mine + theirs == 60
    assert theirs > 0
    assert_rows(cache, tiny.llama(), prompts, responses)


def test_a_reference_sharded_over_two_processes(tmp_path, job):
    script = FILLER.with_name("sharded_reference.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert start([*launch, str(script), *job]).wait(timeout=200) == 0
    for rank in range(2):
        result = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert result == {"hash": weight_hash(tiny.llama()), "computed": 60}
    cache = ReferenceCache.open(tiny.llama(), tmp_path / "cache")
    assert cache.stats().rows == 60
    assert_rows(cache, tiny.llama(), *json.loads(Path(job[2]).read_text()))
