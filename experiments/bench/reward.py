"""The scorer, in bfloat16 where the machine multiplies in it, against transformers' `pipeline("text-classification",
batch_size=64)` with the same weights in float32.

Texts a second of both on real replies (the sample's test turns with up to four turns before them) in the order of their
corpus, in paired rounds; peak memory above what loading takes, of each, in a process of its own; the time of one opener;
the cost per 1,000 texts as length grows; and the share of the machine's measured matrix-multiply peak that the necessary
FLOPs reach, the peak in the scorer's own number format:

    FLOPs of a text of T tokens = L (2 T (4 H^2 + 2 H F) + 4 T^2 H), L layers, width H, feed-forward F (no padding counted).

A language model beside the classifier is left out: the pipeline has none.

Prints, last, one line of JSON: texts_per_s, stock_texts_per_s, ratio, ratio_std, largest_logit_difference (ours in
float32, of texts that fit: of longer ones the pipeline cuts the longer side, ours the oldest turns),
largest_score_difference (to our own in float32), score_std (of these), one_opener_ms, peak_mb_above_loading,
stock_peak_mb_above_loading, memory_ratio, matmul_peak_gflops, share_of_peak and ms_per_1000_texts_of_<n>_words.
About five minutes on two cores.
"""

from statistics import mean

import torch
from tqdm import tqdm
from transformers import pipeline

from data import sample
from experiments.bench.side import Side, Turns, matmul_peak, rounded, show, spread, timed
from models.load import load_scorer
from models.scorer import Scorer, encode, known
from reward.pairs import context_of

ROUNDS = 5
BATCH = 64
SMALLEST = {"most": 8}


def bench(rounds: int = ROUNDS, scorer: str = "runs/tiny/reward-s1", most: int | None = None) -> dict:
    """Figures of the scorer `scorer` on the first `most` replies, or all."""
    name, rows = scorer, replies(most)
    scorer = classifier(name, "auto")
    stock = stock_pipeline(classifier(name))
    tokens = [len(x["input_ids"]) for x in encode(scorer.tokenizer, rows, scorer.max_length, scorer.preset)]
    print(f"{len(rows)} texts of {mean(tokens):.0f} tokens, {torch.get_num_threads()} threads, {name}")

    ours_s, stock_s = [], []
    score_stock(stock, rows[:BATCH], scorer)
    scorer.score(rows[:BATCH])
    for _ in tqdm(range(rounds), desc="reward", unit="pair of rounds"):
        ours_s.append(timed(lambda: scorer.score(rows)))
        stock_s.append(timed(lambda: score_stock(stock, rows, scorer)))
    ratios = [b / a for a, b in zip(ours_s, stock_s, strict=True)]
    exact = classifier(name)
    fits = [row for row, size in zip(rows, tokens, strict=True) if size < scorer.max_length]
    difference = exact.logits(fits).flatten(1) - score_stock(stock, fits, scorer)
    scores, exact_scores = scorer.score(rows)[0], exact.score(rows)[0]

    one = [timed(lambda row=row: scorer.score([row])) for row in rows[:50]]
    peak = matmul_peak(next(scorer.model.parameters()).dtype)
    memory = {which: peak_memory(which == "stock", name, most) for which in ("ours", "stock")}
    figures = {
        "texts_per_s": len(rows) / mean(ours_s),
        "stock_texts_per_s": len(rows) / mean(stock_s),
        "ratio": mean(ratios),
        "ratio_std": spread(ratios),
        "largest_logit_difference": difference.abs().max().item(),
        "largest_score_difference": (scores - exact_scores).abs().max().item(),
        "score_std": exact_scores.std().item(),
        "one_opener_ms": 1000 * mean(one),
        "peak_mb_above_loading": memory["ours"],
        "stock_peak_mb_above_loading": memory["stock"],
        "memory_ratio": memory["ours"] / memory["stock"],
        "matmul_peak_gflops": peak / 1e9,
        "share_of_peak": sum(flops(scorer.model.config, t) for t in tokens) / mean(ours_s) / peak,
    }
    for words in (5, 10, 20, 40, 80):
        texts = [{"context": [], "response": " ".join(["word"] * words)}] * (most or 256)
        seconds = timed(lambda texts=texts: scorer.score(texts))
        figures[f"ms_per_1000_texts_of_{words}_words"] = 1e6 * seconds / len(texts)
    figures = rounded(figures)
    show("reward", figures)
    return figures


def classifier(name: str, dtype: str = "float32") -> Scorer:
    """A reward without the language model beside it."""
    scorer = load_scorer(name, dtype=dtype)
    scorer.likelihood = None
    return scorer


def replies(most: int | None = None) -> list[dict]:
    """The sample's test turns, in order, with up to four turns before each."""
    return [
        {"context": context_of(d, i), "response": d.turns[i].text, "profile": list(d.profile)}
        for d in sample.load("test")
        for i in range(len(d.turns))
    ][:most]


def stock_pipeline(scorer: Scorer):
    """transformers' own way with the same weights: fp32, batches in the order given, padded to their longest."""
    scorer.tokenizer.padding_side = "right"  # as our scorer pads, whatever its tokenizer was saved with
    outputs = scorer.num_members * len(scorer.labels)
    scorer.model.config.id2label = {i: str(i) for i in range(outputs)}
    return pipeline(
        "text-classification",
        model=scorer.model,
        tokenizer=scorer.tokenizer,
        batch_size=BATCH,
        device=scorer.model.device,
    )


def score_stock(stock, rows: list[dict], scorer: Scorer) -> torch.Tensor:
    """Logits, a row a text."""
    texts = [r["response"] for r in rows]
    if scorer.preset == "reaction":
        texts = [{"text": known(row), "text_pair": row["response"]} for row in rows]
    said = stock(texts, top_k=None, function_to_apply="none", truncation=True, max_length=scorer.max_length)
    return torch.tensor([[x["score"] for x in sorted(row, key=lambda x: int(x["label"]))] for row in said])


def flops(config, tokens: float) -> float:
    """Necessary floating-point operations of one text: the formula above."""
    H, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return L * (2 * tokens * (4 * H * H + 2 * H * F) + 4 * tokens * tokens * H)


def peak_memory(is_stock: bool, name: str, most: int | None) -> float:
    """MB that scoring takes at its peak above what loading took, in a fresh process."""
    side = Side(score_once, is_stock=is_stock, name=name, most=most)
    side.round()
    return side.finish()["peak_mb"]


def score_once(turns: Turns, is_stock: bool, name: str, most: int | None) -> dict:
    rows, scorer = replies(most), classifier(name, "float32" if is_stock else "auto")
    stock = stock_pipeline(scorer) if is_stock else None
    turns.loaded()
    turns.begin()
    score_stock(stock, rows, scorer) if stock else scorer.score(rows)
    turns.end()
    return {}
