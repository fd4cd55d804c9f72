"""Sentence embeddings by frozen MiniLM: to find replies of near contexts, and as features of the gold judge."""

import torch

from models.load import load_minilm
from models.sampling import printable


@torch.inference_mode()
def embed(texts: list[str], batch_size: int = 128, max_length: int = 64) -> torch.Tensor:
    """embeddings_BH, of length 1: the mean of the token states (Reimers & Gurevych 2019), texts cut at max_length."""
    model, tokenizer = load_minilm()
    model.eval()
    embeddings_BH = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length share a batch
    for start in range(0, len(texts), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [printable(texts[i]) for i in chosen],
            padding=True, truncation=True, max_length=max_length, return_tensors="pt",
        )  # fmt: skip
        states_BTH = model(**batch).last_hidden_state
        weight_BT1 = batch["attention_mask"][..., None].to(states_BTH.dtype)
        embeddings_BH[chosen] = (states_BTH * weight_BT1).sum(1) / weight_BT1.sum(1)
    return torch.nn.functional.normalize(embeddings_BH, dim=-1)
