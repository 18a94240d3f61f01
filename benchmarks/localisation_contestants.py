"""Other packages' token scores of given texts: what `benchmarks.credit_localisation` runs as well.

Each takes one or two ordinary models, the tokenizer and the texts, and returns one number for each
token of every response that it reads as the same tokens as tokenq, the end token left out, or None
for a response that it reads otherwise. Raises ImportError where the package is missing.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.credit_contestants import Texts, reward_lens


def implicit_rewards(pair: Any, texts: Texts, beta: float) -> list[Tensor | None]:
    """`ImplicitRM.per_token_rewards` of reward-lens, beta times nats.

    It looks for the response in the text of prompt and response, and so takes the prompt's where
    that holds the same words.
    """
    found = reward_lens(pair, texts, beta)
    readable = read_alike(pair.tokenizer, texts)
    return [
        each if alike and len(each) == len(ids) - 1 and response not in prompt else None
        for each, alike, ids, prompt, response in zip(
            found, readable, texts.response_ids, texts.prompts, texts.responses, strict=True
        )
    ]


def read_alike(tokenizer: Any, texts: Texts) -> list[bool]:
    """Whether prompt and response, joined as text, are cut into the tokens that tokenq reads."""
    whole = [a + b for a, b in zip(texts.prompts, texts.responses, strict=True)]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return [
        own == [*prompt, *response[:-1]]
        for own, prompt, response in zip(ids, texts.prompt_ids, texts.response_ids, strict=True)
    ]


def surprisals(model: Any, tokenizer: Any, texts: Texts) -> list[Tensor | None]:
    """Minus inseq's step score `probability` as a log-prob, nats: one forward a token."""
    found: list[Tensor | None] = []
    reads = _attributed(model, tokenizer, texts, "dummy", step_scores=["probability"])
    for (read, ids), alike in zip(reads, read_alike(tokenizer, texts), strict=True):
        scores = read.step_scores["probability"]
        found.append(-scores[:-1] if alike and len(scores) == len(ids) else None)
    return found


def gradient_inputs(model: Any, tokenizer: Any, texts: Texts) -> list[Tensor | None]:
    """inseq's `input_x_gradient` of each token's log-prob, added up over the tokens, nats.

    It attributes every token of the response to all before it: one forward and backward a token.
    The sum over them is the gradient times input of the response's log-prob.
    """
    found: list[Tensor | None] = []
    reads = _attributed(model, tokenizer, texts, "input_x_gradient", attributed_fn="probability")
    for (read, ids), alike in zip(reads, read_alike(tokenizer, texts), strict=True):
        products = read.target_attributions.sum(-1).nansum(1)[-len(ids) :]
        same = alike and read.target_attributions.shape[1] == len(ids)
        found.append(products[:-1] if same else None)
    return found


def _attributed(
    model: Any, tokenizer: Any, texts: Texts, method: str, **arguments: Any
) -> Iterator[tuple[Any, Sequence[int]]]:
    import inseq

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        reader = inseq.load_model(model, method, tokenizer=tokenizer, device="cpu")
    for prompt, response, ids in zip(
        texts.prompts, texts.responses, texts.response_ids, strict=True
    ):
        whole = prompt + response + tokenizer.decode(ids[-1:])
        torch.manual_seed(0)
        read = reader.attribute(
            prompt,
            whole,
            logprob=True,
            attribute_target=False,
            show_progress=False,
            skip_special_tokens=False,
            **arguments,
        )
        yield read.sequence_attributions[0], ids
