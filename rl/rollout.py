"""Rollouts: scenes in, sampled openers out, with all that an update needs to know about them.

Axes as in rl/ppo.py: B responses, T response tokens; P prompt tokens, left-padded.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from rl.tree import PrefixTrees, prefix_trees

#: The policy's two adapters, by the names that trl's GRPO and DPO give them.
POLICY, REFERENCE = "default", "ref"


@dataclass
class Rollout:
    """A batch of openers. Tensors have the batch first; see `ppo.py` for the convention of masks and positions."""

    query_BP: torch.Tensor  # prompt ids, left-padded
    query_mask_BP: torch.Tensor
    response_BT: torch.Tensor  # response ids, right-padded, end token included
    mask_BT: torch.Tensor
    ended_B: torch.Tensor
    scene_B: torch.Tensor  # rows of the scenes
    score_B: torch.Tensor  # the scorer's opinion, penalty for a missing end included
    logp_BT: torch.Tensor  # under the policy that wrote it, at the sampling temperature
    ref_logp_BT: torch.Tensor
    values_BT: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Rollout":
        """Some rows."""
        return Rollout(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


class PolicyWithValueHead(nn.Module):
    """The policy and its values: one forward pass gives both.

    Takes the place of trl's PolicyAndValueWrapper, which always runs a second full backbone for the values.
    """

    def __init__(self, policy: PeftModel, value_model: "ValueHead"):
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.is_gradient_checkpointing = policy.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, **kwargs):
        self.policy.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self):
        self.policy.gradient_checkpointing_disable()

    def forward(
        self,
        query_BP: torch.Tensor,
        query_mask_BP: torch.Tensor,
        response_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log-probabilities, entropies (of the distribution at `temperature`) and values of the response, each [B, T], 0 off
        the mask."""
        trees = prefix_trees(query_BP, query_mask_BP, response_BT, mask_BT, self.policy.config._attn_implementation)
        log_p_N, entropy_N, states_NH = trees.read(self.policy, temperature)
        values_N = self.value_model(states_NH, trees).float()
        return trees.rows(log_p_N), trees.rows(entropy_N), trees.rows(values_N)


@contextlib.contextmanager
def reading(policy: PeftModel, adapter: str):
    """The policy with another adapter, for reading; its own is active, and alone trainable, outside."""
    policy.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        policy.set_adapter(POLICY)


class ValueHead(nn.Module):
    """A linear value, 0 to begin with: of the policy's hidden state, or of a trunk of its own where one is given."""

    def __init__(self, hidden_size: int, trunk: nn.Module | None = None):
        super().__init__()
        self.trunk = trunk
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states_NH: torch.Tensor, trees: PrefixTrees) -> torch.Tensor:
        """Values [N] of the policy's states before the responses' tokens.

        On the policy's trunk the head learns from features that are the policy's to change, so no gradient flows back.
        """
        states_NH = states_NH.detach() if self.trunk is None else trees.states(self.trunk(**trees.inputs))
        return self.linear(states_NH.to(self.linear.weight.dtype)).squeeze(-1)


def value_trunk(policy: PeftModel, adapter: str) -> nn.Module:
    """A trunk for values alone, trained in full as trl's value model is: the base with `adapter` merged in, fp32."""
    return MergedCopy(policy).merge(adapter).base_model.float().requires_grad_()


class MergedCopy:
    """A copy of the base with an adapter's weights added in: what sampling runs on, in `dtype` where that is given.

    The base itself is never written.
    """

    def __init__(self, policy: PeftModel, dtype: torch.dtype | None = None):
        self.policy = policy
        base = policy.get_base_model()
        layers = [(name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer)]
        # Copy without the adapters: put each base layer in the adapter's place, copy, put the adapters back.
        for name, module in layers:
            base.set_submodule(name, unquantized(module.base_layer, base.dtype))
        self.model = copy.deepcopy(base).requires_grad_(False).eval()
        if (
            dtype and base.dtype == torch.float32
        ):  # a quantized one is in its own precision already, and refuses another
            self.model.to(dtype)
        for name, module in layers:
            base.set_submodule(name, module)
        self.layers = [(module, self.model.get_submodule(name)) for name, module in layers]

    @torch.no_grad()
    def merge(self, adapter: str) -> nn.Module:
        """The copy, with `adapter` as it is now."""
        for module, target in self.layers:
            weight = dequantize_module_weight(module.base_layer)
            target.weight.copy_(weight.float() + module.get_delta_weight(adapter).float())
        return self.model


def unquantized(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """The layer itself; in place of one in 8 or 4 bits, to whose codes nothing can be added, a plain one in `dtype`."""
    if layer.weight.is_floating_point():
        return layer
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, layer.weight.device, dtype)
    if layer.bias is not None:
        plain.bias.data.copy_(layer.bias)
    return plain  # merge() writes the weights


def scene_rows(update: int, batch_size: int, num_scenes: int, seed: int, num_generations: int = 1) -> np.ndarray:
    """The scene of each opener of an update: of an endless row of shuffled passes over all scenes the next ones, each
    `num_generations` times in a row.

    A function of its arguments, so that a resumed run needs no state, and a batch may be larger than the dataset.
    """
    batch_size //= num_generations
    first = update * batch_size
    passes = range(first // num_scenes, (first + batch_size - 1) // num_scenes + 1)
    order = np.concatenate([np.random.default_rng([seed, p]).permutation(num_scenes) for p in passes])
    start = first - passes[0] * num_scenes
    return order[start : start + batch_size].repeat(num_generations)


def minibatches(
    update: int, batch_size: int, epochs: int, per_epoch: int, seed: int, num_generations: int = 1
) -> Iterator[np.ndarray]:
    """Rows of each minibatch of an update, each epoch's in another order: epochs x per_epoch of them. The `num_generations`
    openers of a scene stay together."""
    for epoch in range(epochs):
        scenes = np.random.default_rng([seed, update, epoch]).permutation(batch_size // num_generations)
        order = (scenes[:, None] * num_generations + np.arange(num_generations)).ravel()
        yield from np.split(order, per_epoch)
