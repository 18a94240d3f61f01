"""`credit`: one response of one prompt, read with a policy and its reference."""

from collections.abc import Sequence

from torch import Tensor

from tokenq.credit.result import Credit, token_texts
from tokenq.credit.vocabulary import VocabularyReader, token_text
from tokenq.data.encoding import EncodedResponse, encode
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.logps import token_logps
from tokenq.models.pair import Pair, context_length, reference_of
from tokenq.models.reference import scoring


def credit(
    pair: Pair, prompt: str | Messages, response: str | Messages, beta: float = 0.1
) -> Credit:
    """Return what each token of `response`, and its end, is worth to `pair.policy`.

    prompt:   text, which the response follows directly, or messages for the chat template
    response: text, or messages that end with the answer
    beta:     the KL penalty that the policy was trained with; scales all rewards

    Raises UserError for a pair without a reference, an empty response, a response that the chat
    template rewrites, or more tokens than the models can read.
    """
    reference = reference_of(pair)
    encoded = encode(pair.tokenizer, prompt, response)
    longest, length = context_length(pair), len(encoded.prompt_ids) + len(encoded.response_ids)
    if longest is not None and length > longest:
        raise UserError(
            f"prompt and response have {length} tokens; accepted: {longest}, what the models read"
        )
    ids = [encoded.prompt_ids], [encoded.response_ids]
    with scoring(pair.policy) as model:
        [logps] = token_logps(model, *ids)
    with scoring(reference) as model:
        [ref_logps] = token_logps(model, *ids)
    reader = VocabularyReader(pair, encoded.prompt_ids, encoded.response_ids)
    return assemble(pair, prompt, response, encoded, (logps, ref_logps), beta, reader)


def assemble(
    pair: Pair,
    prompt: str | Messages,
    response: str | Messages,
    encoded: EncodedResponse,
    scores: Sequence[Tensor],
    beta: float,
    vocabulary: VocabularyReader | None,
) -> Credit:
    """Join a response's text and its `scores` (log-probs under policy and reference, [T] each)."""
    text = response if isinstance(response, str) else response[-1]["content"]
    names = [token_text(pair.tokenizer, token) for token in encoded.response_ids]
    logps, ref_logps = (each.detach().cpu() for each in scores)
    return Credit(
        prompt=prompt,
        response=text,
        beta=beta,
        token_ids=tuple(encoded.response_ids),
        tokens=token_texts(text, encoded.offsets, names),
        offsets=tuple(encoded.offsets),
        logps=logps,
        ref_logps=ref_logps,
        policy_name=pair.policy_name,
        reference_name=pair.reference_name or "the reference",
        vocabulary=vocabulary,
    )
