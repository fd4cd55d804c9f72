"""Linear layers in float32 on a CPU, multiplied by oneDNN.

torch leaves float32 to MKL, which is slow on processors that are not Intel's: on an AMD EPYC with AVX-512 one core
multiplies at 113 GFLOP/s by MKL and at 255 by oneDNN, which comes with torch too (experiments/LOG.md).

Axes: the last is a layer's input or output, those before it are batch and tokens.
"""

import torch
from torch import nn

#: oneDNN under a name of ours: what torch.compile calls it by takes constant weights alone.
library = torch.library.Library("icebreaker", "DEF")
library.define("multiply(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl(library, "multiply", "CPU")
def _multiply(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("icebreaker::multiply", lib=library)
def _shape(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


multiply = torch.ops.icebreaker.multiply.default  # x W^T + b, which has no gradient of its own


def use_onednn(model: nn.Module) -> None:
    """Every plain linear layer of `model`, those within adapters too, multiplies as above; its weights stay as they are."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """torch's own but for who multiplies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: what is not in float32 on a CPU, or under autocast, as torch does it."""
    is_plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    if not is_plain or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else multiply(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            multiply(grad, weight.t(), None) if needed[0] else None,
            multiply(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if needed[1] else None,
            rows.sum(0) if needed[2] else None,
        )
