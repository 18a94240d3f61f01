"""From what models say of tokens to signals: one number a token, higher where it is suspicious."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenq.credit.aggregation import word_spans
from tokenq.credit.estimators import ESTIMATORS, word_sums
from tokenq.credit.localisation import tokens_within
from tokenq.credit.result import Credit
from tokenq.credit.vocabulary import StateFacts
from tokenq.demo.words import words_of
from tokenq.reproduce.localisation.arms import CreditArm
from tokenq.reproduce.localisation.facts import Facts
from tokenq.reproduce.localisation.material import Prompt

Item = Mapping[str, Any]
Signals = dict[str, list[float]]


def start_signals(facts: Facts, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[Signals]:
    """The controls that need no training, of each text; `prompts` are those that texts answer.

    surprisal:          -log pi of the untrained model, nats
    words' surprisal:   summed over the word that the token is of
    entropy:            of the untrained model before the token, nats
    prompt information: surprisal with the prompt less surprisal without it, nats: pointwise mutual
                        information of token and prompt, sign turned
    not in the prompt:  1 for a token of a word that the prompt does not hold, else 0: who writes
                        summaries copies, and what is not copied may be wrong. No model is needed
    position:           number of the token, from 0
    length:             characters of the token
    gradient x input:   of the untrained model's log-probability; only of the texts it was taken of
    """
    found = []
    for number, item in enumerate(items):
        logps = np.array(facts["logps"][number])
        bare = np.array(facts["logps without prompt"][number])
        signals = {
            "surprisal": -logps,
            "words' surprisal": over_words(-logps, item),
            "entropy": np.array(facts["entropy"][number]),
            "prompt information": bare - logps,
            "not in the prompt": not_in_prompt(item, prompts[number]),
            "position": np.arange(len(logps)),
            "length": np.array([end - start for start, end in item["offsets"]]),
        }
        if number < len(facts["gradient x input"]):
            signals["gradient x input"] = -np.array(facts["gradient x input"][number])
        found.append(_lists(signals))
    return found


def arm_signals(arm: CreditArm, facts: Facts, start: Facts, items: Sequence[Item]) -> list[Signals]:
    """The signals of a trained arm, of each text; all in nats, beta not included.

    (every name of `credit.estimators.ESTIMATORS`): that estimate with its sign turned. "plain" is
                        -(log pi - log pi_ref); of an "sft" arm the contrast of tuned and untrained
    surprisal, entropy: of the trained policy
    from the start:     of a policy trained after SFT: the log-ratio to the model before both
    logit:              of Q-RM: minus the raw logit of the token, which its loss scores
    gradient x input:   of the log-ratio
    prefix difference, prefix difference, words: of a reward model: minus what the token, or the
                        word that it is of, adds to the reward
    """
    found = []
    for number, item in enumerate(items):
        if arm.learner == "reward model":
            differences = -np.array(facts["prefix difference"][number])
            signals = {
                "prefix difference": differences,
                "prefix difference, words": over_words(differences, item),
            }
        else:
            credit = _credit(arm, facts, start, item, number)
            signals = {name: -each.read(credit).numpy() for name, each in ESTIMATORS.items()}
            signals["surprisal"] = credit.surprisals.numpy()
            signals["entropy"] = credit.entropies.numpy()
            if arm.after_sft:
                signals["from the start"] = np.array(start["logps"][number]) - credit.logps.numpy()
            if "taken" in facts:
                signals["logit"] = -np.array(facts["taken"][number])
            gradients = facts.get("gradient x input", [])
            if number < len(gradients):
                theirs = np.array(start["gradient x input"][number])
                signals["gradient x input"] = theirs - np.array(gradients[number])
        found.append(_lists(signals))
    return found


def _credit(arm: CreditArm, facts: Facts, start: Facts, item: Item, number: int) -> Credit:
    """The saved facts of one text as a `Credit` with beta 1 and without its models."""

    def own(name: str) -> Tensor:
        return torch.tensor(facts[name][number], dtype=torch.float64)

    logps = own("logps")
    nothing = torch.full_like(logps, torch.nan)
    if arm.after_sft:
        ref_logps, ref_entropy = own("ref_logps"), nothing
    else:
        ref_logps, ref_entropy = (
            torch.tensor(start[name][number], dtype=torch.float64) for name in ("logps", "entropy")
        )
    state = StateFacts(
        logps=logps,
        ref_logps=ref_logps,
        entropy=own("entropy"),
        ref_entropy=ref_entropy,
        divergence=own("divergence"),
        policy_divergence=own("policy_divergence"),
        ratio_variance=own("ratio_variance"),
        normaliser=nothing,
        taken=nothing,
    )
    return Credit(
        prompt="",
        response=item["text"],
        beta=1.0,
        token_ids=(0,) * len(logps),
        tokens=("",) * len(logps),
        offsets=tuple((start, end) for start, end in item["offsets"]),
        logps=logps,
        ref_logps=ref_logps,
        policy_name=arm.name,
        reference_name="sft" if arm.after_sft else "start",
        facts=state,
    )


def not_in_prompt(item: Item, prompt: Prompt) -> np.ndarray:
    """[T] 1 for a token of a word that the prompt does not hold, else 0."""
    turns = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    held = {word for turn in turns for word in words_of(turn)}
    text = item["text"]
    new = [(start, end) for start, end in word_spans(text) if text[start:end].lower() not in held]
    offsets = [(start, end) for start, end in item["offsets"]]
    return tokens_within(text, offsets, new).astype(float)


def over_words(values: np.ndarray, item: Item) -> np.ndarray:
    """[T] each token's value replaced by the sum over its word."""
    return word_sums(torch.tensor(values), item["offsets"], item["text"]).numpy()


def _lists(signals: Mapping[str, np.ndarray]) -> Signals:
    return {name: values.tolist() for name, values in signals.items()}
