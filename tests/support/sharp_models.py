"""Small models whose searches have something to decide."""

import torch
from small_pairs import random_model
from transformers import PreTrainedModel

END = 2


def sharp(family: str, vocabulary: int, seed: int) -> PreTrainedModel:
    """A random model that is sure of some of its tokens, often of the end token."""
    model = random_model(family, vocabulary, seed)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.mul_(4.0 if family == "gpt2" else 3.0)
        weight[END] *= 1.5
    return model
