"""What `tokenq reproduce beam` is run with."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenq.reproduce.adapter_training import Recipe

FILM, DEBIAN = "film", "debian"
TASKS = (FILM, DEBIAN)
WIDTHS = (1, 2, 3, 5, 7, 10, 20)
"""Numbers of beams of the first seed of the middle beta and of the controls."""
FEW_WIDTHS = (1, 5, 20)
"""Those of the other seeds and betas: what the claim is about."""

_DECODED = ("prompts", "start_words", "widths", "written")
"""Settings that training does not depend on."""


@dataclass(frozen=True)
class FilmSettings:
    """Film review sentences that go on from given first words.

    sft:          texts that the reference is tuned on
    pairs:        training pairs of each seed
    gap:          least difference of the mean ratings of a pair
    words:        fewest and most words of a text that is trained on
    prompts:      beginnings to go on from
    start_words:  words of a beginning
    new_tokens:   most tokens that are written, the end token included
    widths:       numbers of beams
    """

    sft: int = 1200
    pairs: int = 400
    gap: float = 1.5
    words: tuple[int, int] = (6, 16)
    prompts: int = 256
    start_words: int = 5
    new_tokens: int = 20
    widths: tuple[int, ...] = WIDTHS


@dataclass(frozen=True)
class DebianSettings:
    """One-line summaries of software packages.

    sft:           descriptions with their maintainers' synopses that the reference is tuned on
    pairs:         training pairs of each seed, of packages that the reference was not tuned on
    pool:          packages that the pairs of all seeds are drawn from
    judge:         pairs that the judge is trained on, of other packages
    held_out:      pairs that the judge is tested on, of other packages again
    prompts:       packages to summarise
    prompt_tokens: most tokens of a description
    new_tokens:    most tokens of a sample that is trained against, the end token included
    written:       most tokens that are decoded, the end token included
    widths:        numbers of beams
    """

    sft: int = 400
    pairs: int = 240
    pool: int = 320
    judge: int = 280
    held_out: int = 100
    prompts: int = 256
    prompt_tokens: int = 60
    new_tokens: int = 16
    written: int = 24
    widths: tuple[int, ...] = (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class BeamSettings:
    """model: any name that `load_policy` takes; layers: its last layers that training changes;
    dtype: of decoding and scoring; resamples: of the bootstrap over prompts."""

    model: str = "bundled:smollm2-135m-instruct"
    layers: int = 8
    sft: Recipe = field(default_factory=lambda: Recipe(16, 1e-3, 16))
    preferences: Recipe = field(default_factory=lambda: Recipe(10, 1e-3, 16))
    betas: tuple[float, ...] = (0.1, 0.03, 0.3)
    few_widths: tuple[int, ...] = FEW_WIDTHS
    dtype: str = "bfloat16"
    film: FilmSettings = field(default_factory=FilmSettings)
    debian: DebianSettings = field(default_factory=DebianSettings)
    resamples: int = 1000

    def training(self, task: str) -> dict[str, Any]:
        """All that decides how the policies and the judge of a task are trained, JSON types."""
        own = asdict(getattr(self, task))
        for name in _DECODED:
            own.pop(name, None)
        return {
            "model": self.model,
            "layers": self.layers,
            "sft": asdict(self.sft),
            "preferences": asdict(self.preferences),
            task: own,
        }

    def of_task(self, task: str) -> dict[str, Any]:
        """All that decides what the policies of a task write, JSON types."""
        own = asdict(getattr(self, task))
        del own["widths"]
        return {**self.training(task), task: own, "dtype": self.dtype}

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


_SMALL = Recipe(batch_size=4, learning_rate=1e-3, lora_r=4)
QUICK = replace(
    BeamSettings(),
    layers=1,
    sft=_SMALL,
    preferences=_SMALL,
    betas=(0.1,),
    few_widths=(1, 2),
    film=FilmSettings(sft=8, pairs=8, prompts=4, new_tokens=5, widths=(1, 2, 3)),
    debian=DebianSettings(
        sft=8,
        pairs=8,
        pool=12,
        judge=8,
        held_out=6,
        prompts=4,
        prompt_tokens=40,
        new_tokens=5,
        written=5,
        widths=(1, 2),
    ),
    resamples=50,
)
"""Small enough to see that everything runs; too small for numbers to quote."""
