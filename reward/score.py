"""Scores utterances from the command line.

    python -m reward.score --reward_model_path RUN/model --input_file pairs.jsonl --output_file scores.jsonl

Rows in: {"context": [utterances], "response": "...", "profile": [facts, optional]}. Rows out: the same with `score` and
`emotions` (label -> probability); with --explain also `explain`, what each label adds to the engagement: probability,
weight and their product, largest part first, and `likelihood`, what a language model beside the reward says. A bad row is
an error that names file, line and key; --skip_bad_rows sets bad rows aside in <input_file>.bad instead. The output appears
whole or not at all.
"""

import json
from dataclasses import dataclass, field

from data.source import read_jsonl, write_whole
from models.likelihood import FEATURES
from models.load import load_scorer
from models.scorer import DTYPES, check_row


@dataclass
class ScoreConfig:
    """What to score, with what, and where to."""

    reward_model_path: str = field(metadata={"help": "a run or its model/, a shipped name, or a hub id"})
    input_file: str = field(metadata={"help": "rows to score, as JSON lines"})
    output_file: str = field(metadata={"help": "the same rows with score and emotions"})
    skip_bad_rows: bool = field(default=False, metadata={"help": "set bad rows aside in <input_file>.bad"})
    explain: bool = field(default=False, metadata={"help": "add what each reaction contributes to the score"})
    batch_size: int = 64
    dtype: str = field(
        default="float32",
        metadata={
            "help": f"of the classifier, one of {DTYPES}; auto, and a language model's, is bfloat16 where that is fast"
        },
    )


def main(config: ScoreConfig) -> None:
    rows = list(read_jsonl(config.input_file, config.skip_bad_rows, parse=check_row))
    scorer = load_scorer(config.reward_model_path, dtype=config.dtype)
    if scorer.likelihood:
        scorer.likelihood.memory = {}
    score_B, probs_BR = scorer.score(rows, config.batch_size)
    if config.explain and scorer.likelihood:
        for row, features in zip(rows, scorer.likelihood.features(rows).tolist(), strict=True):
            row["likelihood"] = dict(zip(FEATURES, features, strict=True))
    for row, score, probs in zip(rows, score_B.tolist(), probs_BR.tolist(), strict=True):
        row.update(score=score, emotions=dict(zip(scorer.labels, probs, strict=True)))
        if config.explain:
            parts = [
                {"reaction": label, "probability": p, "weight": weight, "product": p * weight}
                for label, p, weight in zip(scorer.labels, probs, scorer.weights, strict=True)
            ]
            row["explain"] = sorted(parts, key=lambda part: -abs(part["product"]))
    # json's \u escapes stay: a half surrogate in a row could not be written otherwise
    write_whole(config.output_file, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} rows scored in {config.output_file}")


if __name__ == "__main__":
    from transformers import HfArgumentParser

    main(*HfArgumentParser(ScoreConfig).parse_args_into_dataclasses())
