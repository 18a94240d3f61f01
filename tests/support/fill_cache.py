"""A process that fills a reference cache: ``fill_cache.py MODEL ROOT ROWS FLUSH_SECONDS [PAUSE]``.

ROWS is a JSON file of prompts and responses. PAUSE seconds are slept before each chunk is scored,
so that a test can kill the process in the middle. Prints how many rows it computed.
"""

import json
import sys
import time
from pathlib import Path

import torch.distributed
from transformers import AutoModelForCausalLM

from tokenq.models import reference_cache
from tokenq.models.reference_cache import ReferenceCache


class SlowCache(ReferenceCache):
    pause = 0.0

    def _score(self, rows, keys, token_budget):  # type: ignore[no-untyped-def]
        time.sleep(self.pause)
        return super()._score(rows, keys, token_budget)


def main(model: str, root: str, rows: str, flush_seconds: str, pause: str = "0") -> None:
    reference_cache.FLUSH_SECONDS = float(flush_seconds)
    SlowCache.pause = float(pause)
    prompts, responses = json.loads(Path(rows).read_text())
    cache = SlowCache.open(AutoModelForCausalLM.from_pretrained(model), root)
    print("ready", flush=True)
    report = cache.fill(prompts, responses, token_budget=64, progress=False)
    cache.lookup(prompts, responses)
    print(json.dumps({"computed": report.computed, "found": report.found}), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
