"""The endpoint judge against a real server on loopback: what is asked, read, retried, refused."""

import re
import time
from typing import Any

import pytest
from judge_server import always_first, judge_server, longer

from tokenq.errors import UserError
from tokenq.judges import Comparison, Endpoint, judge_comparisons, read_choice, summarise
from tokenq.judges import endpoint as endpoint_module
from tokenq.judges.comparisons import Choice


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def comparisons(count: int = 40) -> list[Comparison]:
    """Ours is longer in the even ones."""
    return [
        Comparison(f"Question {i}?", "yes" * (2 + (i % 2 == 0) * 3), "no, " * 3)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[[A]]", "first"),
        ("I thought about it.\n[[B]]", "second"),
        ("[[tie]]", "tie"),
        ("[[C]]", "tie"),
        ("[[ b ]]. Yes, [[B]]!", "second"),
        ("A", "first"),
        (" **B**.\n", "second"),
        ('"Tie."', "tie"),
        ("<think>[[A]] has more, but is wrong.</think>\n[[B]]", "second"),
        ("[[A]] has more, but is wrong.</think>\n[[B]]", "second"),
        ("<think>If it is [[A]], I should say so. But then", None),
        ("[[A]] or [[B]]", None),
        ("Response A is better", None),
        ("Answer: A", None),
        ("AB", None),
        ("Apart from that", None),
        ("", None),
        ("[A]", "first"),
    ],
)
def test_only_a_plain_choice_is_read(text: str, choice: Choice | None) -> None:
    assert read_choice(text) == choice


def test_the_request_is_a_chat_completion_with_the_key_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with judge_server() as server:
        judge = Endpoint("some-model", f"{server.url}/", key_env="MY_KEY", max_tokens=9)
        answer = judge.compare([{"role": "user", "content": "Which?"}], "short", "much longer")
    assert (answer.choice, answer.text) == ("second", "[[B]]")
    [body], [headers] = server.bodies, server.headers
    assert headers["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "some-model",
        "temperature": 0,
        "max_tokens": 9,
    }
    [message] = body["messages"]
    assert message["role"] == "user"
    assert "[Prompt]\nWhich?\n" in message["content"]
    assert "sk-secret" not in repr(judge.identity)


def test_no_key_is_sent_where_there_is_none_and_fields_can_be_changed() -> None:
    with judge_server() as server:
        body = {"max_tokens": None, "max_completion_tokens": 7, "seed": 1}
        Endpoint("m", server.url, body=body).compare("p", "a", "b")
    assert "Authorization" not in server.headers[0]
    assert "max_tokens" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 7


def test_text_of_a_response_is_never_a_field_of_the_template() -> None:
    with judge_server() as server:
        judge = Endpoint("m", server.url)
        judge.compare("{first}", "{second} {0} {", "x")
    content = server.bodies[0]["messages"][0]["content"]
    assert "[Prompt]\n{first}\n\n[Response A]\n{second} {0} {\n\n[Response B]\nx" in content


@pytest.mark.parametrize(
    "failures",
    [
        [500, 503],
        [429],
        [(429, {"Retry-After": "0.1"})],
        [(429, {"Retry-After": "nan"}), (429, {"Retry-After": "-3"})],
        [(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
        ["<html>busy</html>", '{"choices": []}', "[]"],
        [0.5],
    ],
)
def test_what_passes_is_tried_again(failures: list[Any]) -> None:
    with judge_server(failures=failures) as server:
        start = time.monotonic()
        answer = Endpoint("m", server.url, timeout=0.25).compare("p", "long", "s")
        taken = time.monotonic() - start
    assert answer.choice == "first"
    assert len(server.bodies) == len(failures) + 1
    if isinstance(failures[0], tuple) and failures[0][1]["Retry-After"] == "0.1":
        assert taken > 0.1


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (400, 1), (500, 3), (429, 3)])
def test_what_does_not_pass_is_one_clear_line(status: int, tries: int) -> None:
    with (
        judge_server(failures=[status] * 3) as server,
        pytest.raises(UserError, match=rf"{re.escape(server.url)}.*HTTP {status} .*no"),
    ):
        Endpoint("m", server.url, retries=2).compare("p", "a", "b")
    assert len(server.bodies) == tries


def test_a_server_that_is_not_there_and_a_key_that_is_echoed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with judge_server() as server:
        gone = server.url
    with pytest.raises(UserError, match="after 2 tries"):
        Endpoint("m", gone, retries=1).compare("p", "a", "b")
    monkeypatch.setenv("OPENAI_API_KEY", "no")
    with (
        judge_server(failures=[401]) as server,
        pytest.raises(UserError, match=r"\[key\]"),
    ):
        Endpoint("m", server.url).compare("p", "a", "b")


def test_a_key_that_cannot_be_sent_is_refused_and_blanks_around_it_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first\nsk-second")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds what no API key does") as caught:
        Endpoint("m", "http://a/v1")
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", " sk-only\n")
    with judge_server() as server:
        Endpoint("m", server.url).compare("p", "a", "b")
    assert server.headers[0]["Authorization"] == "Bearer sk-only"


@pytest.mark.parametrize(
    ("base_url", "template", "message"),
    [
        ("localhost:8000", None, "base_url is 'localhost:8000'; accepted: such as http"),
        ("ftp://a/v1", None, "base_url is"),
        ("http://me:secret@a/v1", None, "accepted: a key in the environment"),
        ("http://a/v1", "Which of {first} and what?", "has no {second}"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    base_url: str, template: str | None, message: str
) -> None:
    options = {} if template is None else {"template": template}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Endpoint("m", base_url, **options)
    assert "secret" not in str(caught.value)


def test_many_questions_are_asked_at_once_and_answered_in_their_order() -> None:
    with judge_server(seconds=0.05) as server:
        told = judge_comparisons(Endpoint("m", server.url, concurrency=6), comparisons())
    assert 3 <= server.at_once <= 6
    assert [each.preference for each in told] == [1.0, 0.0] * 20


def test_a_judge_without_a_taste_for_places_is_not_touched_by_the_order() -> None:
    questions = comparisons()
    with judge_server(longer) as server:
        judge = Endpoint("m", server.url)
        once = [judge_comparisons(judge, questions, seed=seed) for seed in (0, 1)]
        both = judge_comparisons(judge, questions, both_orders=True)
    preferences = [[each.preference for each in told] for told in (*once, both)]
    assert preferences[0] == preferences[1] == preferences[2]
    firsts = [[each.asked[0].ours_first for each in told] for told in once]
    assert firsts[0] != firsts[1]
    assert 10 < sum(firsts[0]) < 30
    position = summarise(questions, both).position
    assert position is not None
    assert (position.first.value, position.inconsistent) == (0.5, 0.0)


def test_a_judge_that_takes_the_first_is_found_out_and_cancelled() -> None:
    questions = comparisons(200)
    with judge_server(always_first) as server:
        judge = Endpoint("m", server.url)
        once = summarise(questions, judge_comparisons(judge, questions))
        both = summarise(questions, judge_comparisons(judge, questions, both_orders=True))
    assert once.position is not None
    assert once.win_rate is not None
    assert (once.position.first.value, once.position.inconsistent) == (1.0, None)
    assert once.win_rate.low < 0.5 < once.win_rate.high
    assert both.position is not None
    assert both.win_rate is not None
    assert (both.win_rate.value, both.win_rate.ties) == (0.5, 200)
    assert (both.position.first.value, both.position.inconsistent) == (1.0, 1.0)


def test_answers_that_cannot_be_read_are_counted_and_left_out() -> None:
    def moody(first: str, second: str) -> str:
        return "Hard to say." if "yesyesyesyesyes" in first + second else longer(first, second)

    questions = comparisons()
    with judge_server(moody) as server:
        told = judge_comparisons(Endpoint("m", server.url), questions)
    report = summarise(questions, told)
    assert report.unreadable == 20
    assert report.win_rate is not None
    assert (report.win_rate.comparisons, report.win_rate.value) == (20, 0.0)
    assert told[0].asked[0].answer.text == "Hard to say."


def test_answers_that_were_had_before_a_failure_are_reported() -> None:
    kept = []
    with (
        judge_server(failures=[*[None] * 5, 404], seconds=0.02) as server,
        pytest.raises(UserError, match="HTTP 404"),
    ):
        judge_comparisons(
            Endpoint("m", server.url, concurrency=2),
            comparisons(),
            on_verdict=lambda number, verdict: kept.append(number),
        )
    assert 5 <= len(kept) <= 8
    assert len(server.bodies) <= 9
