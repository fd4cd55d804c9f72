"""Benchmarks: ratios measured in one run, on this machine.

    python -m experiments.bench reward

`reward`: texts a second of our scorer against transformers' `pipeline("text-classification", batch_size=64)` with the same
weights, on real replies in the order of their corpus, in paired rounds; peak memory above what loading takes, of each, in
a process of its own; the time of one opener; the cost per 1,000 texts as length grows; the share of the machine's measured
matrix-multiply peak that the necessary FLOPs reach:

    FLOPs of a text of T tokens = L (2 T (4 H^2 + 2 H F) + 4 T^2 H), L layers, width H, feed-forward F (no padding counted).

Prints tables and, last, one line of JSON with the same figures.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from statistics import mean, stdev

import torch
from transformers import pipeline

from data import sample
from models.load import load_scorer
from models.scorer import Scorer, encode
from reward.pairs import context_of

ROUNDS = 5
BATCH = 64


def main(what: list[str]) -> None:
    if what != ["reward"]:
        sys.exit(__doc__)
    print(json.dumps(reward()))


def reward(name: str = "runs/tiny/reward-s1") -> dict:
    """Figures of the scorer `name`; texts are the sample's own turns with up to four turns before them."""
    rows = replies()
    scorer = load_scorer(name)
    stock = stock_pipeline(scorer)
    inputs = encode(scorer.tokenizer, rows, scorer.max_length, scorer.preset)
    tokens = [len(x["input_ids"]) for x in inputs]
    print(f"{len(rows)} texts of {mean(tokens):.0f} tokens, {torch.get_num_threads()} threads, {name}")

    ours_s, stock_s = [], []
    score_stock(stock, rows[:BATCH])
    scorer.score(rows[:BATCH])
    for _ in range(ROUNDS):
        ours_s.append(timed(lambda: scorer.score(rows)))
        stock_s.append(timed(lambda: score_stock(stock, rows)))
    ratios = [b / a for a, b in zip(ours_s, stock_s, strict=True)]
    difference = (scorer.logits(rows).flatten(1) - score_stock(stock, rows)).abs().max().item()

    one = [timed(lambda row=row: scorer.score([row])) for row in rows[:50]]
    peak = matmul_peak()
    share = sum(flops(scorer.model.config, t) for t in tokens) / mean(ours_s) / peak
    memory = {which: peak_memory(which, name) for which in ("ours", "stock")}
    figures = {
        "texts_per_s": len(rows) / mean(ours_s),
        "stock_texts_per_s": len(rows) / mean(stock_s),
        "ratio": mean(ratios),
        "ratio_std": stdev(ratios),
        "largest_logit_difference": difference,
        "one_opener_ms": 1000 * mean(one),
        "peak_mb_above_loading": memory["ours"],
        "stock_peak_mb_above_loading": memory["stock"],
        "matmul_peak_gflops": peak / 1e9,
        "share_of_peak": share,
    }
    for key, value in figures.items():
        print(f"{key:32} {value:10.4g}")
    print("\nwords a reply   ms per 1,000 texts")
    for words in (5, 10, 20, 40, 80):
        texts = [{"context": [], "response": " ".join(["word"] * words)}] * 256
        figures[f"ms_per_1000_texts_of_{words}_words"] = cost = (
            1e6 * timed(lambda texts=texts: scorer.score(texts)) / 256
        )
        print(f"{words:13} {cost:10.0f}")
    return {key: round(value, 4) for key, value in figures.items()}


def replies() -> list[dict]:
    """The sample's test turns, in order, with up to four turns before each."""
    return [
        {"context": context_of(d, i), "response": d.turns[i].text, "profile": list(d.profile)}
        for d in sample.load("test")
        for i in range(len(d.turns))
    ]


def stock_pipeline(scorer: Scorer):
    """transformers' own way with the same weights: fp32, batches in the order given, padded to their longest."""
    outputs = scorer.num_members * len(scorer.labels)
    scorer.model.config.id2label = {i: str(i) for i in range(outputs)}
    return pipeline(
        "text-classification",
        model=scorer.model,
        tokenizer=scorer.tokenizer,
        batch_size=BATCH,
        device=scorer.model.device,
    )


def score_stock(stock, rows: list[dict]) -> torch.Tensor:
    """Logits, a row a text."""
    pairs = [
        {"text": " | ".join([*filter(None, ["; ".join(r["profile"])]), *r["context"]]), "text_pair": r["response"]}
        for r in rows
    ]
    said = stock(pairs, top_k=None, function_to_apply="none", truncation=True, max_length=96)
    return torch.tensor([[x["score"] for x in sorted(row, key=lambda x: int(x["label"]))] for row in said])


def timed(work) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def flops(config, tokens: int) -> float:
    """Necessary floating-point operations of one text: the formula above."""
    H, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return L * (2 * tokens * (4 * H * H + 2 * H * F) + 4 * tokens * tokens * H)


def matmul_peak(size: int = 2048) -> float:
    """FLOP/s of an fp32 matrix product on this machine, the best of ten."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(10))


def peak_memory(which: str, name: str) -> float:
    """MB that scoring takes at its peak above what loading took, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_memory, args=(which, name, queue))
    process.start()
    value = queue.get(timeout=300)
    process.join()
    return value


def _measure_memory(which: str, name: str, queue) -> None:
    rows, scorer = replies(), load_scorer(name)
    stock = stock_pipeline(scorer) if which == "stock" else None
    with open("/proc/self/statm") as file:
        loaded = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    score_stock(stock, rows) if stock else scorer.score(rows)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - loaded)


if __name__ == "__main__":
    main(sys.argv[1:])
