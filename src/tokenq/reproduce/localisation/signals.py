"""From what models say of tokens to signals: one number a token, higher where it is suspicious."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tokenq.credit.aggregation import sum_over_spans, word_spans
from tokenq.reproduce.localisation.arms import CreditArm
from tokenq.reproduce.localisation.facts import Facts

Item = Mapping[str, Any]
Signals = dict[str, list[float]]


def start_signals(facts: Facts, items: Sequence[Item]) -> list[Signals]:
    """The controls that need no training, of each text.

    surprisal:          -log pi of the untrained model, nats
    words' surprisal:   summed over the word that the token is of
    entropy:            of the untrained model before the token, nats
    prompt information: surprisal with the prompt less surprisal without it, nats: pointwise mutual
                        information of token and prompt, sign turned
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
            "position": np.arange(len(logps)),
            "length": np.array([end - start for start, end in item["offsets"]]),
        }
        if number < len(facts["gradient x input"]):
            signals["gradient x input"] = -np.array(facts["gradient x input"][number])
        found.append(_lists(signals))
    return found


def arm_signals(arm: CreditArm, facts: Facts, start: Facts, items: Sequence[Item]) -> list[Signals]:
    """The signals of a trained arm, of each text; all in nats, beta not included.

    credit:         -(log pi - log pi_ref), the implicit reward with its sign turned
    centred:        the same less its mean under the reference at that state: with KL(pi_ref || pi)
                    taken off (core paper, eq. 16)
    words, centred words: both summed over the word that the token is of
    surprisal, entropy: of the trained policy
    from the start: of a policy trained after SFT: the log-ratio to the model before both
    logit:          of Q-RM: minus the raw logit of the token, which its loss scores
    gradient x input: of the log-ratio
    prefix difference: of a reward model: minus what the token adds to the reward

    A "sft" arm's credit is the contrast of the tuned and the untrained model.
    """
    found = []
    for number, item in enumerate(items):
        if arm.learner == "reward model":
            differences = -np.array(facts["prefix difference"][number])
            found.append(
                _lists({"prefix difference": differences, "words": over_words(differences, item)})
            )
            continue
        logps, before = np.array(facts["logps"][number]), np.array(start["logps"][number])
        reference = np.array(facts["ref_logps"][number]) if arm.after_sft else before
        blame = reference - logps
        centred = blame - np.array(facts["divergence"][number])
        signals = {
            "credit": blame,
            "centred": centred,
            "words": over_words(blame, item),
            "centred words": over_words(centred, item),
            "surprisal": -logps,
            "entropy": np.array(facts["entropy"][number]),
        }
        if arm.after_sft:
            signals["from the start"] = before - logps
        if "taken" in facts:
            signals["logit"] = -np.array(facts["taken"][number])
        gradients = facts.get("gradient x input", [])
        if number < len(gradients):
            ours, theirs = (np.array(each["gradient x input"][number]) for each in (facts, start))
            signals["gradient x input"] = theirs - ours
        found.append(_lists(signals))
    return found


def over_words(values: np.ndarray, item: Item) -> np.ndarray:
    """[T] each token's value replaced by the sum over the word that it lies in.

    A token in no word (punctuation, the end) keeps its own; one that reaches into several words has
    the greatest of their sums.
    """
    spans = word_spans(item["text"])
    sums = sum_over_spans(torch.tensor(values), item["offsets"], item["text"], spans).tolist()
    out = []
    for value, (start, end) in zip(values.tolist(), item["offsets"], strict=True):
        own = [
            total
            for total, (first, last) in zip(sums, spans, strict=True)
            if first < end and start < last
        ]
        out.append(max(own, default=value))
    return np.array(out)


def _lists(signals: Mapping[str, np.ndarray]) -> Signals:
    return {name: values.tolist() for name, values in signals.items()}
