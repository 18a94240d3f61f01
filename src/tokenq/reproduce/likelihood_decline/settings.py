"""What `tokenq reproduce decline` is run with."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenq.reproduce.adapter_training import Recipe
from tokenq.reproduce.beam_decoding.settings import DEBIAN, FILM, BeamSettings
from tokenq.reproduce.beam_decoding.settings import QUICK as QUICK_BEAM

TASKS = (FILM, DEBIAN)

CHOSEN, NONE, OTHER, REJECTED = "sft chosen", "no sft", "sft other", "sft rejected"
ARMS = (CHOSEN, NONE, OTHER, REJECTED)
"""What the start, which is DPO's reference, was tuned on: the chosen answers of its own pairs;
nothing; as many answers of the same kind to other prompts, or other sentences; the rejected ones.
The first two are the claim's, the others can sink it."""
_OF_READING = (
    "read",
    "read_of_controls",
    "trained",
    "held_out",
    "responses",
    "new_tokens",
    "written",
)
"""Settings that training does not depend on."""


@dataclass(frozen=True)
class DeclineSettings:
    """What is the same for every run.

    model:       any name that `load_policy` takes
    layers:      its last layers that training changes
    beta:        of DPO
    pairs:       training pairs of each seed, at most
    gap:         least difference of the mean ratings of two film sentences
    words:       fewest and most words of a film sentence
    sft, dpo:    how an adapter is trained
    checkpoints: steps of DPO at which the adapter is kept; the last step is kept as well
    read:        of these checkpoints those that are read, with the last one, of the claim's arms
    read_of_controls: of the other arms
    trained, held_out: pairs that are read at each checkpoint
    responses:   responses of the reference, drawn once for each reference
    new_tokens:  most tokens of such a response, and of those that the policy writes at the end
    written:     how many it writes there
    samples:     the settings of `tokenq reproduce beam`, whose tuned model wrote the rejected
                 summaries
    """

    model: str = "bundled:smollm2-135m-instruct"
    layers: int = 8
    beta: float = 0.1
    pairs: int = 200
    gap: float = 1.5
    words: tuple[int, int] = (6, 16)
    sft: Recipe = field(default_factory=lambda: Recipe(8, 1e-3, 16))
    dpo: Recipe = field(default_factory=lambda: Recipe(8, 5e-4, 16, epochs=2))
    checkpoints: tuple[int, ...] = (0, 2, 4, 8, 16, 25, 36)
    read: tuple[int, ...] = (4, 8, 16, 25, 36)
    read_of_controls: tuple[int, ...] = (8, 25)
    trained: int = 32
    held_out: int = 32
    responses: int = 64
    new_tokens: int = 32
    written: int = 32
    samples: BeamSettings = field(default_factory=BeamSettings)

    def training(self, task: str) -> dict[str, Any]:
        """All that decides how the policies of a task are trained, JSON types."""
        own = asdict(self)
        for name in (*_OF_READING, "samples"):
            del own[name]
        if task == DEBIAN:
            return {**own, "samples": self.samples.training(DEBIAN)}
        return own

    def read_of(self, arm: str) -> tuple[int, ...]:
        """Steps of an arm that are read beside the last one."""
        return self.read if arm in (CHOSEN, NONE) else self.read_of_controls

    def reading(self, task: str) -> dict[str, Any]:
        """All that decides what is read of them, JSON types."""
        probe = {name: getattr(self, name) for name in _OF_READING}
        return {**self.training(task), "probe": probe}

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**self.reading(FILM), "samples": self.samples.training(DEBIAN)}


_SMALL = Recipe(batch_size=4, learning_rate=1e-3, lora_r=4)
QUICK = DeclineSettings(
    layers=1,
    pairs=8,
    sft=_SMALL,
    dpo=replace(_SMALL, epochs=2),
    checkpoints=(0, 1, 3),
    read=(1, 3),
    read_of_controls=(3,),
    trained=4,
    held_out=4,
    responses=8,
    new_tokens=6,
    written=4,
    samples=QUICK_BEAM,
)
"""Small enough to see that everything runs; too small for numbers to quote."""
