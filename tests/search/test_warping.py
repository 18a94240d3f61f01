"""The law of the next token is that of the warpers of transformers, at any width of the nucleus."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tokenq.errors import UserError
from tokenq.search import warping
from tokenq.search.warping import Warping

KINDS = [
    ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    ({"top_k": 5}, [TopKLogitsWarper(5)]),
    ({"top_p": 0.3}, [TopPLogitsWarper(0.3)]),
    ({"top_p": 0.9}, [TopPLogitsWarper(0.9)]),
    ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
    ({"min_p": 0.05}, [MinPLogitsWarper(0.05)]),
    (
        {"temperature": 1.5, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
        [
            TemperatureLogitsWarper(1.5),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.8),
            MinPLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize(("given", "theirs"), KINDS, ids=[str(given) for given, _ in KINDS])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("sorted_tokens", [1024, 7])
def test_laws_are_those_of_transformers(
    monkeypatch, given, theirs, sharpness: float, sorted_tokens: int
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(warping, "_SORTED", sorted_tokens)
    generator = torch.Generator().manual_seed(3)
    logits = sharpness * torch.randn(30, 200, generator=generator, dtype=torch.float64)
    logits[:, 17] = -torch.inf
    ids = torch.zeros(30, 1, dtype=torch.long)
    want = LogitsProcessorList(theirs)(ids, logits).softmax(-1)
    got = Warping(**given)(torch.log_softmax(logits, -1)).softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_temperature_near_zero_leaves_the_likeliest_token() -> None:
    logps = torch.log_softmax(torch.tensor([[0.0, 1.0, 0.999]]), -1)
    law = Warping(temperature=1e-30)(logps).softmax(-1)
    assert law.tolist() == [[0.0, 1.0, 0.0]]


def test_a_nucleus_is_never_empty() -> None:
    law = Warping(top_p=1e-9)(torch.zeros(2, 50)).softmax(-1)
    assert (law.amax(-1) == 1).all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"temperature": 0}, "temperature is 0; accepted: above 0"),
        ({"temperature": float("inf")}, "temperature is inf; accepted: above 0"),
        ({"temperature": None}, "temperature is None; accepted: above 0"),
        ({"top_k": 1.5}, "top_k is 1.5; accepted: a whole number"),
        ({"top_k": -1}, "top_k is -1; accepted: 0 or more"),
        ({"top_p": 0}, "top_p is 0; accepted: above 0, up to 1"),
        ({"top_p": 1.2}, "top_p is 1.2; accepted: above 0, up to 1"),
        ({"min_p": -0.1}, "min_p is -0.1; accepted: 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_named(given, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=told):
        Warping(**given)
