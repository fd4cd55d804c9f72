"""What a causal language model makes of an utterance: whether it belongs to its moment, and whether it reads well.

    relevance   (log p(response | scene) - log p(response)) / sqrt(n): what the scene tells of the response, the pointwise
                mutual information by which Li et al. 2016 ("A Diversity-Promoting Objective Function", section 4) choose
                replies; that divides neither at all nor by n, a reply of n tokens gains in between
    fluency     log p(response | scene) / n, nats a token, at most 0

The end token counts among the n, so that what breaks off is unlikely. A classifier of a few million weights knows little
of either (experiments/LOG.md, "sense is likelihood"); as evidence beside one they make a reward that sees sense.

Axes: B rows, U different prompts of them, T response tokens, V vocabulary, F features.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from data.dialogue import INSTRUCTIONS, scene_messages
from models.sampling import LAST, each_once, left_pad, positions, prompt_ids

FEATURES = ("relevance", "fluency")
#: Of a response so many tokens are read, and of prompt and response together: an opener has a dozen.
MOST_RESPONSE, MOST = 96, 400
BATCH_TOKENS = 1024  # response tokens at a time: their logits are a vocabulary wide


@dataclass
class Likelihood:
    """A causal language model that has learnt to speak as the friend, and its tokenizer."""

    name: str  # as recipes call it
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: dict | None = None  # what it has read, by row, to be kept from one call to the next

    def features(self, rows: list[dict]) -> torch.Tensor:
        """features_BF, float32 on the CPU, of rows {"context", "response", "profile"}. A scene that several responses
        share is read once, and so is a row that comes again. Rows must be checked (models.scorer.check_row); an empty
        response gets features too.

        In bfloat16 a row's features depend a little on what shares its batch: by some .1 where relevance deviates by 2.
        """
        keys = [(tuple(row.get("profile") or ()), tuple(row["context"]), row["response"]) for row in rows]
        memory = {} if self.memory is None else self.memory
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in memory}
        if new:
            memory.update(zip(new, self._features(list(new.values())), strict=True))
        return torch.stack([memory[key] for key in keys]) if keys else torch.empty(0, len(FEATURES))

    def _features(self, rows: list[dict]) -> torch.Tensor:
        responses = [self._response_ids(row["response"]) for row in rows]
        alone = prompt_ids(self.tokenizer, scene_messages(INSTRUCTIONS["friend"], [], []))
        prompts = [self._prompt(row, len(response)) for row, response in zip(rows, responses, strict=True)]
        given_B = self._log_probs(prompts, responses)
        different, of_B = each_once(responses)
        alone_B = self._log_probs([alone] * len(different), different)[of_B]
        n_B = torch.tensor([len(response) for response in responses])
        return torch.stack([(given_B - alone_B) / n_B.sqrt(), given_B / n_B], 1)

    def _response_ids(self, text: str) -> list[int]:
        """Marks such as "<|im_end|>" in a text are read as plain characters, as the scorer reads them."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return (ids + [self.tokenizer.eos_token_id])[:MOST_RESPONSE]

    def _prompt(self, row: dict, response_length: int) -> list[int]:
        """Up to the mark that opens the friend's turn; what is too long loses its beginning."""
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in row["context"]]
        facts = [text.encode("utf-8", "replace").decode("utf-8") for text in row.get("profile") or []]
        room = min(MOST, self.model.config.max_position_embeddings) - response_length
        return prompt_ids(self.tokenizer, scene_messages(INSTRUCTIONS["friend"], facts, texts))[-room:]

    @torch.inference_mode()
    def _log_probs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> torch.Tensor:
        """log p(response | prompt)_B in nats, summed over the response's tokens, float32 on the CPU."""
        total_B = torch.empty(len(responses))
        # Neighbours share a prompt, or have one of like length, and among these responses of like length.
        order = sorted(range(len(responses)), key=lambda i: (len(prompts[i]), prompts[i], len(responses[i])))
        start = 0
        while start < len(order):
            stop, longest = start, 0
            while stop < len(order):
                longest = max(longest, len(responses[order[stop]]))
                if stop > start and (stop + 1 - start) * longest > BATCH_TOKENS:
                    break
                stop += 1
            chosen = order[start:stop]
            total_B[chosen] = self._batch([prompts[i] for i in chosen], [responses[i] for i in chosen]).cpu()
            start = stop
        return total_B

    def _batch(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> torch.Tensor:
        model, device = self.model, self.model.device
        different, of_B = each_once(prompts)
        of_B = of_B.to(device)
        # All that the prompts begin with is read once; each has at least one token of its own left.
        shared = min(len(os.path.commonprefix(different)), min(map(len, different)) - 1)
        cache = DynamicCache(config=model.config)
        if shared:
            beginning = torch.tensor([different[0][:shared]], device=device)
            model(input_ids=beginning, past_key_values=cache, use_cache=True, logits_to_keep=LAST)
            cache.batch_select_indices(of_B.new_zeros(len(different)))
        ids, mask = left_pad([prompt[shared:] for prompt in different], self.tokenizer.pad_token_id, device)
        mask = torch.cat([mask.new_ones(len(different), shared), mask], 1)
        places = positions(mask)
        logits_U1V = model(
            input_ids=ids, attention_mask=mask, position_ids=places[:, shared:], past_key_values=cache,
            use_cache=True, logits_to_keep=LAST,
        ).logits  # fmt: skip
        cache.batch_select_indices(of_B)

        T = max(map(len, responses))
        target_BT = torch.full((len(responses), T), -100, device=device)
        for row, response in enumerate(responses):
            target_BT[row, : len(response)] = torch.tensor(response, device=device)
        loss_B = _cross_entropy(logits_U1V[of_B], target_BT[:, :1])
        if T > 1:
            read_BT = target_BT[:, :-1]
            logits_BTV = model(
                input_ids=read_BT.clamp_min(0),
                attention_mask=torch.cat([mask[of_B], (read_BT >= 0).long()], 1),
                position_ids=places[of_B, -1:] + 1 + torch.arange(T - 1, device=device),
                past_key_values=cache,
                use_cache=True,
            ).logits
            loss_B = loss_B + _cross_entropy(logits_BTV, target_BT[:, 1:])
        return -loss_B


def _cross_entropy(logits_BTV: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """loss_B, summed over the tokens that are not -100."""
    is_real_BT = target_BT >= 0
    loss_BT = torch.zeros(target_BT.shape, device=target_BT.device)
    loss_BT[is_real_BT] = F.cross_entropy(logits_BTV[is_real_BT].float(), target_BT[is_real_BT], reduction="none")
    return loss_BT.sum(1)
