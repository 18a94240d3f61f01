"""Several sources on one text."""

import numpy as np
import pytest
import torch
from scipy import stats
from small_pairs import small_pair, small_tokenizer

from tokenq.credit import word_spans
from tokenq.credit.sources import (
    Entropy,
    ImplicitReward,
    LanguageModel,
    Length,
    Oracle,
    Position,
    Surprisal,
    compare,
    on_spans,
)
from tokenq.errors import UserError

PROMPTS = ["Write one sentence of a film review.", "Go", "Go", "A film"]
RESPONSES = [
    " A dull mess.",
    " A warm, funny film that earns its tears.",
    " An uneven debut.",
    " is dull.",
]


def sources() -> list:  # type: ignore[type-arg]
    pair = small_pair()
    policy = LanguageModel.policy_of(pair)
    other = Oracle(ImplicitReward(pair, name="small"), small_tokenizer(300), name="moved")
    return [ImplicitReward(pair), Surprisal(policy), Entropy(policy), other, Length(pair.tokenizer)]


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_on_the_tokens_of_the_first(batch: int) -> None:
    given = sources()
    done: list[int] = []
    table = compare(given, PROMPTS, RESPONSES, batch=batch, on_progress=done.append)
    assert sum(done) == 4
    assert list(table.units) == [source.name for source in given]
    assert table.units["implicit reward"] == "beta x nats"
    assert table.higher["implicit reward"] == "liked"
    for source in given:
        for row, scores in enumerate(source.score(PROMPTS, RESPONSES)):
            found = table.rows[row]
            assert found.text == RESPONSES[row]
            if scores.offsets == found.offsets:
                torch.testing.assert_close(
                    found.scores[source.name], scores.scores, atol=2e-5, rtol=0
                )
            assert found.scores[source.name].shape == (len(found.offsets),)
            if source.name == "moved":
                assert scores.offsets != found.offsets
                total = float(scores.scores.sum())
                assert float(found.scores["moved"].sum()) == pytest.approx(total, abs=1e-5)


def test_on_words() -> None:
    given = sources()
    table = compare(given, PROMPTS, RESPONSES, words=True)
    for source in given:
        for row, scores in enumerate(source.score(PROMPTS, RESPONSES)):
            spans = word_spans(RESPONSES[row])
            assert table.rows[row].offsets == tuple(spans)
            expected = on_spans(scores, spans).scores
            torch.testing.assert_close(
                table.rows[row].scores[source.name], expected, atol=2e-5, rtol=0
            )
    lengths = table.rows[0].scores["length"].tolist()
    assert lengths == [len("A"), len("dull"), len("mess")]


def test_records_and_correlations() -> None:
    pair = small_pair()
    reward = ImplicitReward(pair)
    table = compare([reward, Position(pair.tokenizer)], PROMPTS, RESPONSES)
    records = list(table.records())
    assert len(records) == sum(len(row.offsets) for row in table.rows)
    assert set(records[0]) == {"row", "start", "end", "text", "implicit reward", "position"}
    assert [each["position"] for each in records if each["row"] == 1] == list(
        range(len(table.rows[1].offsets))
    )
    assert RESPONSES[0][records[1]["start"] : records[1]["end"]] == records[1]["text"]
    blame = [-each["implicit reward"] for each in records]
    expected = stats.spearmanr(blame, [each["position"] for each in records]).statistic
    correlations = table.correlations()
    assert correlations[0, 1] == pytest.approx(float(expected), abs=1e-12)
    assert correlations[1, 1] == pytest.approx(1.0)


def test_rows_are_named_as_the_caller_counts_them() -> None:
    source = ImplicitReward(small_pair())
    with pytest.raises(UserError, match=r"^row 3: the response is empty"):
        compare([source], PROMPTS, [*RESPONSES[:3], ""], batch=2)


def test_sources_need_names_of_their_own() -> None:
    source = ImplicitReward(small_pair())
    with pytest.raises(UserError, match="each with a name of its own"):
        compare([source, source], PROMPTS, RESPONSES)
    with pytest.raises(UserError, match="one or more"):
        compare([], PROMPTS, RESPONSES)
    with pytest.raises(UserError, match="batch is 0"):
        compare([source], PROMPTS, RESPONSES, batch=0)
    with pytest.raises(ValueError, match="4 prompts but 1 responses"):
        compare([source], PROMPTS, RESPONSES[:1])


@pytest.mark.filterwarnings("error")
def test_a_response_without_words_has_no_correlation() -> None:
    pair = small_pair()
    table = compare([ImplicitReward(pair), Position(pair.tokenizer)], ["Go"], ["..."], words=True)
    assert list(table.records()) == []
    assert np.isnan(table.correlations()).all()
