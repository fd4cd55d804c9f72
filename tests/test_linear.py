"""models/linear.py: oneDNN's products are torch's, in numbers and in gradients, and what is not plain is left to torch.

Not covered: that they are faster, which depends on the processor (experiments/LOG.md).
"""

import pytest
import torch
from torch import nn

from models.linear import Linear, use_onednn


def layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias)


def found(module, x):
    """Output, and the gradients of its sum of cubes."""
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    y = module(x)
    y.pow(3).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (1, 24), (2, 3, 24), (5, 2, 3, 24), (0, 24)])
def test_it_is_torchs_layer(shape, bias):
    module = layer(bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    views = [x, x.expand(4, *shape), x.new_ones(*shape[:-1], 48)[..., ::2], x.transpose(0, -2) if x.ndim > 2 else x]
    expected = [found(module, view) for view in views]
    use_onednn(module)
    assert type(module) is Linear
    for view, numbers in zip(views, expected, strict=True):
        for a, b in zip(found(module, view), numbers, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-4)
        with torch.inference_mode():
            assert torch.allclose(module(view), numbers[0], atol=1e-5)


def test_a_frozen_layer_passes_gradients_on_and_gets_none():
    module = layer().requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    use_onednn(module)
    module(x).sum().backward()
    assert torch.allclose(x.grad, module.weight.sum(0).expand(3, 24), atol=1e-5) and module.weight.grad is None


def test_other_precisions_are_torchs(monkeypatch):
    module, x = layer(), torch.randn(3, 24)
    expected = module(x)
    use_onednn(module)
    monkeypatch.setattr("models.linear.multiply", None)  # is not called
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(module(x).float(), expected, atol=0.05)
    assert module.double()(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="same dtype|mat1 and mat2"):
        module(x)


def test_only_plain_layers_change():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(layer(), Own(2, 2), nn.LayerNorm(2))
    use_onednn(model)
    assert [type(module) for module in model] == [Linear, Own, nn.LayerNorm]
