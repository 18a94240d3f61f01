"""Training: `PreferenceConfig` and `PreferenceTrainer` on transformers' Trainer and accelerate."""

from tokenq.training.config import PreferenceConfig
from tokenq.training.trainer import PreferenceTrainer

__all__ = ["PreferenceConfig", "PreferenceTrainer"]
