"""Run under ``torchrun``: a reference sharded by FSDP2 hashes like the whole one and fills a cache.

Arguments: MODEL ROOT ROWS. Every rank prints the hash and what it computed.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from tokenq.models.fingerprint import weight_hash
from tokenq.models.forward import enable_packed
from tokenq.models.reference_cache import ReferenceCache


def main(model: str, root: str, rows: str) -> None:
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    reference = AutoModelForCausalLM.from_pretrained(model)
    # Its self-check calls parts of the model, which a shard cannot answer.
    enable_packed(reference)
    for layer in reference.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(reference, mesh=mesh)
    prompts, responses = json.loads(Path(rows).read_text())
    cache = ReferenceCache.open(reference, root)
    computed = cache.fill(prompts, responses, token_budget=64, progress=False).computed
    cache.lookup(prompts, responses)
    result = {"hash": weight_hash(reference), "computed": computed}
    name = f"rank{os.environ['RANK']}.json"
    (Path(root).parent / name).write_text(json.dumps(result))
    # A rank that leaves while the other still talks to it can take that one down at exit.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
