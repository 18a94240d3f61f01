"""What a model says behind a sequence, the textbook way: the standard that trees are held to."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tokenq.models.branching.tree import TokenTree


@torch.no_grad()
def plain_logps(model: nn.Module, ids: list[int]) -> Tensor:
    """log pi(. | ids), [V]: one forward of the whole sequence, full logits."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def plain_rows(model: nn.Module, tree: TokenTree, nodes: Iterable[int]) -> Tensor:
    """log pi(. | node), [R, V], of nodes of a tree."""
    return torch.stack([plain_logps(model, tree.sequence(int(node))) for node in nodes])
