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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from data.dialogue import INSTRUCTIONS, scene_messages
from models.sampling import LAST, each_once, left_pad, marks_of, plain, positions, prompt_ids

FEATURES = ("relevance", "fluency")
#: Of a response so many tokens are read, and of prompt and response together: an opener has a dozen.
MOST_RESPONSE, MOST = 96, 400
PROMPTS = 64  # different ones at a time
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
        response gets features too. Marks such as "<|im_end|>" in a text are plain characters.

        In bfloat16 a row's features depend a little on what shares its batch: by some .1 where relevance deviates by 2.
        """
        keys = [(tuple(row.get("profile") or ()), tuple(row["context"]), row["response"]) for row in rows]
        memory = {} if self.memory is None else self.memory
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in memory}
        if new:
            memory.update(zip(new, self._features(list(new.values())), strict=True))
        return torch.stack([memory[key] for key in keys]) if keys else torch.empty(0, len(FEATURES))

    def _features(self, rows: list[dict]) -> torch.Tensor:
        marks = marks_of(self.tokenizer)
        responses = [self._response_ids(plain(row["response"], marks)) for row in rows]
        prompts = [self._prompt(row, marks) for row in rows]
        alone = prompt_ids(self.tokenizer, scene_messages(INSTRUCTIONS["friend"], [], []))
        given_B = self._log_probs(prompts, responses)
        different, of_B = each_once(responses)
        alone_B = self._log_probs([alone] * len(different), different)[of_B]
        n_B = torch.tensor([len(response) for response in responses])
        return torch.stack([(given_B - alone_B) / n_B.sqrt(), given_B / n_B], 1)

    def _response_ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return (ids + [self.tokenizer.eos_token_id])[:MOST_RESPONSE]

    def _prompt(self, row: dict, marks: list[str]) -> list[int]:
        """Up to the mark that opens the friend's turn; what is too long loses its beginning."""
        facts, texts = ([plain(text, marks) for text in part or []] for part in (row.get("profile"), row["context"]))
        room = min(MOST, self.model.config.max_position_embeddings) - MOST_RESPONSE
        return prompt_ids(self.tokenizer, scene_messages(INSTRUCTIONS["friend"], facts, texts))[-room:]

    @torch.inference_mode()
    def _log_probs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> torch.Tensor:
        """log p(response | prompt)_B in nats, summed over the response's tokens, float32 on the CPU."""
        total_B = torch.empty(len(responses))
        different, of_B = each_once(prompts)
        by_length = sorted(range(len(different)), key=lambda u: len(different[u]))
        for start in range(0, len(by_length), PROMPTS):
            read = by_length[start : start + PROMPTS]
            cache, mask_UT, logits_UV = self._read([different[u] for u in read])
            row_of = {u: row for row, u in enumerate(read)}
            rows = [i for i, u in enumerate(of_B.tolist()) if u in row_of]
            rows.sort(key=lambda i: len(responses[i]))  # of like length: little is padding
            for part in split(rows, lambda i: len(responses[i])):
                index_B = torch.tensor([row_of[int(of_B[i])] for i in part], device=mask_UT.device)
                total_B[part] = self._continued(
                    select(cache, index_B), mask_UT[index_B], logits_UV[index_B], [responses[i] for i in part]
                ).cpu()
        return total_B

    def _read(self, prompts: list[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """What the model knows after each prompt: cache, mask_UT over it, and logits_UV of the first token to come. What
        all prompts begin with is read once."""
        device = self.model.device
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)  # each has a token of its own left
        cache = DynamicCache(config=self.model.config)
        if shared:
            beginning = torch.tensor([prompts[0][:shared]], device=device)
            self.model(input_ids=beginning, past_key_values=cache, use_cache=True, logits_to_keep=LAST)
            cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
        own = left_pad([prompt[shared:] for prompt in prompts], self.tokenizer.pad_token_id)
        ids, mask = (part.to(device) for part in own)
        mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask)[:, shared:], past_key_values=cache,
            use_cache=True, logits_to_keep=LAST,
        ).logits  # fmt: skip
        return cache, mask, logits[:, -1]

    def _continued(self, cache, mask_BT, first_BV, responses: list[Sequence[int]]) -> torch.Tensor:
        """log p of each response after what is in the cache."""
        device, T = mask_BT.device, max(map(len, responses))
        target_BT = torch.full((len(responses), T), -100, device=device)
        for row, response in enumerate(responses):
            target_BT[row, : len(response)] = torch.tensor(response, device=device)
        loss_B = _cross_entropy(first_BV[:, None], target_BT[:, :1])
        if T > 1:
            read_BT = target_BT[:, :-1]
            logits_BTV = self.model(
                input_ids=read_BT.clamp_min(0),
                attention_mask=torch.cat([mask_BT, (read_BT >= 0).long()], 1),
                position_ids=positions(mask_BT)[:, -1:] + 1 + torch.arange(T - 1, device=device),
                past_key_values=cache,
                use_cache=True,
            ).logits
            loss_B = loss_B + _cross_entropy(logits_BTV, target_BT[:, 1:])
        return -loss_B


def split(rows: list[int], length: Callable[[int], int]) -> Iterator[list[int]]:
    """Parts of rows in order of length, each of BATCH_TOKENS at most, padding counted, or of one row."""
    part = []
    for i in rows:
        if part and (len(part) + 1) * length(i) > BATCH_TOKENS:
            yield part
            part = []
        part.append(i)
    yield part


def select(cache: DynamicCache, index_B: torch.Tensor) -> DynamicCache:
    """A cache of its own with the rows of another."""
    chosen = DynamicCache()
    for number, layer in enumerate(cache.layers):
        chosen.update(layer.keys[index_B], layer.values[index_B], number)
    return chosen


def _cross_entropy(logits_BTV: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """loss_B, summed over the tokens that are not -100."""
    is_real_BT = target_BT >= 0
    loss_BT = torch.zeros(target_BT.shape, device=target_BT.device)
    loss_BT[is_real_BT] = F.cross_entropy(logits_BTV[is_real_BT].float(), target_BT[is_real_BT], reduction="none")
    return loss_BT.sum(1)
