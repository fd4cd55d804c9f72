"""Reading openers with a causal LM: what they begin with in common is read once.

B responses and T response tokens as in rl/ppo.py, N the real ones among B x T, row after row; P prompt tokens; R trees of at
most S tokens; H the model's width, V its vocabulary.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.sampling import each_once
from rl.ppo import log_p_and_entropy

#: Tokens of a tree, about: attention's cost grows with their square, what is repeated shrinks with their number (LOG).
TOKENS = 256


@dataclass
class PrefixTrees:
    """Openers as rows of a batch in each of which the instruction stands once, and each scene once for all its openers.

    A token attends to those on its own way from the root alone, and takes the place it would have in a row of its own, so
    that what is read is what a row for each opener gives, from less than half of the tokens. That holds for models that go
    by what they are told, mask and place (`check_reading` finds out).
    """

    inputs: dict[str, torch.Tensor]  # of a causal LM
    before_N: torch.Tensor  # the place among R x S from which each response token is foretold
    response_N: torch.Tensor
    mask_BT: torch.Tensor

    def read(self, policy: nn.Module, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the responses' tokens the log-probabilities [N], the entropies [N] of what could stand in their places, and
        the trunk's states [N, H] before them. Of all other places no logits are computed."""
        trunk, kept = policy.get_base_model().base_model, {}

        def keep(module, inputs, output):
            kept["states"] = self.states(output)
            output.last_hidden_state = kept["states"][None]
            return output

        hook = trunk.register_forward_hook(keep)
        try:
            logits_NV = policy(**self.inputs).logits.squeeze(0)  # [0] would copy their gradient
        finally:
            hook.remove()
        return *log_p_and_entropy(logits_NV, self.response_N, temperature), kept["states"]

    def states(self, output) -> torch.Tensor:
        """Of a trunk's output on `inputs`, the states before the response tokens: [N, H]."""
        return output.last_hidden_state.flatten(0, 1)[self.before_N]

    def rows(self, x_N: torch.Tensor) -> torch.Tensor:
        """In its place of [B, T], 0 off the mask."""
        return x_N.new_zeros(self.mask_BT.shape).masked_scatter(self.mask_BT, x_N)


def prefix_trees(
    query_BP: torch.Tensor,
    query_mask_BP: torch.Tensor,
    response_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    attention: str,
) -> PrefixTrees:
    """The trees of left-padded prompts and right-padded responses, for an implementation of `attention` in transformers.

    Every response has a token. Neighbours share a tree; one scene's openers always do, so that many of them at once make a
    large one. Raises ValueError where `attention` takes no mask of ours.
    """
    if attention not in ("eager", "sdpa"):
        raise ValueError(f"attention {attention!r} takes no mask of its caller's: load the model with eager or sdpa")
    device, mask_BT = query_BP.device, mask_BT.bool()
    prompts = [tuple(ids[real].tolist()) for ids, real in zip(query_BP.cpu(), query_mask_BP.bool().cpu(), strict=True)]
    responses = [ids[real].tolist() for ids, real in zip(response_BT.cpu(), mask_BT.cpu(), strict=True)]
    trees = [tree(prompts[a:b], responses[a:b]) for a, b in itertools.pairwise(cuts(prompts, responses))]

    R, S = len(trees), max(len(ids) for ids, *_ in trees)
    ids, places = torch.zeros(R, S, dtype=torch.long), torch.zeros(R, S, dtype=torch.long)
    sees = torch.eye(S, dtype=torch.bool).repeat(R, 1, 1, 1)  # padding sees itself
    for row, (tokens, place, seen, _) in enumerate(trees):
        size = len(tokens)
        ids[row, :size], places[row, :size], sees[row, 0, :size, :size] = tokens, place, seen
    if attention == "eager":  # it adds its mask to the scores
        sees = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    inputs = {"input_ids": ids, "attention_mask": sees, "position_ids": places}
    return PrefixTrees(
        {**{name: tensor.to(device) for name, tensor in inputs.items()}, "use_cache": False},
        torch.cat([row * S + before for row, (*_, before) in enumerate(trees)]).to(device),
        response_BT[mask_BT],
        mask_BT,
    )


def tree(
    prompts: Sequence[tuple[int, ...]], responses: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One tree: its token ids [S], their places in a row of their own [S], whom each sees [S, S], and for each token of the
    responses the index from which it is foretold [N].

    Three segments lie on the way to a token: what all prompts begin with; the rest of its prompt; its response (less the
    last token, after which nothing is foretold).
    """
    different, prompt_B = each_once(prompts)
    root, D = min(len(os.path.commonprefix(different)), min(map(len, different)) - 1), len(different)
    segments = [different[0][:root], *(prompt[root:] for prompt in different), *(ids[:-1] for ids in responses)]
    parent = torch.cat([torch.zeros(1 + D, dtype=torch.long), 1 + prompt_B])
    length = torch.tensor([len(segment) for segment in segments])
    start = length.cumsum(0) - length
    depth = torch.tensor([0, *[root] * D, *(len(different[i]) for i in prompt_B)])

    of_S = torch.arange(len(segments)).repeat_interleave(length)
    within_S = torch.arange(len(of_S)) - start[of_S]
    same_SS = of_S[:, None] == of_S
    sees_SS = same_SS & (within_S <= within_S[:, None])
    sees_SS |= ~same_SS & ((of_S == 0) | (of_S == parent[of_S][:, None]))

    prompt_end_B = (start + length)[1 + prompt_B] - 1
    before = [
        torch.cat([end[None], first + torch.arange(len(ids) - 1)])
        for end, first, ids in zip(prompt_end_B, start[1 + D :], responses, strict=True)
    ]
    return torch.tensor(list(itertools.chain(*segments))), depth[of_S] + within_S, sees_SS, torch.cat(before)


def cuts(prompts: Sequence[tuple[int, ...]], responses: Sequence[list[int]]) -> list[int]:
    """Where trees begin and the last one ends: of about TOKENS, or fewer where that leaves less padding, and openers of a
    scene (neighbours with the same prompt) in one."""
    begins = [row for row in range(len(prompts)) if row == 0 or prompts[row] != prompts[row - 1]]
    root = len(os.path.commonprefix(prompts))
    size = [
        len(prompts[a]) - root + sum(map(len, responses[a:b])) for a, b in itertools.pairwise([*begins, len(prompts)])
    ]
    size, number = np.array(size), max(1, round(sum(size) / max(TOKENS // 2, TOKENS - root)))
    share = (np.cumsum(size) - size / 2) / size.sum()

    def tokens(tree_of: np.ndarray) -> int:  # with the padding up to the largest tree
        trees = np.bincount(tree_of, size)
        return (trees > 0).sum() * (root + trees.max())

    tree_of = min(((share * n).astype(int) for n in range(number, 2 * number + 1)), key=tokens)
    return [begins[i] for i in np.flatnonzero(np.diff(tree_of, prepend=-1))] + [len(prompts)]


@torch.no_grad()
def check_reading(policy: nn.Module) -> None:
    """Refuses a model that reads a tree otherwise than a row for each opener: one that goes by a token's index among all
    (ALiBi, local attention, state spaces) and not by the mask and places it is told."""
    device, name = next(policy.parameters()).device, type(policy.get_base_model()).__name__
    size = min(TOKENS // 4, policy.config.max_position_embeddings // 2)
    ids = torch.arange(4 * (size + 3), device=device).view(4, -1) % min(policy.config.vocab_size, 1000)
    ids[:, : size // 3] = ids[0, : size // 3]  # four scenes after one instruction
    query, response = ids[:, :size], ids[:, size:]
    ones = torch.ones_like(query), torch.ones_like(response, dtype=torch.bool)
    trees = prefix_trees(query, ones[0], response, ones[1], policy.config._attn_implementation)
    training = [module for module in policy.modules() if module.training]
    policy.eval()  # a fresh adapter's dropout is on, and would be another one in each reading
    try:
        found = trees.rows(trees.read(policy, 1.0)[0])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot read with a mask and places of its caller's ({error!r}), which rl/ needs"
        ) from error
    logits = policy(input_ids=ids, use_cache=False).logits[:, -response.shape[1] - 1 : -1]
    for module in training:
        module.training = True
    alone = torch.log_softmax(logits.float(), -1).gather(-1, response[..., None]).squeeze(-1)
    if (off := (found - alone).abs().mean().item()) > 0.1:  # rounding of a model in 8 bits stays below
        raise ValueError(
            f"{name} reads openers that share their beginning otherwise than alone, by {off:.2f} nats a token: it goes by "
            "a token's index among all, not by the mask and places it is told, which rl/ needs"
        )
