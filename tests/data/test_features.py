"""Feature columns: what is accepted beside ids, what is refused by row and field, and rewards."""

import datasets
import pytest
import torch

from tokenq.data import (
    add_edits,
    add_features,
    check_features,
    check_row,
    prepare,
    rewards_from_logps,
)
from tokenq.data.loading import Rows
from tokenq.errors import UserError

ROW = {
    "prompt_ids": [1],
    "chosen_ids": [5, 6],
    "chosen_segments": [0, -1],
    "chosen_edits": [True, False],
    "chosen_rewards": [0.5, -1],
}
COLUMNS = ["chosen_segments", "chosen_edits", "chosen_rewards"]


@pytest.fixture
def prepared(make_tokenizer):
    rows = [
        {"row": i, "prompt": "on", "chosen": " the cat" * (i + 1), "rejected": " a dog"}
        for i in range(3)
    ]
    source = Rows(datasets.Dataset.from_list(rows), "preference", "h", "f", 0)
    return prepare(source, make_tokenizer("byte_level"))


def test_fitting_features_pass():
    check_row(ROW, COLUMNS, "row 0")
    check_row(ROW, [], "row 0")
    ranked = {"completions_ids": [[1], [2, 3]], "completions_edits": [[True], [False, False]]}
    check_row(ranked, ["completions_edits"], "row 0")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("chosen_rewards", [0.5], "has 1 values; accepted: 2, one for each of chosen_ids"),
        ("chosen_rewards", None, "has no list of values; accepted: 2"),
        ("chosen_rewards", [0.5, float("nan")], "accepted: finite numbers"),
        ("chosen_rewards", [0.5, "1"], "accepted: finite numbers"),
        ("chosen_rewards", [0.5, True], "accepted: finite numbers"),
        ("chosen_edits", [1, 0], "accepted: true or false"),
        ("chosen_segments", [0, 1.0], "accepted: integers from -1"),
        ("chosen_segments", [0, -2], "accepted: integers from -1"),
        ("chosen_segments", [-1, -1], "one of them at least 0"),
        ("chosen_segments", [True, False], "accepted: integers from -1"),
    ],
)
def test_other_values_are_refused(column, values, said):
    with pytest.raises(UserError, match=f"^row 7: field '{column}' .*{said}") as raised:
        check_row(ROW | {column: values}, COLUMNS, "row 7")
    assert "\n" not in str(raised.value)


def test_ranked_rows_name_the_answer():
    row = {"completions_ids": [[1], [2, 3]], "completions_edits": [[True], [False]]}
    with pytest.raises(
        UserError, match=r"field 'completions_edits\[1\]' has 1 values; accepted: 2"
    ):
        check_row(row, ["completions_edits"], "row 0")
    row["completions_edits"] = [[True]]
    with pytest.raises(UserError, match=r"has 1 values; accepted: 2 lists"):
        check_row(row, ["completions_edits"], "row 0")


def test_a_whole_data_set():
    rows = [ROW, ROW | {"chosen_rewards": [1.0, 2.0, 3.0]}]
    with pytest.raises(UserError, match="here, row 1: field 'chosen_rewards' has 3 values"):
        check_features(datasets.Dataset.from_list(rows), COLUMNS, "here")
    dataset = datasets.Dataset.from_list([ROW, ROW])
    check_features(dataset, COLUMNS)
    check_features(dataset, [])
    with pytest.raises(UserError, match=r"no column 'rejected_edits'; tokenq.data.add_edits"):
        check_features(dataset, ["rejected_edits"])
    with pytest.raises(UserError, match="column 'chosen_colours' is no token feature; accepted"):
        check_features(dataset, ["chosen_colours"])


def test_own_columns_pass_the_check(prepared):
    check_features(add_edits(prepared).dataset, ["chosen_edits", "rejected_edits"])


def test_added_features(prepared):
    rewards = [[float(i) / 2 for i in ids] for ids in prepared.dataset["chosen_ids"]]
    featured = add_features(prepared, {"chosen_rewards": rewards})
    assert featured.dataset["chosen_rewards"][:] == rewards
    check_features(featured.dataset, ["chosen_rewards"])
    doubled = [[2 * value for value in row] for row in rewards]
    other = add_features(prepared, {"chosen_rewards": doubled})
    assert len({prepared.fingerprint, featured.fingerprint, other.fingerprint}) == 3
    assert featured.dataset._fingerprint != other.dataset._fingerprint
    with pytest.raises(UserError, match="row 1: field 'chosen_rewards' has"):
        add_features(prepared, {"chosen_rewards": [rewards[0], rewards[0], rewards[2]]})
    with pytest.raises(UserError, match="has 2 rows; accepted: 3"):
        add_features(prepared, {"chosen_rewards": rewards[:2]})
    with pytest.raises(UserError, match="there is no 'completion_ids'"):
        add_features(prepared, {"completion_rewards": rewards})


def test_rewards_are_scaled_log_ratios():
    logps = [torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-0.5])]
    ref_logps = [[-1.5, -1.0], [-0.5]]
    assert rewards_from_logps(logps, ref_logps, beta=0.5) == [[0.25, -0.5], [0.0]]
    with pytest.raises(UserError, match="row 1: 1 logps but 2 ref_logps"):
        rewards_from_logps(logps, [[0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(UserError, match="2 rows of logps but 1 of ref_logps"):
        rewards_from_logps(logps, ref_logps[:1])
    with pytest.raises(UserError, match="row 0: a reward is not finite"):
        rewards_from_logps([[float("-inf")]], [[0.0]])
