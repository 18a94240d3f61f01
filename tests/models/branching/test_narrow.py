"""Products with few rows: the numbers of the ordinary product, and nothing left behind."""

import pytest
import torch
from torch import nn

from tokenq.models.branching.narrow import narrow_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 40), (40, 12), (16, 16)])
def test_every_number_of_rows(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    for shape in ((1,), (1, 1), (1, 5), (2, 3), (8,), (9,), (1, 30), (0,)):
        x = torch.randn(*shape, inputs, dtype=dtype)
        want = layer(x)
        with narrow_products(nn.Sequential(layer)):
            got = layer(x)
            other = layer(x.transpose(0, -1).contiguous().transpose(0, -1))
        assert got.shape == want.shape
        assert got.is_contiguous()
        coarse = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got, want, rtol=coarse, atol=coarse)
        torch.testing.assert_close(other, want, rtol=coarse, atol=coarse)


def test_layers_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    hooked = model[1].forward = lambda x: 2 * x  # type: ignore[method-assign]
    with narrow_products(model):
        assert model[1].forward is hooked, "a layer that somebody else has changed stays"
        assert "forward" in model[0].__dict__
    assert "forward" not in model[0].__dict__
    assert model[1].forward is hooked
