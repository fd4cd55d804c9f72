"""Rollouts: scenes in, sampled openers out, with all that an update needs to know about them.

Axes as in rl/ppo.py: B responses, T response tokens; P prompt tokens, left-padded.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from rl import ppo

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
        """Some rows, without the columns that are all padding in them."""
        part = Rollout(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
        part.query_BP, part.query_mask_BP, part.response_BT, part.mask_BT = trimmed(
            part.query_BP, part.query_mask_BP, part.response_BT, part.mask_BT
        )
        T = part.mask_BT.shape[1]
        for name in ("logp_BT", "ref_logp_BT", "values_BT"):
            setattr(part, name, getattr(part, name)[:, :T])
        return part


class PolicyWithValueHead(nn.Module):
    """The policy and its values: one forward pass gives both.

    Takes the place of trl's PolicyAndValueWrapper, which always runs a second full backbone for the values.
    """

    def __init__(self, policy: PeftModel, value_model: "ValueHead"):
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.is_gradient_checkpointing = policy.is_gradient_checkpointing
        self._hidden = None
        policy.get_base_model().base_model.register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, module, inputs, output):
        self._hidden = output.last_hidden_state

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
        """log-probabilities, entropies (of the distribution at `temperature`) and values of the response, each [B, T].

        Logits are computed for the response's positions alone.
        """
        T = response_BT.shape[1]
        inputs = policy_inputs(query_BP, query_mask_BP, response_BT, mask_BT)
        log_p = response_log_p(self.policy, inputs, T, temperature)
        hidden, self._hidden = self._hidden, None
        logp_BT = log_p.gather(-1, response_BT[..., None]).squeeze(-1)
        with torch.no_grad():
            entropy_BT = ppo.entropy(log_p)
        return logp_BT, entropy_BT, self.value_model(hidden, inputs, T).float()


def by_length(query_mask_BP: torch.Tensor, mask_BT: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Row numbers, `size` at a time, those of like length together: then little of each part is padding."""
    return (query_mask_BP.sum(1) + mask_BT.sum(1)).argsort(stable=True).split(size)


def trimmed(query_BP, query_mask_BP, response_BT, mask_BT) -> tuple[torch.Tensor, ...]:
    """The same, less the columns that are all padding."""
    P, T = int(query_mask_BP.sum(1).max()), int(mask_BT.sum(1).max())
    return query_BP[:, -P:], query_mask_BP[:, -P:], response_BT[:, :T], mask_BT[:, :T]


def policy_inputs(query_BP, query_mask_BP, response_BT, mask_BT) -> dict[str, torch.Tensor]:
    """What a causal LM is given to read prompts and their responses [B, P + T]."""
    mask = torch.cat([query_mask_BP, mask_BT.long()], 1)
    return {
        "input_ids": torch.cat([query_BP, response_BT], 1),
        "attention_mask": mask,
        "position_ids": positions(mask),
        "use_cache": False,
    }


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Places counted from the first real token, 0 on the padding before it."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def response_log_p(policy: nn.Module, inputs: dict[str, torch.Tensor], T: int, temperature: float) -> torch.Tensor:
    """Log-probabilities [B, T, V] of what can stand in the last T places; logits are computed for these alone."""
    logits = policy(**inputs, logits_to_keep=T + 1).logits[:, :-1]
    return torch.log_softmax(logits.float() / temperature, -1)


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

    def forward(self, policy_hidden: torch.Tensor, inputs: dict[str, torch.Tensor], T: int) -> torch.Tensor:
        """Values [B, T] of the states before the last T tokens of `inputs`.

        On the policy's trunk the head learns from features that are the policy's to change, so no gradient flows back.
        """
        hidden = policy_hidden.detach() if self.trunk is None else self.trunk(**inputs).last_hidden_state
        return self.linear(hidden[:, -T - 1 : -1].to(self.linear.weight.dtype)).squeeze(-1)


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


def scene_rows(update: int, batch_size: int, num_scenes: int, seed: int) -> np.ndarray:
    """The scenes of an update: the next `batch_size` of an endless row of shuffled passes over all scenes.

    A function of its arguments, so that a resumed run needs no state, and a batch may be larger than the dataset.
    """
    first = update * batch_size
    passes = range(first // num_scenes, (first + batch_size - 1) // num_scenes + 1)
    order = np.concatenate([np.random.default_rng([seed, p]).permutation(num_scenes) for p in passes])
    start = first - passes[0] * num_scenes
    return order[start : start + batch_size]


def minibatches(update: int, batch_size: int, epochs: int, per_epoch: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each minibatch of an update, each epoch's in another order: epochs x per_epoch of them."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, update, epoch]).permutation(batch_size)
        yield from np.split(order, per_epoch)


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and mask [B, P]."""
    P = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (P - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
