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
    pairs: int = 320
    gap: float = 2.0
    max_words: int = 12
    tests: int = 300
    gradients: int = 80
    test_words: int = 18
    split: str = "test"


@dataclass(frozen=True)
class PlantedSettings:
    """pairs: training pairs, as many of each kind of error; prompt_words: longest prompt; tests:
    packages to score, each with a wrong summary and three true ones; split, gradients: as above."""

    recipe: Recipe = field(default_factory=lambda: Recipe(10, 1e-3, 16))
    pairs: int = 320
    prompt_words: int = 75
    tests: int = 100
    gradients: int = 160
    split: str = "test"


@dataclass(frozen=True)
class SummEditsSettings:
    """domains: None: all; document_words: how much of a document is shown; pairs: training pairs;
    tests: most inconsistent and most consistent edits to score, beside the summaries they are of;
    split, gradients: as above. Documents are few: pairs of one stay in one step."""

    recipe: Recipe = field(default_factory=lambda: Recipe(10, 1e-3, 16, in_order=True))
    domains: tuple[str, ...] | None = ("ectsum", "news")
    document_words: int = 160
    pairs: int = 140
    tests: int = 80
    gradients: int = 40
    split: str = "test"


@dataclass(frozen=True)
class QaSettings:
    """questions: training questions, each with up to six decided comparisons; passage_words: how
    much of the passages is shown; tests: answers to score; split, gradients: as above."""

    recipe: Recipe = field(default_factory=lambda: Recipe(10, 1e-3, 16, in_order=True))
    questions: int = 36
    passage_words: int = 110
    tests: int = 83
    gradients: int = 30
    split: str = "test"


@dataclass(frozen=True)
class SurfaceSettings:
    """film: whose training pairs, split and longest text are taken; tests, test_gap: held-out pairs
    and the least difference of their mean ratings."""

    film: FilmSettings = field(default_factory=FilmSettings)
    tests: int = 60
    test_gap: float = 1.0
    gradients: int = 0

    @property
    def recipe(self) -> Recipe:
        """That of the film pairs."""
        return self.film.recipe


@dataclass(frozen=True)
class Settings:
    """model: any name that `load_policy` takes; layers: its last layers that carry the adapter,
    all below are frozen; the others: each task's own."""

    model: str = "bundled:smollm2-135m-instruct"
    layers: int = 6
    film: FilmSettings = field(default_factory=FilmSettings)
    planted: PlantedSettings = field(default_factory=PlantedSettings)
    summedits: SummEditsSettings = field(default_factory=SummEditsSettings)
    qa: QaSettings = field(default_factory=QaSettings)
    surface: SurfaceSettings = field(default_factory=SurfaceSettings)

    def of_task(self, name: str) -> dict[str, Any]:
        """All that decides the results of one task, JSON types."""
        return {
            "model": self.model,
            "layers": self.layers,
            name: asdict(getattr(self, name)),
        }
