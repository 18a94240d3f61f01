"""Training that stops, and says why, at the first loss or gradient that is not finite."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from tokenq.training import failures
from tokenq.training.config import PreferenceConfig


class FiniteTrainer(Trainer):
    """A Trainer that looks at the gradients before they are clipped or used.

    traces: what the micro-batches of the current optimiser step computed.
    """

    args: PreferenceConfig
    traces: list[failures.Trace]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.accelerator.unscale_gradients()
        norm = self._finite_grad_norm(model)
        gradients = [p for p in model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(gradients, self.args.max_grad_norm, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return grad_norm
        norm = self._finite_grad_norm(model)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _finite_grad_norm(self, model: nn.Module) -> Tensor:
        """Return the norm of the unchanged gradients; raises UserError if it is not finite."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # With fp16 an overflow is the scaler's business: it skips the step and scales down.
        if self.accelerator.scaler is None:
            self._refuse_not_finite(model, whole)
        return norm

    def _refuse_not_finite(self, model: nn.Module, norm: Tensor) -> None:
        losses = [
            value
            for trace in self.traces
            for name, value in trace.tensors.items()
            if name.startswith("loss ")
        ]
        healthy = torch.isfinite(torch.stack([norm.detach(), *losses])).all()
        if self.all_processes([float(healthy)]).all():
            return
        found = gather_object([failures.describe(self.traces, model)])
        blamed = [part for part in found if not part[1] or "gradient of" not in part[1][0]] or found
        rows = sorted({row for part in blamed for row in part[0]})
        tensors = sorted({name for part in blamed for name in part[1]})
        finding = failures.Finding(self.state.global_step + 1, rows, tensors)
        path = self.args.folder / failures.FILE
        if self.is_world_process_zero():
            finding.save(path)
        raise finding.error(path)

    def all_processes(self, values: list[float]) -> Tensor:
        """Return the [processes, n] values of every process."""
        local = torch.tensor(values, dtype=torch.float64)
        if self.args.world_size == 1:
            return local[None]
        on_device = local.to(self.args.device)
        return self.accelerator.gather(on_device[None]).cpu()
