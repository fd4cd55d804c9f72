"""LoRA as peft has it, with less work around it, for training loops.

Axes: the last is a layer's input or output, those before it are batch and tokens.
"""

import torch
from peft.tuners.lora import layer
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer

from models.linear import Linear, linear


def leave_casting_to_autocast(model: torch.nn.Module) -> None:
    """For training an adapter under autocast, where peft would cast what comes to float32 only to have it cast back."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def fuse(model: torch.nn.Module) -> None:
    """W x + s B A x in every plain linear layer of `model`'s adapters by one product that adds to W x, with s on the r
    numbers of A x: peft scales, and then adds, the layer's whole output. Layers in 8 or 4 bits, DoRA and the like stay as
    they are."""
    for module in model.modules():
        if isinstance(module, layer.Linear):
            for name, B in module.lora_B.items():
                if name not in module.lora_variant and B.bias is None:
                    module.lora_variant[name] = Fused()


class Fused(LoraVariant):
    """peft's hook for another forward pass of a LoRA layer."""

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs):
        """result + scaling * B A x."""
        low = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter]
        B = module.lora_B[active_adapter].weight
        if not torch.is_autocast_enabled(x.device.type):
            result = result.to(low.dtype)  # a base in bfloat16 under an adapter in float32: peft adds in the latter
        if type(module.get_base_layer()) is Linear:
            return result + linear(low, B)
        return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), B.T).view(result.shape)

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
