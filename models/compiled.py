"""torch.compile for training: the layers of a model, which are alike and so are one graph."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compiles each of transformers' layers in `model` at its first use: once for training, once for each adapter that
    reads, for batches and lengths of every size.

    Raises ValueError where torch cannot compile here, or `model` has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"torch_compile: {type(model).__name__} has no layers that transformers knows; leave it out")
    check_compiler(device)
    for layer in layers:
        layer.compile(dynamic=True, recompile_limit=64)  # beyond it torch would go on eagerly, without a word


def check_compiler(device: torch.device) -> None:
    """Compiles next to nothing, to find out before any training."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(2, device=device))
    except Exception as error:
        said = " ".join(str(error).split("\n")[:2])
        raise ValueError(
            f"torch_compile: torch cannot compile here ({said}). It needs a C++ compiler and "
            "Python's headers (on Debian: apt-get install g++ python3-dev); or leave torch_compile out"
        ) from error
