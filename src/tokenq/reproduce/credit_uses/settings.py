"""What the three uses are measured with. Models and recipes are those of `localisation`."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.localisation.settings import FilmSettings, PlantedSettings, Settings


@dataclass(frozen=True)
class FilmUse:
    """Ranking and cleaning.

    film:      training pairs, their recipe, and the held-out texts that are scored
    test_gap:  least difference of the mean ratings of two held-out texts that make a pair
    groups:    how many texts are ranked together
    rates:     shares of the held-out labels that are exchanged
    memorised: so many of the held-out pairs are trained on, in the control that cleans the pairs
               that it was trained on, at the shares `control`; epochs: how often it sees them
    """

    film: FilmSettings = field(default_factory=FilmSettings)
    test_gap: float = 1.0
    groups: tuple[int, ...] = (2, 4, 8)
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    memorised: int = 80
    control: tuple[float, ...] = (0.2,)
    epochs: int = 2

    @property
    def memorising(self) -> Recipe:
        """The recipe of the control."""
        return replace(self.film.recipe, epochs=self.epochs)


@dataclass(frozen=True)
class LocateUse:
    """Locating.

    planted: training pairs and summaries
    rates:   stated shares of good summaries in which anything may be flagged
    splits:  ways to part the packages into those that calibrate and those that are judged
    """

    planted: PlantedSettings = field(default_factory=PlantedSettings)
    rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    splits: int = 20


@dataclass(frozen=True)
class UsesSettings:
    """model, layers: as in `localisation`; beta: scales all margins; resamples: of a bootstrap."""

    model: str = Settings().model
    layers: int = Settings().layers
    beta: float = 0.1
    film: FilmUse = field(default_factory=FilmUse)
    locate: LocateUse = field(default_factory=LocateUse)
    resamples: int = 1000

    @property
    def localisation(self) -> Settings:
        """Of the runs whose tables are read."""
        return Settings(self.model, self.layers, film=self.film.film, planted=self.locate.planted)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


_SMALL = Recipe(batch_size=4, learning_rate=1e-3, lora_r=4)
QUICK = UsesSettings(
    layers=1,
    film=FilmUse(
        FilmSettings(_SMALL, pairs=16, max_words=8, tests=60, gradients=2, test_words=10),
        groups=(2, 4),
        rates=(0.0, 0.25),
        memorised=12,
        control=(0.25,),
    ),
    locate=LocateUse(
        PlantedSettings(_SMALL, pairs=24, prompt_words=40, tests=24, gradients=2),
        rates=(0.2,),
        splits=2,
    ),
    resamples=100,
)
"""Small enough to see that everything runs; too small for numbers to quote."""
