"""`credit`: one response of one prompt, read with a policy and its reference."""

from collections.abc import Sequence

from torch import Tensor

from tokenq.credit.answers import Answer, read_answer
from tokenq.credit.result import Credit, token_texts
from tokenq.credit.vocabulary import StateFacts, VocabularyReader, token_text
from tokenq.data.formats import Messages
from tokenq.errors import UserError
from tokenq.models.pair import Pair, context_length, reference_of


def credit(
    pair: Pair, prompt: str | Messages, response: str | Messages, beta: float = 0.1
) -> Credit:
    """Return what each token of `response`, and its end, is worth to `pair.policy`.

    prompt:   text, which the response follows directly, or messages for the chat template
    response: text, or messages that end with the answer. Of several messages the first is the
              model's own; `Credit.response` is then all of it as the chat template writes it, and
              what others wrote in between has no reward
    beta:     the KL penalty that the policy was trained with; scales all rewards

    Both models run here, once; what the credit tells later is of this moment. It keeps the states
    of both, two numbers of the hidden size for each token, for `alternatives`; without them:
    `dataclasses.replace(credit, vocabulary=None)`.

    Raises UserError for a pair without a reference, an empty response, a response that the chat
    template rewrites or whose turns it does not tell apart, or more tokens than the models can
    read.
    """
    reference_of(pair)
    answer = read_answer(pair.tokenizer, prompt, response)
    encoded = answer.encoded
    longest, length = context_length(pair), len(encoded.prompt_ids) + len(encoded.response_ids)
    if longest is not None and length > longest:
        raise UserError(
            f"prompt and response have {length} tokens; accepted: {longest}, what the models read"
        )
    reader = VocabularyReader(pair, encoded.prompt_ids, encoded.response_ids)
    facts = reader.facts
    scores = facts.logps, facts.ref_logps
    return assemble(pair, prompt, answer, scores, beta, facts=facts, vocabulary=reader)


def assemble(
    pair: Pair,
    prompt: str | Messages,
    answer: Answer,
    scores: Sequence[Tensor],
    beta: float,
    *,
    facts: StateFacts | None = None,
    vocabulary: VocabularyReader | None = None,
) -> Credit:
    """Join an answer and its `scores` (log-probs under policy and reference, [T] each)."""
    encoded = answer.encoded
    names = [token_text(pair.tokenizer, token) for token in encoded.response_ids]
    logps, ref_logps = (each.detach().cpu() for each in scores)
    return Credit(
        prompt=prompt,
        response=answer.text,
        beta=beta,
        token_ids=tuple(encoded.response_ids),
        tokens=token_texts(answer.text, encoded.offsets, names),
        offsets=tuple(encoded.offsets),
        logps=logps,
        ref_logps=ref_logps,
        policy_name=pair.policy_name,
        reference_name=pair.reference_name or "the reference",
        vocabulary=vocabulary,
        facts=facts,
        turn_numbers=answer.turns,
    )
