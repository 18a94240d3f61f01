"""What a demonstration run is made of."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenq.data.film_reviews import PairOptions
from tokenq.errors import UserError
from tokenq.storage import write_text

MODEL = "bundled:smollm2-135m-instruct"
FILE = "demo.json"


@dataclass(frozen=True)
class DemoSettings:
    """Defaults were chosen on the validation split of the film reviews; results are of the test
    split, which no choice has seen.

    pairs:         training pairs
    gap:           least difference of the two mean ratings of a training pair. A wide gap, for a
                   clear lesson from few pairs
    max_words:     longest text of a training pair, in words; None: any length
    held_out:      test pairs, whose texts no training pair holds
    held_out_gap:  the same of a test pair. Narrower: test pairs are harder than training pairs
    learning_rate: peak, of AdamW with cosine decay
    lora_r:        rank of the adapter, on all linear layers; its scale is twice the rank
    beta:          the KL penalty; implicit rewards are beta times nats
    batch_size:    pairs of one optimiser step
    token_budget:  input tokens of one forward
    beginnings:    first words of test texts that the trained policy writes on from
    seed:          draws pairs, their order and the adapter's first weights
    """

    pairs: int = 512
    gap: float = 2.0
    max_words: int | None = None
    held_out: int = 300
    held_out_gap: float = 1.0
    learning_rate: float = 5e-4
    lora_r: int = 16
    beta: float = 0.1
    batch_size: int = 8
    token_budget: int = 2048
    beginnings: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs", "held_out", "batch_size", "beginnings"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a number above 0")

    def train_options(self) -> PairOptions:
        """How training pairs are drawn (all there are; the short ones are taken from them)."""
        return PairOptions(gap=self.gap, seed=self.seed)

    def held_out_options(self) -> PairOptions:
        """How test pairs are drawn."""
        return PairOptions(gap=self.held_out_gap, seed=self.seed, pairs=self.held_out)


QUICK = DemoSettings(pairs=48, max_words=14, held_out=24, beginnings=6)
"""For a look at the machinery, and for tests: too little training for results worth quoting."""


def claim(folder: Path, settings: DemoSettings) -> None:
    """Let `folder` belong to these settings. Raises UserError if it holds a run with others."""
    path = folder / FILE
    wanted: dict[str, Any] = asdict(settings)
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise UserError(
                f"{folder} holds a demo with {name} {found.get(name)!r}, now it is "
                f"{wanted[name]!r}; accepted: another --out, or the same settings to go on"
            )
