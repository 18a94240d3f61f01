"""Scoring judges, ties, the drawn order, and what the verdicts of a judge add up to."""

from collections.abc import Sequence

import pytest

from tokenq.errors import UserError
from tokenq.judges import Answer, Comparison, Prompt, Verdict, judge_comparisons, length, summarise
from tokenq.judges.comparisons import Asked, verdict_of
from tokenq.judges.judging import shows_ours_first

COMPARISONS = [Comparison(f"p{i}", "x" * i, "x" * 3) for i in range(100)]


def test_higher_scores_win_and_close_ones_tie() -> None:
    told = judge_comparisons(length, COMPARISONS[:6], tie=1)
    assert [each.preference for each in told] == [0, 0, 0.5, 0.5, 0.5, 1]
    assert told[5].scores == (5, 3)


def test_a_text_is_scored_once_for_its_prompt() -> None:
    seen = []

    def counting(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        seen.extend(zip(prompts, responses, strict=True))
        return length(prompts, responses)

    same = [Comparison("p", text, "baseline", sample) for sample, text in enumerate("abcd")]
    judge_comparisons(counting, same)
    assert sorted(seen) == [("p", "a"), ("p", "b"), ("p", "baseline"), ("p", "c"), ("p", "d")]


@pytest.mark.parametrize(
    ("scores", "message"), [([float("nan")] * 200, "score nan"), ([1.0], "gave 1 scores; accepted")]
)
def test_scores_that_are_none_are_refused(scores: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge_comparisons(lambda prompts, responses: scores[: len(responses)], COMPARISONS)


def test_the_order_is_a_fair_coin_that_belongs_to_the_prompt() -> None:
    first = [shows_ours_first(each, seed=0) for each in COMPARISONS]
    assert 35 <= sum(first) <= 65
    assert first == [shows_ours_first(each, seed=0) for each in COMPARISONS]
    assert first != [shows_ours_first(each, seed=1) for each in COMPARISONS]
    other_texts = [Comparison(each.prompt, "a", "b") for each in COMPARISONS]
    assert first == [shows_ours_first(each, seed=0) for each in other_texts]
    samples = [Comparison("p", "a", "b", sample) for sample in range(50)]
    assert 15 <= sum(shows_ours_first(each, 0) for each in samples) <= 35


class Scripted:
    """Answers by who is shown where, and counts the questions."""

    concurrency = 1

    def __init__(self, choice: str | None) -> None:
        self.choice = choice
        self.asked = 0

    def compare(self, prompt: Prompt, first: str, second: str) -> Answer:
        self.asked += 1
        return Answer(self.choice, "text")


def test_equal_texts_are_a_tie_that_nobody_is_asked_about() -> None:
    judge = Scripted("first")
    [verdict] = judge_comparisons(judge, [Comparison("p", "same", "same")], both_orders=True)
    assert (verdict.preference, judge.asked) == (0.5, 0)


def test_one_order_that_cannot_be_read_leaves_the_comparison_out() -> None:
    asked = (Asked(True, Answer("first", "")), Asked(False, Answer(None, "?")))
    report = summarise([Comparison("p", "a", "b")], [Verdict(None, asked=asked)])
    assert (report.unreadable, report.win_rate, report.length_controlled) == (1, None, None)
    assert report.position is not None
    assert (report.position.first.count, report.position.inconsistent) == (1, None)


@pytest.mark.parametrize(
    ("ours_first", "choice", "preference"),
    [(True, "first", 1), (True, "second", 0), (False, "first", 0), (False, "second", 1)],
)
def test_a_choice_is_read_back_to_whose_it_was(
    ours_first: bool, choice: str, preference: float
) -> None:
    assert Asked(ours_first, Answer(choice, "")).preference == preference
    assert Asked(ours_first, Answer("tie", "")).preference == 0.5
    assert Asked(ours_first, Answer(None, "")).preference is None


def test_verdicts_survive_being_written() -> None:
    asked = (Asked(True, Answer("first", "[[A]]")), Asked(False, Answer(None, "?")))
    for verdict in (Verdict(None, asked=asked), Verdict(1.0, scores=(2.0, 1.0)), Verdict(0.5)):
        assert verdict_of(verdict.record()) == verdict


def test_a_report_holds_win_rate_length_control_and_scores() -> None:
    report = summarise(COMPARISONS, judge_comparisons(length, COMPARISONS))
    assert report.win_rate is not None
    assert (report.win_rate.wins, report.win_rate.ties, report.win_rate.losses) == (96, 1, 3)
    assert report.scores is not None
    assert report.scores.ours == pytest.approx(49.5)
    assert report.scores.difference == pytest.approx(46.5)
    assert report.position is None
    assert report.length_controlled is not None
    assert report.length_controlled.longer == 0.96
    with pytest.raises(ValueError, match="no verdicts"):
        summarise([], [])
