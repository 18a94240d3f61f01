"""Judges by name: what each name opens, and that bad ones are told before anything is loaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from judge_server import judge_server
from small_pairs import config, save_model, small_tokenizer
from transformers import AutoModelForSequenceClassification

from tokenq.errors import UserError
from tokenq.judges import Endpoint, ImplicitReward, RewardModel
from tokenq.judges.specs import KINDS, Resources, parse_judge


def reward_folder(folder: Path) -> Path:
    torch.manual_seed(5)
    options = config("llama", len(small_tokenizer()))
    options.num_labels = 1
    AutoModelForSequenceClassification.from_config(options).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("length", [2, 5]),
        ("contains:b?", [1, 0]),
        (r"regex:b\?|z", [1, 0]),
        ("regex:a:?", [1, 1]),
        ("exact", [0, 1]),
        ("exact:gold", [0, 1]),
    ],
)
def test_a_name_opens_its_judge(text: str, scores: list[float]) -> None:
    opened = parse_judge(text).open(Resources(answers={"p": "aa aa", "q": "aa aa"}))
    if text.startswith("regex:a"):
        assert opened.judge(["p", "q"], ["a:", "a"]) == scores
    else:
        assert opened.judge(["p", "q"], ["b?", "aa aa"]) == scores


def test_the_field_of_right_answers_and_the_tie_are_part_of_the_name() -> None:
    assert parse_judge("number").column == "answer"
    assert parse_judge("number:gold?tie=0.5").column == "gold"
    assert parse_judge("number:gold?tie=0.5").tie == 0.5
    assert parse_judge("length").column is None


def test_a_function_of_the_users_own_is_found_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judges.py").write_text(
        "def vowels(prompts, responses):\n"
        "    return [sum(c in 'aeiou' for c in each) for each in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    opened = parse_judge("python:my_judges:vowels").open(Resources())
    assert opened.judge(["p"], ["banana"]) == [3]
    assert len(opened.identity["source"]) == 64


def test_models_are_opened_with_what_decides_their_scores(tmp_path: Path) -> None:
    reward = parse_judge(f"reward:{reward_folder(tmp_path / 'r')}").open(Resources(device="cpu"))
    assert isinstance(reward.judge, RewardModel)
    policy, reference = (save_model(tmp_path / name, seed=n) for n, name in enumerate("pq"))
    implicit = parse_judge(f"implicit:{policy}?reference={reference}&beta=0.5").open(Resources())
    assert isinstance(implicit.judge, ImplicitReward)
    assert implicit.judge.beta == implicit.identity["beta"] == 0.5
    assert implicit.identity["policy"] != implicit.identity["reference"]
    assert len(reward.identity["weights"]) == 32


def test_an_endpoint_keeps_its_name_however_it_is_run(tmp_path: Path) -> None:
    template = tmp_path / "ask.txt"
    template.write_text("[Response A]\n{first}\n\n[Response B]\n{second}\n\nWhich?")
    with judge_server() as server:
        base = f"endpoint:some/model?base_url={server.url}&template={template}"
        named = parse_judge(f'{base}&concurrency=3&timeout=9&retries=0&body={{"top_p": 1}}')
        assert named.name == f'{base}&body={{"top_p": 1}}'
        opened = named.open(Resources())
        assert isinstance(opened.judge, Endpoint)
        assert opened.judge.concurrency == 3
        assert opened.judge.compare("p", "aaa", "b").choice == "first"
    assert server.bodies[0]["top_p"] == 1
    assert server.bodies[0]["model"] == "some/model"
    assert opened.identity["template"] == template.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt", "judge 'gpt' is of no known kind; accepted: lexicon, length, contains:TEXT"),
        ("lexicon:x", "judge 'lexicon:x': accepted: lexicon"),
        ("reward", "judge 'reward': accepted: reward:MODEL"),
        ("contains:", "accepted: contains:TEXT"),
        ("length?ties=1", "has no option 'ties'; accepted: tie"),
        ("length?tie=-1", "tie is -1; accepted: a number from 0 up"),
        ("length?tie=x", "tie is x; accepted"),
        ("regex:(", "is no regular expression"),
        ("python:math", "accepted: python:MODULE:FUNCTION"),
        ("python:no_such_module_here:f", "No module named 'no_such_module_here'; accepted"),
        ("python:math:no_such", "math has no function 'no_such'; accepted"),
        ("reward:/no/such/folder", "reward model '/no/such/folder'"),
        ("reward:x?label=-1", "label is -1; accepted: a number from 0 up"),
        ("reward:x?label=0.5", "label is 0.5; accepted: a whole number"),
        ("implicit:/no/such/folder", "does not exist"),
        ("implicit:x?beta=0", "beta is 0; accepted: a number above 0"),
        ("endpoint:m", "has no base_url; accepted"),
        ("endpoint:m?base_url=x", "judge 'endpoint:m?base_url=x': base_url is 'x'; accepted"),
        ("endpoint:m?base_url=http://a/v1&concurrency=0", "concurrency is 0"),
        ("endpoint:m?base_url=http://a/v1&tie=1", "has no option 'tie'; accepted: base_url"),
        ("endpoint:m?base_url=http://a/v1&template=/no/such", "template /no/such: cannot be read"),
        ("endpoint:m?base_url=http://a/v1&body=[1]", "body is no JSON object"),
        ("endpoint:m?base_url=http://a/v1&body={", "body is no JSON ("),
    ],
)
def test_a_name_that_cannot_be_opened_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_judge(text)


def test_models_that_cannot_judge_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    with pytest.raises(UserError, match="classification head would be random"):
        parse_judge(f"reward:{model}")
    with pytest.raises(UserError, match=r"has no reference; accepted: \?reference="):
        parse_judge(f"implicit:{model}")
    with pytest.raises(UserError, match="no row has the field 'gold'"):
        parse_judge("exact:gold").open(Resources())


def test_judges_without_a_model_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from tokenq.judges import Contains, Endpoint, length, summarise, judge_comparisons\n"
        "from tokenq.judges.specs import parse_judge\n"
        "parse_judge('length'); parse_judge('endpoint:m?base_url=http://a/v1')\n"
        "parse_judge('lexicon'); parse_judge('number')\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_kind_is_listed_with_what_it_does() -> None:
    for name, kind in KINDS.items():
        assert kind.written.startswith(name)
        assert kind.about
