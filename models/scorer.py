"""A scorer: (what is known and was said, the friend's utterance) -> how the other person takes it -> one number.

A sequence classifier with its own tokenizer, and beside its weights scorer.json: the labels, a weight per label, the
preset, the longest text in tokens, and the temperature found on validation. Two presets:

    reaction   labels are the other person's next reaction. The weighted sum of their probabilities is the engagement,
               in (0, 1); the score is its logit (PPO learns better from raw logits: huggingface/trl#173).
    text       labels are emotions of the utterance itself. The score is the weighted sum: positive (joy, surprise)
               less negative (disgust, fear, anger), in [-1, 1]. The original recipe's reward.

Beside a classifier with preset `reaction` a language model may stand as a second witness (models/likelihood.py): what it
says of an utterance lowers the logit of the worst label by w . features + b, fitted on validation by reward/train.py.

Several members (heads on one encoder) make an ensemble, whose score is their mean, the mean less the standard deviation
("pessimistic") or the minimum (Coste et al. 2023, section 3.2).

Axes: B rows, K members, R labels (reactions), E emotions, F features of the language model.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.likelihood import FEATURES, Likelihood
from models.sampling import printable

PRESETS = ("reaction", "text")
AGGREGATES = ("mean", "pessimistic", "min")
DTYPES = ("auto", "float32", "bfloat16")
_SETTING = Lock()  # of a tokenizer: no two threads may do so at once

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
        values = row[key] if key == "context" else row.get(key) or []
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"key {key!r} must be a list of texts")
    return row


def known(row: dict) -> str:
    """The first segment: the facts, then the turns, as the classifiers were trained to read them."""
    return " | ".join([*filter(None, ["; ".join(row.get("profile") or [])]), *row["context"]])


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int, preset: str) -> list[dict]:
    """Model inputs of each row, unpadded, at most max_length tokens: facts and context first, the response second.

    What is too long loses its oldest tokens of profile and context; the response is cut, at its end, only where it
    alone exceeds max_length. Preset `text` reads the response alone. Marks such as "[SEP]" inside a text are read as
    plain characters, so that no utterance can forge the form; half surrogates become "?".
    """
    fast = tokenizer.backend_tokenizer
    pair = preset == "reaction"
    with _SETTING:
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = True
        firsts = fast.encode_batch([printable(known(row)) if pair else "" for row in rows], add_special_tokens=False)
        seconds = fast.encode_batch([printable(row["response"]) for row in rows], add_special_tokens=False)
    room = max_length - fast.num_special_tokens_to_add(pair)
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
    num_members: int = 1
    aggregate: str = "mean"
    architecture: str = "cross_encoder"
    likelihood: Likelihood | None = None
    likelihood_weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*FEATURES, "bias"), 0.0))

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, not one of {PRESETS}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate is {self.aggregate!r}, not one of {AGGREGATES}")
        if not len(self.labels) == len(self.weights) == self.model.config.num_labels:
            raise ValueError(
                f"{len(self.labels)} labels, {len(self.weights)} weights, {self.model.config.num_labels} outputs: "
                "scorer.json belongs to another model"
            )
        if self.preset == "reaction" and not all(0 < weight < 1 for weight in self.weights):
            raise ValueError(f"weights are {self.weights}: each must lie between 0 and 1, so that the logit is finite")
        if self.likelihood and self.preset != "reaction":
            raise ValueError("a language model is given, but preset text reads an utterance alone: it knows no moment")
        if self.likelihood and set(self.likelihood_weights) != {*FEATURES, "bias"}:
            raise ValueError(f"likelihood weighs {sorted(self.likelihood_weights)}, not {FEATURES} and bias")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but must be above 0")

    @property
    def worst(self) -> int:
        """The label that weighs least, which a language model speaks for or against."""
        return self.weights.index(min(self.weights))

    @property
    def lowest(self) -> float:
        """The score of the worst label for certain: there is none below."""
        weight = torch.tensor(min(self.weights))
        return (torch.logit(weight) if self.preset == "reaction" else weight).item()

    def score(self, rows: list[dict], batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """score_B and probs_BR, float32 on the CPU, in the order of `rows`.

        An empty response (no characters but white space, or none that the tokenizer knows) gets the lowest score there
        is, as if the worst label were certain: nobody can react to nothing, and a policy that may fall silent for an
        average score would learn to. Raises ValueError naming the row and its missing or wrong key.
        """
        probs_BKR = self._probs(rows, batch_size)
        score_BK = probs_BKR @ torch.tensor(self.weights)
        if self.preset == "reaction":
            score_BK = torch.logit(score_BK)
        score_B = score_BK.min(1).values if self.aggregate == "min" else score_BK.mean(1)
        if self.aggregate == "pessimistic":
            # Members that disagree about a bad reply are not to make it worse than silence.
            score_B = (score_B - score_BK.std(1, correction=0)).clamp_min(self.lowest)
        return score_B, probs_BKR.mean(1)

    def logits(self, rows: list[dict], batch_size: int = 64) -> torch.Tensor:
        """logits_BKR of the classifier before the temperature, float32 on the CPU."""
        return self._outputs(rows, batch_size)[0].view(len(rows), self.num_members, len(self.labels))

    def emotions(self, rows: list[dict], batch_size: int = 64) -> torch.Tensor:
        """probs_BE: of each of GoEmotions' labels, whether the response alone shows it (reward.emotions' order).

        Raises ValueError for a model without that head: a plain emotion classifier, or an encoder that is no Bert.
        """
        emotion_logits_BE = self._outputs(rows, batch_size)[1]
        if emotion_logits_BE is None:
            raise ValueError("this model has no head for emotions: train it with reward.train on a Bert encoder")
        return emotion_logits_BE.sigmoid()

    def _probs(self, rows: list[dict], batch_size: int) -> torch.Tensor:
        """probs_BKR at the fitted temperature; of an empty response, the worst label for certain."""
        logits_BKR = self.logits(rows, batch_size) / self.temperature
        if self.likelihood:
            weights = self.likelihood_weights
            weights_F, features_BF = [weights[name] for name in FEATURES], self.likelihood.features(rows)
            logits_BKR = with_evidence(logits_BKR, features_BF, weights_F, weights["bias"], self.worst)
        probs_BKR = logits_BKR.softmax(-1)
        alone = encode(self.tokenizer, [{"context": [], "response": ""}, *rows], self.max_length, "text")
        ids = [row["input_ids"] for row in alone]
        empty = [not row["response"].strip() or x == ids[0] for row, x in zip(rows, ids[1:], strict=True)]
        empty_B = torch.tensor(empty, dtype=torch.bool)
        weights_R = torch.tensor(self.weights)
        worst_R = (weights_R == weights_R.min()).float()
        probs_BKR[empty_B] = worst_R / worst_R.sum()
        return probs_BKR

    @torch.inference_mode()
    def _outputs(self, rows: list[dict], batch_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        for i, row in enumerate(rows):
            try:
                check_row(row)
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from None
        self.model.eval()
        inputs = encode(self.tokenizer, rows, self.max_length, self.preset)
        logits_BN = torch.empty(len(rows), self.num_members * len(self.labels))
        emotion_logits_BE = None
        # Rows of like length share a batch: little is padding.
        order = sorted(range(len(rows)), key=lambda i: len(inputs[i]["input_ids"]), reverse=True)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            # On the right, whatever the tokenizer was saved with: a Bert's first state must be the [CLS], not a pad.
            batch = self.tokenizer.pad([inputs[i] for i in chosen], padding_side="right", return_tensors="pt")
            outputs = self.model(**batch.to(self.model.device))
            logits_BN[chosen] = outputs.logits.float().cpu()
            if "emotion_logits" in outputs:
                if emotion_logits_BE is None:
                    emotion_logits_BE = torch.empty(len(rows), outputs.emotion_logits.shape[1])
                emotion_logits_BE[chosen] = outputs.emotion_logits.float().cpu()
        return logits_BN, emotion_logits_BE

    def save(self, directory: str | Path) -> None:
        """Writes weights (an adapter's alone, where there is one), tokenizer and scorer.json."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self.save_settings(directory)

    def save_settings(self, directory: str | Path) -> None:
        """Writes scorer.json alone."""
        names = ("preset", "labels", "weights", "max_length", "temperature", "num_members", "aggregate", "architecture")
        settings = {name: self.__dict__[name] for name in names}
        if self.likelihood:
            settings["likelihood"] = {"model": self.likelihood.name, **self.likelihood_weights}
        (Path(directory) / "scorer.json").write_text(json.dumps(settings, indent=1) + "\n")


def with_evidence(logits_BKR: torch.Tensor, features_BF: torch.Tensor, weights_F, bias, worst: int) -> torch.Tensor:
    """The logits, that of label `worst` lowered by w . features + b: were a feature the log-odds that a reply belongs to its
    moment, Bayes' rule would ask for just this."""
    shift_BK = (features_BF @ torch.as_tensor(weights_F) + bias)[:, None].expand(logits_BKR.shape[:2])
    is_worst_R = torch.arange(logits_BKR.shape[-1]) == worst
    return logits_BKR - shift_BK[..., None] * is_worst_R


class LengthScorer:
    """A scorer that asks for TARGET words and reads none of them: 1 - |words / TARGET - 1|, at most 1. What PPO gains by
    it on another score, length alone can gain (Singhal et al. 2023, section 4: their control LPPO, in tokens there)."""

    TARGET = 16  # half as many again as the embedded SFT policy's openers have
    labels, preset, likelihood = ["length"], "length", None

    def __init__(self):
        self.model = nn.Identity()  # where a trainer expects one to move about

    def score(self, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """score_B, and the one "label" there is, [B, 1] of ones."""
        words_B = torch.tensor([float(len(row["response"].split())) for row in rows])
        return 1 - (words_B / self.TARGET - 1).abs(), torch.ones(len(rows), 1)
