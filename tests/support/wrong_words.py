"""A made-up task of credit localisation: tiny texts of which the wrong word is known."""

from tiny_training import BAD, GOOD, SUBJECTS

from tokenq.reproduce.localisation.material import TestText, TrainingPair

LAYERS = 3
"""Of the tiny model that is trained on it."""


def training_pairs(seed: int, variant: str) -> list[TrainingPair]:
    """Eight pairs whose order and sides do not depend on the seed or the variant."""
    return [
        TrainingPair(f"Say: {subject} ", f"{good}.", f"{bad}.")
        for subject, good, bad in zip(2 * SUBJECTS[:4], 2 * GOOD, 2 * BAD, strict=True)
    ]


def wrong_and_right_texts() -> list[TestText]:
    """Two subjects, each with a text that has a wrong word and one that has none."""
    texts = []
    for subject in SUBJECTS[:2]:
        prompt = f"Say: {subject} "
        texts.append(TestText(f"{subject}:bad", subject, "bad", prompt, "is dull", ((3, 7),)))
        texts.append(TestText(f"{subject}:good", subject, "truthful", prompt, "shines", ()))
    return texts
