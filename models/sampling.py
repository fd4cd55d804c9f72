"""Sampling responses from a causal LM, left-padded, with a key-value cache.

Every draw is a function of (seed, key of the sample, position) alone: a sample does not change with the batch it is in,
the rows dropped around it or the number of processes. One uniform number picks the token by inverting the cumulative
distribution, so that no random state has to be kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

#: Rows that have ended leave when no more than this share of the batch goes on.
LEAVE_AT = 0.75
#: The last place's logits, by index: cut out by a slice, its states would lie apart, and torch copies the head's weights for
#: each row of such a batch.
LAST = torch.tensor([-1])


@dataclass
class Samples:
    """Right-padded responses. B responses, T tokens (the longest one's).

    response_BT: token ids, the end token included, padded with `pad_token_id`.
    mask_BT: True on real tokens, the end token among them.
    ended_B: whether the end token came before `max_new_tokens`.
    """

    response_BT: torch.Tensor
    mask_BT: torch.Tensor
    ended_B: torch.Tensor


@torch.inference_mode()
def sample(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
    seed: int,
    keys: Sequence[int] | None = None,
) -> Samples:
    """One response for each prompt (token ids), at `temperature` (0 is greedy), without top-k or top-p.

    `keys` name the samples for the noise; by default their row numbers. Rows that have ended leave the batch, some at once:
    each leave copies what is left of the cache.
    Raises ValueError when a prompt is empty or does not fit the model's context with `max_new_tokens`.
    """
    device = model.device
    context = model.config.max_position_embeddings
    lengths = np.array([len(prompt) for prompt in prompts])
    if not lengths.all():
        raise ValueError(f"prompt {int(np.argmin(lengths))} is empty")
    if lengths.max() + max_new_tokens > context:
        row = int(lengths.argmax())
        raise ValueError(
            f"prompt {row} has {lengths[row]} tokens; with max_new_tokens {max_new_tokens} it exceeds the model's context "
            f"of {context}: shorten the scene's profile or lower max_new_tokens"
        )
    B = len(prompts)
    keys = np.arange(B) if keys is None else np.asarray(keys)
    different, of_B = each_once(prompts)  # a prompt of several samples is read once
    of_B = of_B.to(device)
    ids, mask = (part.to(device) for part in left_pad(different, pad_token_id))
    places = positions(mask)

    response = torch.full((B, max_new_tokens), pad_token_id, device=device)
    live = torch.arange(B, device=device)  # the rows in the batch
    going = torch.ones(B, dtype=torch.bool, device=device)  # those of them that have not ended
    cache = roomy_cache(model.config, max_new_tokens)
    for t in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=LAST,
        ).logits[:, -1]
        if t == 0 and len(different) < B:
            logits, mask, places = logits[of_B], mask[of_B], places[of_B]
            cache.batch_select_indices(of_B)
        noise = uniform(seed, keys[live.cpu().numpy()], t)
        token = draw(logits, temperature, torch.from_numpy(noise).to(device))
        response[live[going], t] = token[going]
        going &= token != eos_token_id
        if not going.any():
            break
        if going.sum() <= LEAVE_AT * len(going):
            live, token, mask, places = live[going], token[going], mask[going], places[going]
            cache.batch_select_indices(going.nonzero().squeeze(1))
            going = going[going]
        ids, places = token[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)

    ended = (response == eos_token_id).any(1)
    # The end token may be the pad token too: a position is real up to and with the first end token.
    size = torch.where(ended, (response == eos_token_id).int().argmax(1) + 1, max_new_tokens)
    T = int(size.max())
    return Samples(response[:, :T], torch.arange(T, device=device)[None] < size[:, None], ended)


def roomy_cache(config, room: int) -> DynamicCache:
    """A cache with room for `room` more tokens than it is first given; transformers' own is copied at every step."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values [rows, heads, tokens, width] as the beginning of larger blocks, into which new tokens are written."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.blocks = room, []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if not self.blocks or end > self.blocks[0].shape[-2]:
            self.blocks = [x.new_empty(*x.shape[:2], end + self.room, x.shape[-1]) for x in new]
            if start:
                self.blocks[0][:, :, :start], self.blocks[1][:, :, :start] = self.keys, self.values
        for block, x in zip(self.blocks, new, strict=True):
            block[:, :, start:end] = x
        self.keys, self.values = (block[:, :, :end] for block in self.blocks)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.blocks = []  # of the old rows


def say(
    model: torch.nn.Module, tokenizer, prompts: Sequence[Sequence[int]], **settings
) -> tuple[list[str], list[bool]]:
    """`sample` with the tokenizer's own end and pad: the texts, and whether each one ended."""
    samples = sample(
        model, prompts, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings
    )
    return decode(samples, tokenizer), samples.ended_B.tolist()


def prompt_ids(tokenizer, chat: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat, up to and with the mark that opens the model's turn."""
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and mask [B, P], 1 on real tokens: all end together."""
    P = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (P - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def printable(text: str) -> str:
    """The text with "?" for half a surrogate, which is no character: tokenizers refuse it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def marks_of(tokenizer) -> list[str]:
    """What the tokenizer reads as one token wherever it stands, the longest first; runs of white space are none."""
    return sorted(filter(str.strip, tokenizer.get_added_vocab()), key=len, reverse=True)


def plain(text: str, marks: Sequence[str]) -> str:
    """The text with none of the marks: what a person writes cannot end their turn or give orders."""
    text = printable(text)
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Places counted from the first real token, 0 on the padding before it."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def each_once(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """The different prompts, in order of their first coming, and of_B: which of them each of the B is."""
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    return list(row_of), torch.tensor([row_of[tuple(prompt)] for prompt in prompts])


def draw(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> torch.Tensor:
    """Tokens [B] from softmax(logits / temperature) by inversion: the first whose cumulative probability exceeds u."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    cumulative = torch.softmax(logits_BV.double() / temperature, -1).cumsum(-1)
    threshold = uniform_B[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)


def uniform(seed: int, keys: np.ndarray, position: int) -> np.ndarray:
    """One number in [0, 1) for each key: splitmix64 (Steele et al. 2014) of seed, key and position."""
    x = np.uint64(seed)
    with np.errstate(over="ignore"):
        for part in (keys.astype(np.uint64), np.full(keys.shape, position, dtype=np.uint64)):
            x = _mix(x + part * np.uint64(0x9E3779B97F4A7C15))
        x = _mix(x + np.uint64(0x9E3779B97F4A7C15))
    return (x >> np.uint64(11)).astype(np.float64) / 2**53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def decode(samples: Samples, tokenizer) -> list[str]:
    """The texts, without special tokens and outer white space."""
    return [
        tokenizer.decode(row[keep], skip_special_tokens=True).strip()
        for row, keep in zip(samples.response_BT.cpu(), samples.mask_BT.cpu(), strict=True)
    ]
