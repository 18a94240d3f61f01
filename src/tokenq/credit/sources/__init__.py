"""Where token scores come from: preference-trained pairs, reward models, and controls.

Every source gives the tokens of given responses one number each, as :class:`TokenScores`, so that
they can be moved to the tokens of another model or to words, and compared on one text.
"""

from tokenq.credit.sources.comparison import Aligned, Comparison, compare
from tokenq.credit.sources.controls import (
    Contrast,
    Entropy,
    Length,
    Position,
    PromptInformation,
    Surprisal,
)
from tokenq.credit.sources.dataset import Agreement, compare_dataset
from tokenq.credit.sources.discriminative_policy import DiscriminativePolicy
from tokenq.credit.sources.gradient_input import GradientInput, input_embeddings
from tokenq.credit.sources.implicit_reward import Estimated, ImplicitReward, Oracle
from tokenq.credit.sources.language_model import LanguageModel, shared_forwards
from tokenq.credit.sources.outcome_model import (
    OutcomeEncoder,
    OutcomeModel,
    continues_text,
    open_outcome_model,
)
from tokenq.credit.sources.projection import on_spans, project
from tokenq.credit.sources.scores import RowError, TokenScores, TokenSource

__all__ = [
    "Agreement",
    "Aligned",
    "Comparison",
    "Contrast",
    "DiscriminativePolicy",
    "Entropy",
    "Estimated",
    "GradientInput",
    "ImplicitReward",
    "LanguageModel",
    "Length",
    "Oracle",
    "OutcomeEncoder",
    "OutcomeModel",
    "Position",
    "PromptInformation",
    "RowError",
    "Surprisal",
    "TokenScores",
    "TokenSource",
    "compare",
    "compare_dataset",
    "continues_text",
    "input_embeddings",
    "on_spans",
    "open_outcome_model",
    "project",
    "shared_forwards",
]
