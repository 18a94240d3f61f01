"""What decides the results of `tokenq reproduce displacement`."""

from dataclasses import asdict, dataclass
from typing import Any

LEVELS = (2.0, 4.0, 8.0)
"""Margins at which single pairs are read: growth of log pi(y+)/pi(y-) since the start, nats."""
MARGINS = (1.0, 2.0, 4.0)
"""Mean held-out margins at which objectives are compared, nats (no beta)."""


@dataclass(frozen=True)
class DisplacementSettings:
    """Sizes and rates.

    layers:      last layers of the model that are trained, by LoRA of rank `lora_r`
    gap:         least |mean rating| of a film sentence, -4..4, so that its answer is clear
    max_words:   of a film sentence
    prompts:     training prompts, one pair each
    held_out:    prompts that no training sees
    tuning_rate, tuning_epochs: of supervised tuning before all else, a new one in each seed
    near, opposite, evasive: single pairs of each kind and seed
    single_rate, single_steps: learning rate and most steps on one pair
    rate, batch_size, steps: of training on the whole data set; constant after five steps of warm-up
    readings:    steps after which held-out prompts are read
    beta:        of DPO on single pairs
    """

    model: str = "bundled:smollm2-135m-instruct"
    layers: int = 2
    lora_r: int = 8
    gap: float = 1.5
    max_words: int = 14
    prompts: int = 96
    held_out: int = 16
    tuning_rate: float = 1e-3
    tuning_epochs: int = 8
    near: int = 24
    opposite: int = 6
    evasive: int = 6
    single_rate: float = 5e-4
    single_steps: int = 60
    rate: float = 6e-4
    batch_size: int = 8
    steps: int = 32
    readings: tuple[int, ...] = (4, 8, 12, 16, 20, 24, 28, 32)
    beta: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "readings": list(self.readings)}


QUICK = DisplacementSettings(
    layers=1,
    lora_r=4,
    prompts=12,
    held_out=4,
    tuning_epochs=1,
    near=3,
    opposite=2,
    evasive=2,
    single_steps=6,
    steps=4,
    readings=(2, 4),
)
