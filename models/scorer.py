"""A scorer: (what is known and was said, the friend's utterance) -> how the other person takes it -> one number.

A sequence classifier with its own tokenizer, and beside its weights scorer.json: the labels, a weight per label, the
preset, the longest text in tokens, and the temperature found on validation. Two presets:

    reaction   labels are the other person's next reaction. The weighted sum of their probabilities is the engagement,
               in (0, 1); the score is its logit (PPO learns better from raw logits: huggingface/trl#173).
    text       labels are emotions of the utterance itself. The score is the weighted sum: positive (joy, surprise)
               less negative (disgust, fear, anger), in [-1, 1]. The original recipe's reward.

Axes: B rows, R labels (reactions).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

PRESETS = ("reaction", "text")

#: Preset `text`: the emotions of plain emotion classifiers, by the names they give them.
TEXT_WEIGHTS = {
    **{"joy": 1.0, "happiness": 1.0, "surprise": 1.0},
    **{"disgust": -1.0, "fear": -1.0, "anger": -1.0},
    **{"neutral": 0.0, "sadness": 0.0},
}


def check_row(row: dict) -> dict:
    """Returns row, or raises ValueError naming the key that is not as it must be:
    {"context": [str], "response": str, "profile": [str], optional}."""
    for key in ("context", "response"):
        if key not in row:
            raise ValueError(f"key {key!r} is missing; a row has context, response and, if known, profile")
    if not isinstance(row["response"], str):
        raise ValueError(f"key 'response' is a {type(row['response']).__name__}, not text")
    for key in ("context", "profile"):
        values = row.get(key) or []
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"key {key!r} must be a list of texts")
    return row


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int, preset: str) -> list[dict]:
    """Model inputs of each row, unpadded, at most max_length tokens: facts and context first, the response second.

    What is too long loses its oldest tokens of profile and context; the response is cut, at its end, only where it
    alone exceeds max_length. Preset `text` reads the response alone. Marks such as "[SEP]" inside a text are read as
    plain characters, so that no utterance can forge the form; half surrogates become "?".
    """
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    pair = preset == "reaction"
    room = max_length - fast.num_special_tokens_to_add(pair)
    known = [" | ".join([*filter(None, ["; ".join(row.get("profile") or [])]), *row["context"]]) for row in rows]
    firsts = fast.encode_batch([_printable(text) for text in known], add_special_tokens=False)
    seconds = fast.encode_batch([_printable(row["response"]) for row in rows], add_special_tokens=False)
    inputs = []
    for first, second in zip(firsts, seconds, strict=True):
        second.truncate(room)
        first.truncate(room - len(second), direction="left")
        whole = fast.post_process(first, second) if pair else fast.post_process(second)
        inputs.append({"input_ids": whole.ids, "attention_mask": whole.attention_mask})
        if "token_type_ids" in tokenizer.model_input_names:
            inputs[-1]["token_type_ids"] = whole.type_ids
    return inputs


@dataclass
class Scorer:
    """A classifier and what turns its logits into a score. `labels` are in the order of the logits."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    weights: list[float]
    preset: str
    max_length: int
    temperature: float = 1.0

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, not one of {PRESETS}")
        if not len(self.labels) == len(self.weights) == self.model.config.num_labels:
            raise ValueError(
                f"{len(self.labels)} labels, {len(self.weights)} weights, {self.model.config.num_labels} outputs: "
                "scorer.json belongs to another model"
            )
        if self.preset == "reaction" and not all(0 < weight < 1 for weight in self.weights):
            raise ValueError(f"weights are {self.weights}: each must lie between 0 and 1, so that the logit is finite")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but must be above 0")

    def score(self, rows: list[dict], batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """score_B and probs_BR, float32 on the CPU, in the order of `rows`.

        An empty response (no characters but white space, or none that the tokenizer knows) gets the lowest score there
        is, as if the worst label were certain: nobody can react to nothing, and a policy that may fall silent for an
        average score would learn to. Raises ValueError naming the row and its missing or wrong key.
        """
        logits_BR, empty_B = self._logits(rows, batch_size)
        probs_BR = (logits_BR / self.temperature).softmax(-1)
        weights_R = torch.tensor(self.weights)
        worst_R = (weights_R == weights_R.min()).float()
        probs_BR[empty_B] = worst_R / worst_R.sum()
        value_B = probs_BR @ weights_R
        return (torch.logit(value_B) if self.preset == "reaction" else value_B), probs_BR

    def logits(self, rows: list[dict], batch_size: int = 64) -> torch.Tensor:
        """logits_BR of the classifier before the temperature, float32 on the CPU."""
        return self._logits(rows, batch_size)[0]

    @torch.inference_mode()
    def _logits(self, rows: list[dict], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        for i, row in enumerate(rows):
            try:
                check_row(row)
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from None
        self.model.eval()
        inputs = encode(self.tokenizer, rows, self.max_length, self.preset)
        nothing = encode(self.tokenizer, [{"context": [], "response": ""}], self.max_length, "text")[0]["input_ids"]
        alone = encode(self.tokenizer, rows, self.max_length, "text")
        empty = [not row["response"].strip() or x["input_ids"] == nothing for row, x in zip(rows, alone, strict=True)]
        pad = DataCollatorWithPadding(self.tokenizer)
        logits_BR = torch.empty(len(rows), len(self.labels))
        # Rows of like length share a batch: little is padding.
        order = sorted(range(len(rows)), key=lambda i: len(inputs[i]["input_ids"]), reverse=True)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            batch = pad([inputs[i] for i in chosen]).to(self.model.device)
            logits_BR[chosen] = self.model(**batch).logits.float().cpu()
        return logits_BR, torch.tensor(empty, dtype=torch.bool)

    def save(self, directory: str | Path) -> None:
        """Writes weights (an adapter's alone, where there is one), tokenizer and scorer.json."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self.save_settings(directory)

    def save_settings(self, directory: str | Path) -> None:
        """Writes scorer.json alone."""
        names = ("preset", "labels", "weights", "max_length", "temperature")
        settings = {name: self.__dict__[name] for name in names}
        (Path(directory) / "scorer.json").write_text(json.dumps(settings, indent=1) + "\n")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a half surrogate is no character: tokenizers refuse it
