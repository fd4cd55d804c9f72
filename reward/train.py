"""Trains the reward: an encoder that foretells how the other person takes an utterance.

    make reward          # python -m reward.train --config experiments/tiny/reward.yaml

Preset `reaction` reads (profile and context, utterance) and predicts the emotion of the next turn, or that there is
nothing to say to it; its negatives are replies of other dialogues and spoilt replies. Preset `text` predicts the
emotion of the utterance itself, as the original recipe's reward did. models/scorer.py turns either into one number.

LoRA on every linear layer and a fresh head, or all weights (`use_peft: false`). The best checkpoint by macro-F1 on
validation is kept, and one temperature is fitted there (Guo et al. 2017). What is left out: human ratings of
engagement, which only judge a reward and never train it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import f1_score
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data.dialogue import SPLITS
from experiments.run import Run, RunConfig, finish_run, parse_config, start_run
from models.load import MINILM_HUB, encoder_path, load_classifier, load_scorer
from models.scorer import PRESETS, Scorer, encode
from reward.emotions import labels_and_weights
from reward.pairs import SOURCES, load_rows


@dataclass
class RewardConfig(RunConfig):
    """What the reward is made of; names are transformers' and peft's where they exist."""

    model_name_or_path: str = field(default=MINILM_HUB, metadata={"help": "the encoder; MiniLM needs no hub"})
    preset: str = field(default="reaction", metadata={"help": "reaction, or text: the original's"})
    sources: list[str] = field(default_factory=lambda: ["sample"], metadata={"help": "sample, daily, go_emotions"})
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    swapped_ratio: float = field(default=1.0, metadata={"help": "replies of other dialogues per true row"})
    corrupted_ratio: float = field(default=0.25, metadata={"help": "spoilt replies per true row"})
    max_per_label: int = field(default=0, metadata={"help": "true training rows of each label at most; 0: all"})
    max_eval_samples: int = field(default=0, metadata={"help": "true rows of validation and of test; 0: all"})
    max_length: int = field(default=96, metadata={"help": "tokens of profile, context and response"})
    use_peft: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 32
    label_smoothing_factor: float = 0.0
    class_weight_power: float = field(default=0.5, metadata={"help": "loss weight of a label: its share to minus this"})
    eval_steps: float = field(default=0.2, metadata={"help": "validate and save so often; below 1: a share of the run"})
    bf16: bool = False
    seed: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, not one of {PRESETS}")
        if not self.sources or set(self.sources) - set(SOURCES):
            raise ValueError(f"sources are {self.sources}: give one or more of {SOURCES}")
        if self.preset == "reaction" and "go_emotions" in self.sources:
            raise ValueError("go_emotions has comments without answers: use it with preset: text")


def main(config: RewardConfig) -> None:
    run = start_run(config, stage="reward", seed=config.seed, parents=[encoder_path(config.model_name_or_path)])
    set_seed(config.seed)
    rows = {split: load_rows(config, split) for split in SPLITS}
    labels, weights = labels_and_weights(config.preset)

    model, tokenizer = make_model(config, labels)
    scorer = Scorer(model, tokenizer, labels, weights, config.preset, config.max_length)
    trainer = make_trainer(config, run, scorer, rows)
    before = {f"before/{split}/{k}": v for split in SPLITS[1:] for k, v in evaluate(scorer, rows[split]).items()}

    checkpoint = last_checkpoint(run.dir)
    run.rewind(int(checkpoint.name.split("-")[1]) if checkpoint else -1)
    if checkpoint is None:
        run.log(before, step=0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if run.is_main:
        scorer.save(run.dir / "model")
    trainer.accelerator.wait_for_everyone()

    # From disk: what the next stage will load, without training's autocast.
    scorer = load_scorer(run.dir, trainer.args.device)
    scorer.temperature = fit_temperature(scorer.logits(rows["validation"]), targets(rows["validation"], labels))
    after = {f"{split}/{k}": v for split in SPLITS[1:] for k, v in evaluate(scorer, rows[split]).items()}
    run.log(after, step=trainer.state.global_step)
    if run.is_main:
        scorer.save_settings(run.dir / "model")
    report(before, after)
    finish_run(run, {**before, **after, "temperature": scorer.temperature, "rows": len(rows["train"])})


def make_model(config: RewardConfig, labels: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder with a fresh head, under LoRA if asked for, and its tokenizer."""
    model = load_classifier(config.model_name_or_path, labels, config.preset)
    if config.use_peft:
        # SEQ_CLS trains the head in full and saves it with the adapter.
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            exclude_modules=r"(.*\.)?(classifier|score)(\..*)?",
        )
        model = get_peft_model(model, lora)
        # The adapter names its encoder as the recipe does, not by the place where this machine keeps it.
        model.peft_config["default"].base_model_name_or_path = config.model_name_or_path
    return model, AutoTokenizer.from_pretrained(encoder_path(config.model_name_or_path))


def evaluate(scorer: Scorer, rows: list[dict]) -> dict[str, float]:
    """macro_f1 over the labels that occur, accuracy and nll of all rows; macro_f1_true of the true rows alone; and how
    often a true reply scores above the reply of another dialogue, or above itself spoilt, in its place."""
    score_B, probs_BR = scorer.score(rows)
    target_B = targets(rows, scorer.labels)
    guess_B = probs_BR.argmax(-1)
    true = [i for i, row in enumerate(rows) if row["kind"] == "true"]
    metrics = {
        "macro_f1": macro_f1(target_B, guess_B),
        "macro_f1_true": macro_f1(target_B[true], guess_B[true]),
        "accuracy": (guess_B == target_B).float().mean().item(),
        "nll": -probs_BR.gather(1, target_B[:, None]).clamp_min(1e-12).log().mean().item(),
    }
    for kind in ("swapped", "corrupted"):
        spoilt = [i for i, row in enumerate(rows) if row["kind"] == kind]
        if spoilt:
            higher = score_B[[rows[i]["pair"] for i in spoilt]] > score_B[spoilt]
            metrics[f"true_above_{kind}"] = higher.float().mean().item()
    return metrics


def make_trainer(config: RewardConfig, run: Run, scorer: Scorer, rows: dict[str, list[dict]]) -> Trainer:
    """transformers' Trainer: rows of like length share a batch, the best checkpoint by macro-F1 is the one kept."""
    dataset = {}
    for split in ("train", "validation"):
        inputs = encode(scorer.tokenizer, rows[split], config.max_length, config.preset)
        target_B = targets(rows[split], scorer.labels).tolist()
        dataset[split] = [{**x, "labels": target} for x, target in zip(inputs, target_B, strict=True)]
    target_B = targets(rows["train"], scorer.labels)
    share_R = torch.bincount(target_B, minlength=len(scorer.labels)).clamp_min(1) / len(target_B)
    weight_R = share_R**-config.class_weight_power
    weight_R = weight_R / (weight_R * share_R).sum()  # 1 on average, so that the learning rate means the same

    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(
            outputs.logits.float(), labels, weight_R.to(labels.device), label_smoothing=config.label_smoothing_factor
        )

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        return {"macro_f1": macro_f1(prediction.label_ids, prediction.predictions.argmax(-1))}

    arguments = TrainingArguments(
        output_dir=str(run.dir),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),  # else transformers refuses bf16
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to="none",
        label_names=["labels"],  # found from forward() otherwise, and PairClassifier leaves the loss to us
        seed=config.seed,
        data_seed=config.seed,
    )
    return Trainer(
        model=scorer.model,
        args=arguments,
        data_collator=DataCollatorWithPadding(scorer.tokenizer),
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        compute_loss_func=loss,
        compute_metrics=metrics,
        callbacks=[LogToRun(run)],
    )


class LogToRun(TrainerCallback):
    """The Trainer's numbers into the run; a loss that is not finite ends it."""

    def __init__(self, run: Run):
        self.run = run

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.run.check_finite(logs["loss"], state.global_step)
        self.run.log({name.replace("eval_", "validation/"): value for name, value in logs.items()}, state.global_step)


def last_checkpoint(directory: Path) -> Path | None:
    """The latest checkpoint that was written to its end (trainer_state.json is its last file), or None."""
    whole = [path.parent for path in directory.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def targets(rows: list[dict], labels: list[str]) -> torch.Tensor:
    """target_B: each row's label as an index."""
    return torch.tensor([labels.index(row["label"]) for row in rows])


def macro_f1(target_B, guess_B) -> float:
    """The mean F1 of the labels that occur in target_B."""
    occurring = sorted({int(target) for target in target_B})
    return float(f1_score(target_B, guess_B, labels=occurring, average="macro", zero_division=0))


def fit_temperature(logits_BR: torch.Tensor, target_B: torch.Tensor) -> float:
    """The temperature in [0.1, 10], to 1 %, at which the negative log-likelihood is least."""
    grid = torch.logspace(-1, 1, 461).tolist()
    return min(grid, key=lambda t: torch.nn.functional.cross_entropy(logits_BR / t, target_B).item())


def report(before: dict[str, float], after: dict[str, float]) -> None:
    """A line per metric on the screen."""
    print(f"{'':32}  before   after")
    for name, value in after.items():
        print(f"{name:32}  {before['before/' + name]:6.3f}  {value:6.3f}")


if __name__ == "__main__":
    main(*parse_config(RewardConfig))
