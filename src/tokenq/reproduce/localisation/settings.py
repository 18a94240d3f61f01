"""What the localisation benchmark is run with. Chosen on the validation splits with seed 100."""

from dataclasses import asdict, dataclass, field
from typing import Any

from tokenq.reproduce.adapter_training import Recipe


@dataclass(frozen=True)
class FilmSettings:
    """pairs, gap, max_words: training pairs, least difference of their mean ratings, longest text
    in words; tests, test_words, split: texts to score, their most words, the split they are of;
    gradients: of how many of the texts gradients are taken, which cost a whole backward pass."""

    recipe: Recipe = field(default_factory=lambda: Recipe(10, 1e-3, 16))
    pairs: int = 300
    gap: float = 2.0
    max_words: int = 12
    tests: int = 400
    gradients: int = 100
    test_words: int = 18
    split: str = "test"


@dataclass(frozen=True)
class Settings:
    """model: any name that `load_policy` takes; layers: its last layers that carry the adapter,
    all below are frozen; the others: each task's own."""

    model: str = "bundled:smollm2-135m-instruct"
    layers: int = 6
    film: FilmSettings = field(default_factory=FilmSettings)

    def of_task(self, name: str) -> dict[str, Any]:
        """All that decides the results of one task, JSON types."""
        return {
            "model": self.model,
            "layers": self.layers,
            name: asdict(getattr(self, name)),
        }
