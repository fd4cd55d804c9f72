"""Our SFT stage's trainer against the way of the original recipe: transformers' Trainer, each dialogue padded to the longest
of its batch, batches in random order, loss on every token.

The same base with the same fresh LoRA, the same dialogues (the tiny recipe's, experiments/tiny/sft.yaml), batch, precision
and schedule, and the loss of next tokens in both (transformers gives a Bert, decoder or not, that of masked LMs). Ours puts
the loss on the friend's turns, computes logits of these alone, and puts like lengths into a batch. Both train in turn, 30
steps a round, each in a process of its own.

What is counted is the same for both: tokens of the friend's turns (their end tokens too), that is of the text that the
friend is to learn and that held-out loss is measured on; and, as real_, all tokens but padding. Held-out loss is the
stage's own evaluation, nats a token of the friend's turns in validation dialogues, after equally many dialogues.

Prints, last, one line of JSON: tokens_per_s, stock_tokens_per_s, ratio, ratio_std (of paired rounds), real_tokens_per_s,
stock_real_tokens_per_s, held_out_loss, stock_held_out_loss, dialogues, peak_mb_above_loading, stock_peak_mb_above_loading,
memory_ratio. About ten minutes on two cores.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch
import yaml
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments
from trl import SFTConfig

from data.friend import mixture
from experiments.bench.side import Rounds, Side, Turns, paired, rounded, show, spread
from experiments.run import Run
from sft.train import FriendConfig, FriendTrainer, learnt, make_trainer

ROUNDS = 5
STEPS = 30
RECIPE = Path("experiments/tiny/sft.yaml")
SMALLEST = {
    "steps": 2,
    "changed": {"sources": ["sample"], "per_device_train_batch_size": 2, "max_eval_dialogues": 4, "warmup_steps": 0},
}


def bench(rounds: int = ROUNDS, base: str = "friend-base", steps: int = STEPS, changed: dict | None = None) -> dict:
    """Figures of both, on `base`, the tiny recipe's settings `changed`."""
    settings = {"max_steps": (rounds + 1) * steps, "steps": steps, "changed": {**(changed or {}), "base": base}}
    ours, stock = Side(train_ours, **settings), Side(train_stock, **settings)
    pairs = paired(ours, stock, rounds, "sft")
    ours, stock = ours.finish(), stock.finish()
    ratios = [speed([a], "friend_tokens") / speed([b], "friend_tokens") for a, b in pairs]
    ours_rounds, stock_rounds = zip(*pairs, strict=True)
    figures = rounded(
        {
            "tokens_per_s": speed(ours_rounds, "friend_tokens"),
            "stock_tokens_per_s": speed(stock_rounds, "friend_tokens"),
            "ratio": mean(ratios),
            "ratio_std": spread(ratios),
            "real_tokens_per_s": speed(ours_rounds, "real_tokens"),
            "stock_real_tokens_per_s": speed(stock_rounds, "real_tokens"),
            "held_out_loss": ours["loss"],
            "stock_held_out_loss": stock["loss"],
            "dialogues": ours["dialogues"],
            "peak_mb_above_loading": ours["peak_mb"],
            "stock_peak_mb_above_loading": stock["peak_mb"],
            "memory_ratio": ours["peak_mb"] / stock["peak_mb"],
        }
    )
    show("sft", figures)
    return figures


def speed(rounds: list[dict], key: str) -> float:
    """Tokens a second over rounds."""
    return sum(done[key] for done in rounds) / sum(done["seconds"] for done in rounds)


def train_ours(turns: Turns, steps: int, **settings) -> dict:
    """The stage's own trainer, without the evaluations and checkpoints on its way."""
    with tempfile.TemporaryDirectory() as directory:
        _, trainer = load(directory, **settings)
        turns.loaded()
        rounds = Rounds(turns, steps)
        trainer.counted = rounds.counted
        trainer.add_callback(rounds)
        trainer.train()
        return {"loss": trainer.evaluate()["eval_loss"], "dialogues": dialogues(trainer)}


def train_stock(turns: Turns, steps: int, **settings) -> dict:
    """transformers' Trainer on the same model and rows, then the stage's evaluation."""
    with tempfile.TemporaryDirectory() as directory:
        values, friend = load(directory, **settings)
        known = {key: value for key, value in values.items() if key in TrainingArguments.__dataclass_fields__}
        args = TrainingArguments(
            output_dir=directory,
            **known | {"eval_strategy": "no", "save_strategy": "no", "report_to": [], "remove_unused_columns": False},
        )
        friend.model.get_base_model().set_attn_implementation("sdpa")  # transformers' default
        turns.loaded()
        rounds = Rounds(turns, steps)
        trainer = PaddedTrainer(
            model=friend.model,
            args=args,
            train_dataset=friend.train_dataset,
            data_collator=Padding(friend.processing_class.pad_token_id),
            compute_loss_func=loss_of_all,
            callbacks=[rounds],
        )
        trainer.counted = rounds.counted
        trainer.train()
        return {"loss": friend.evaluate()["eval_loss"], "dialogues": dialogues(trainer)}


def loss_of_all(outputs, labels_BT: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Mean nats of a next token."""
    keep_BT = learnt(labels_BT)
    label_N = labels_BT.roll(-1, 1)[keep_BT]
    nats = torch.nn.functional.cross_entropy(outputs.logits[keep_BT].float(), label_N, reduction="sum")
    return nats / (len(label_N) if num_items_in_batch is None else num_items_in_batch)


def load(directory: str, max_steps: int, changed: dict) -> tuple[dict, "CountedFriendTrainer"]:
    """The tiny recipe's values with `changed` ones, and the stage's trainer of them."""
    values = {**yaml.safe_load(RECIPE.read_text()), **changed, "max_steps": max_steps, "disable_tqdm": True}
    values["model_name_or_path"] = values.pop("base")
    config = FriendConfig(**{key: values.pop(key) for key in FriendConfig.__dataclass_fields__ if key in values})
    args = SFTConfig(output_dir=directory, **values)
    splits, _ = mixture(config.preset, tuple(config.sources), config.data_root)
    run = Run(Path(directory), "bench", "step", SimpleNamespace(log=lambda row: None))
    trainer, _ = make_trainer(config, args, splits, run, CountedFriendTrainer)
    args.load_best_model_at_end, args.eval_strategy, args.save_strategy = False, "no", "no"
    return values, trainer


class CountedFriendTrainer(FriendTrainer):
    """The stage's trainer, which counts what it has read."""

    counted = Counter()

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.counted["friend_tokens"] += int((inputs["labels"] != -100).sum())
        self.counted["real_tokens"] += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, num_items_in_batch)


class PaddedTrainer(Trainer):
    """transformers' own, which counts the same."""

    counted = Counter()

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.counted["friend_tokens"] += int(inputs.pop("friend_tokens").sum())
        self.counted["real_tokens"] += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, num_items_in_batch)


@dataclass
class Padding:
    """Rows as long as the longest; every token but padding is learnt. friend_tokens [B]: how many of them the friend's."""

    pad_token_id: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(ids, batch_first=True, padding_value=-100),
            "friend_tokens": torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows]),
        }


def dialogues(trainer: Trainer) -> int:
    args = trainer.args
    return trainer.state.global_step * args.train_batch_size * args.gradient_accumulation_steps
