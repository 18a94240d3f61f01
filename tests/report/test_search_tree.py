"""The tree of a search: its layout by hand, its limits, and a picture of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_records import node, tree

from tokenq.report.search_tree import draw_tree, layout_tree


def test_stretches_without_a_branch_are_one_box_best_first() -> None:
    layout = layout_tree(tree(), pruned=1)
    told = [(box.text, box.parent, box.fate, box.rank) for box in layout.boxes]
    assert told == [
        ("a", -1, "open", 0),
        ("fine", 0, "open", 0),
        ("film", 1, "chosen", 1),
        ("mess", 1, "chosen", 2),
        ("dull", 0, "dropped", 0),
        ("end", 1, "pruned", 0),
        ("one", 4, "pruned", 0),
    ]
    rows = {box.text: box.y for box in layout.boxes}
    assert rows == {"a": 0, "fine": 0, "film": 0, "mess": 1, "end": 2, "dull": 3, "one": 3}
    boxes = {box.text: box for box in layout.boxes}
    assert boxes["fine"].x == boxes["a"].x + boxes["a"].width + 4
    assert boxes["dull"].hidden == 2
    assert boxes["film"].log_ratio == pytest.approx(1.0)
    assert boxes["mess"].log_ratio is None
    # " the" behind the prompt, " two" and " three" are not drawn.
    assert layout.notes == [
        "10 tokens were looked at.",
        "3 that were dropped at once are not drawn.",
    ]
    assert layout.height == 4


def test_without_branches_there_is_one_box_with_its_middle_left_out() -> None:
    words = [node(n - 1, f" word{n}", -n, "chosen" if n == 29 else "open") for n in range(30)]
    [box] = layout_tree(words, longest=30).boxes
    assert box.nodes == list(range(30))
    assert box.text.startswith("word0 word1")
    assert box.text.endswith("word29")
    assert " … " in box.text
    assert len(box.text) <= 33


def test_a_huge_tree_keeps_its_best_ends_and_says_what_is_left_out() -> None:
    many = [node(-1, f" w{n}", -float(n), visits=n % 7) for n in range(500)]
    many[400]["fate"] = "chosen"
    layout = layout_tree(many, max_leaves=10)
    assert len(layout.boxes) == 10
    assert min(layout.boxes, key=lambda box: box.y).text == "w400"
    assert sorted(box.visits for box in layout.boxes)[1:] == [6] * 9
    assert "490 more branches are left out." in layout.notes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_drawn_node_is_in_one_box_and_no_two_boxes_overlap(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    fates = st.sampled_from(["open", "pruned", "finished", "chosen"])
    nodes = [
        node(data.draw(st.integers(-1, n - 1)), " w" * (n % 4 + 1), -float(n % 5), data.draw(fates))
        for n in range(count)
    ]
    layout = layout_tree(nodes, max_leaves=data.draw(st.integers(1, 12)))
    drawn = [number for box in layout.boxes for number in box.nodes]
    assert len(drawn) == len(set(drawn))
    for number, box in enumerate(layout.boxes):
        assert box.parent < number
        assert nodes[box.nodes[0]]["parent"] in (-1, *drawn)
        if box.parent >= 0:
            assert box.x >= layout.boxes[box.parent].x + layout.boxes[box.parent].width
            assert box.y >= layout.boxes[box.parent].y
        for other in layout.boxes[:number]:
            apart = box.x >= other.x + other.width or other.x >= box.x + box.width
            assert box.y != other.y or apart
    if layout.boxes:
        assert layout.height == 1 + max(box.y for box in layout.boxes)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_drawn_whatever_the_tokens_say(
    tmp_path: Path, suffix: str, start: bytes
) -> None:
    nodes = tree()
    nodes[3]["text"], nodes[4]["text"], nodes[0]["text"] = "$x^2$", "字\u202e\n\ud800", None
    nodes[6]["logp"] = float("-inf")
    path = tmp_path / f"tree.{suffix}"
    draw_tree(nodes, path, title="$a tree$")
    assert path.read_bytes().startswith(start)


def test_what_was_given_up_later_is_told_from_what_was_dropped_at_once() -> None:
    nodes = [
        node(-1, " a", -0.5, "chosen"),
        node(-1, " b", -0.9, "pruned", visits=3),
        node(1, " c", -1.2, "pruned", visits=2),
        node(2, " d", -1.5, "pruned", visits=1),
    ]
    told = [(box.text, box.fate, box.visits) for box in layout_tree(nodes).boxes]
    assert told == [("a", "chosen", 0), ("b c", "dropped", 3), ("d", "pruned", 1)]


def test_responses_are_numbered_as_the_search_ranked_them() -> None:
    nodes = tree()
    nodes[3]["rank"], nodes[4]["rank"] = 2, 1
    ranks = {box.text: box.rank for box in layout_tree(nodes).boxes if box.rank}
    assert ranks == {"film": 2, "mess": 1}


def test_an_empty_trace_is_an_empty_picture(tmp_path: Path) -> None:
    assert layout_tree([]).boxes == []
    draw_tree([], tmp_path / "tree.png")
    assert (tmp_path / "tree.png").stat().st_size > 0
