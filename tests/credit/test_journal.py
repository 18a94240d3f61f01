"""The journal: whatever cuts a run off, its rows end up once, in order, in the finished file."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenq.credit.journal import Journal, read_records
from tokenq.credit.processes import Processes, Share
from tokenq.errors import UserError


def rows_in(path: Path) -> list[int]:
    return [record["row"] for record in read_records(path)]


def records(rows: Iterable[int]) -> list[dict]:
    return [{"text": f"é {row}\n", "row": row} for row in rows]


@dataclass(frozen=True)
class Threads(Processes):
    """One of several threads that stand for processes."""

    meeting: Barrier = field(default_factory=lambda: Barrier(1))

    def wait(self) -> None:
        self.meeting.wait(timeout=30)


def start(path: Path, source: list[dict], count: int, written: int, *, finish: bool) -> None:
    """Let `count` processes score `written` rows each and stop there, or finish."""
    meeting = Barrier(count)

    def work(index: int) -> None:
        processes = Threads(index, count, meeting)
        with Journal(path, {}, processes) as journal:
            own = [row["row"] for row in Share(source, journal.done(), processes)]
            journal.append(records(own[:written]))
            if finish:
                journal.finish()
            processes.wait()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def test_a_line_that_was_being_written_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    with Journal(path, {}) as journal:
        journal.append(records([0, 1]))
    part = tmp_path / "credit.jsonl.0.part"
    whole = part.read_bytes()
    for torn in (b"", b'{"row": 2', b'{"row": 2, "text": "' + b"x" * 200_000):
        part.write_bytes(whole + torn)
        with Journal(path, {}) as journal:
            assert list(journal.done()) == [0, 1]
        assert part.read_bytes() == whole
    part.write_bytes(whole[:7])
    with Journal(path, {}) as journal:
        assert list(journal.done()) == []
        journal.append(records([0, 1, 2]))
        journal.finish()
    assert rows_in(path) == [0, 1, 2]


@settings(deadline=None, max_examples=40)
@given(
    starts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7)), max_size=4),
    last=st.integers(1, 3),
    total=st.integers(0, 25),
)
def test_any_number_of_processes_and_cuts_give_each_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    starts: list[tuple[int, int]],
    last: int,
    total: int,
) -> None:
    """Each start: so many processes, each cut off after so many rows of its share."""
    path = tmp_path_factory.mktemp("journal") / "credit.jsonl"
    source = [{"row": 3 * place + 1} for place in range(total)]
    for count, written in starts:
        start(path, source, count, written, finish=False)
    assert not path.exists()
    start(path, source, last, total, finish=True)
    assert rows_in(path) == [row["row"] for row in source]
    assert {each.name for each in path.parent.iterdir()} == {"credit.jsonl", "settings.json"}


def test_shares_divide_what_is_left_and_count_what_they_pass() -> None:
    source = [{"row": row} for row in (0, 2, 3, 5, 8, 9, 12)]
    shares = [Share(source, iter([2, 4, 8]), Processes(index, 2)) for index in range(2)]
    assert [[row["row"] for row in share] for share in shares] == [[0, 5, 12], [3, 9]]
    assert [share.passed for share in shares] == [7, 7]


def test_a_finished_file_is_left_alone_and_needs_no_parts(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    with Journal(path, {"beta": 0.1}) as journal:
        journal.append(records([0, 1]))
        journal.finish()
    before = path.stat()
    # A process that died between the two leaves the parts that it has merged.
    (tmp_path / "credit.jsonl.4.part").write_text('{"row": 0}\n')
    with Journal(path, {"beta": 0.1}) as journal:
        assert journal.finished
        journal.finish()
    assert path.stat() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["credit.jsonl", "settings.json"]


def test_other_settings_are_refused_at_every_stage(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    with Journal(path, {"beta": 0.1}) as journal:
        journal.append(records([0]))
    for _ in range(2):
        with pytest.raises(UserError, match=r"its beta is 0\.1, now it is 0\.2"):
            Journal(path, {"beta": 0.2}).__enter__()
        with Journal(path, {"beta": 0.1}) as journal:
            journal.finish()


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    with (
        Journal(path, {}),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        Journal(path, {}).__enter__()
    with Journal(path, {}) as journal:
        journal.append(records([7]))
        journal.finish()
    assert rows_in(path) == [7]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "credit.jsonl.0.part").write_text("{}\n")
    (tmp_path / "settings.json").write_text("{}")
    with (
        Journal(tmp_path / "credit.jsonl", {}) as journal,
        pytest.raises(UserError, match=r"0\.part: holds a line that is no record"),
    ):
        list(journal.done())


def test_line_separators_in_texts_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    text = "a\u2028b\r\nc\x85d"
    with Journal(path, {}) as journal:
        journal.append([{"row": 0, "text": text}])
        journal.finish()
    assert json.loads(path.read_text(encoding="utf-8")) == {"row": 0, "text": text}
    assert [record["text"] for record in read_records(path)] == [text]
