"""SFT: LoRA on a causal LM gives the base *friend* (or, with `role: person`, a simulated person).

    make sft             # python -m sft.train --config experiments/tiny/sft.yaml

trl's SFTTrainer on the friend's mixture, loss on the friend's turns only, batches of like length so that little is
padding. Evaluation is exact: nats over all of the friend's held-out tokens, also as bits per byte of the friend's text,
which can be compared across tokenizers. The original's settings (LoRA r 16, alpha 32, dropout 0.05) are the defaults.
"""

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainerState, set_seed
from trl import SFTConfig, SFTTrainer

from data.dialogue import INSTRUCTIONS, SPEAKERS, Dialogue, messages
from data.friend import SOURCES, mixture
from data.order import ReadsInOrder
from data.scenes import prompt_messages, scenes_of
from experiments.run import (
    Run,
    RunConfig,
    StopsAtNan,
    finish_run,
    last_checkpoint,
    one_gpu_a_process,
    parse_config,
    start_run,
)
from models.load import load_base, load_tokenizer, name_base, resolve, use_plain_attention
from models.lora import fuse
from models.sampling import prompt_ids, say


@dataclass
class FriendConfig(RunConfig):
    """What is trained on what; how it is trained stands in trl's SFTConfig."""

    model_name_or_path: str = field(default="friend-base", metadata={"help": "shipped name, path or hub id"})
    sources: list[str] = field(default_factory=lambda: ["sample"], metadata={"help": f"some of {', '.join(SOURCES)}"})
    preset: str = field(default="clean", metadata={"help": "clean, or original: the original recipe's rules"})
    instruction: str = field(default="friend", metadata={"help": f"one of {sorted(INSTRUCTIONS)}"})
    role: str = field(default="friend", metadata={"help": "whose turns are learnt: friend, or person (simulated)"})
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    max_eval_dialogues: int = field(default=500, metadata={"help": "validation dialogues, during training and after"})
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: str = field(default="all-linear", metadata={"help": "or names, separated by commas"})
    model_dtype: str = "float32"
    quantization: str | None = field(default=None, metadata={"help": "8bit or 4bit, with bitsandbytes"})
    max_new_tokens: int = field(default=48, metadata={"help": "of the sampled replies and openers"})
    temperature: float = field(default=0.7, metadata={"help": "of the sampled replies and openers"})

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("instruction", INSTRUCTIONS),
            ("role", SPEAKERS),
            ("quantization", (None, "8bit", "4bit")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {list(allowed)}")


def main(config: FriendConfig, args: SFTConfig) -> None:
    run = start_run(config, args, stage="sft", seed=args.seed, parents=[resolve(config.model_name_or_path)])
    splits, _ = mixture(config.preset, tuple(config.sources), config.data_root)
    trainer, data = make_trainer(config, args, splits, run, FriendTrainer)
    before = trainer.evaluate()
    trainer.add_callback(RunCallback(run))
    metrics = fit(trainer, run, before)
    after = trainer.evaluate()
    test = spread(data["test"], config.max_eval_dialogues) if "test" in data else None  # `original` trains on it
    held_out = trainer.evaluate(trainer.prepare(test), metric_key_prefix="test") if test else {}

    columns, rows = sampled(trainer.model, trainer.processing_class, data["validation"], config, args.seed)
    run.table("samples", columns, rows)
    trainer.save_model(str(run.dir / "model"))  # the adapter and the tokenizer
    if run.is_main:
        name_base(run.dir / "model", config.model_name_or_path)
        (run.dir / "model" / "training_args.bin").unlink()  # a pickle; config.json says the same
    finish_run(
        run,
        {
            "before": before,
            "after": after,
            "test": held_out,
            "steps": trainer.state.global_step,
            "tokens_per_s": metrics.get("train_tokens_per_second"),
            "train_runtime_s": metrics.get("train_runtime"),
            "examples": {name: len(part) for name, part in splits.items()},
        },
    )


def make_trainer(
    config: FriendConfig, args: SFTConfig, splits: dict[str, list[Dialogue]], run: Run, kind: type["FriendTrainer"]
) -> tuple["FriendTrainer", dict[str, Dataset]]:
    """The stage's trainer, of class `kind`, before its first step; and the chats of each split."""
    set_seed(args.seed)
    tokenizer = load_tokenizer(config.model_name_or_path, args.chat_template_path)
    model = lora_model(config)
    fuse(model)
    if args.bf16 and args.device.type == "cpu":
        use_plain_attention(model)
    data = {name: chats(part, config, tokenizer, args.max_length) for name, part in splits.items()}
    configure(args, run.dir)
    trainer = kind(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=spread(data["validation"], config.max_eval_dialogues),
    )
    trainer.run = run
    return trainer, data


def lora_model(config: FriendConfig):
    """The base with a fresh adapter."""
    base = load_base(config.model_name_or_path, config.model_dtype, config.quantization)
    targets = config.lora_target_modules
    return get_peft_model(
        base,
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets if targets == "all-linear" else targets.split(","),
            task_type="CAUSAL_LM",
        ),
    )


def chats(dialogues: list[Dialogue], config: FriendConfig, tokenizer, max_length: int) -> Dataset:
    """Rows {"messages"} with `role`'s turns as the assistant's, and the bytes of that text.

    A dialogue over `max_length` tokens loses its last turns; one in which `role` then says nothing is left out.
    """
    rows = []
    for dialogue in dialogues:
        chat = messages(dialogue, INSTRUCTIONS[config.instruction], config.role)
        while chat and len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) > max_length:
            chat = chat[:-1]
        spoken = [m["content"] for m in chat if m["role"] == "assistant"]
        if spoken:
            rows.append({"messages": chat, "spoken_bytes": sum(len(text.encode()) for text in spoken)})
    if not rows:
        raise ValueError(f"no {config.role} turns in this split of {config.sources}: check sources and max_length")
    return Dataset.from_list(rows)


def spread(dataset: Dataset, most: int) -> Dataset:
    """At most `most` rows, evenly spread over the dataset, so that every source is among them."""
    if len(dataset) <= most:
        return dataset
    return dataset.select([round(i * len(dataset) / most) for i in range(most)])


def configure(args: SFTConfig, directory: Path) -> None:
    """What the recipe leaves to the stage: where things go, and settings that this stage relies on."""
    one_gpu_a_process(args, "sft.train")
    args.output_dir = str(directory)
    args.assistant_only_loss = True
    args.loss_type = "nll"  # trl's chunked_nll skips what a Bert has between its trunk and its output embedding
    args.report_to = []  # the run's own callback logs
    args.logging_nan_inf_filter = False
    args.load_best_model_at_end = True
    args.metric_for_best_model = "eval_loss"
    args.greater_is_better = False
    args.eval_strategy = args.save_strategy = "steps"
    args.eval_steps = args.save_steps = args.eval_steps or 100
    args.include_num_input_tokens_seen = "non_padding"
    args.remove_unused_columns = True


def next_token_loss(outputs, labels_BT: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Mean nats per learnt token, of the whole accumulated batch where its number of tokens is given; logits are those of
    `learnt` places, [1, N, V].

    Not the model's own: transformers gives a Bert, decoder or not, the unshifted loss of masked LMs.
    """
    label_N = labels_BT[:, 1:][labels_BT[:, 1:] != -100]
    nats = torch.nn.functional.cross_entropy(outputs.logits[0].float(), label_N, reduction="sum")
    return nats / (len(label_N) if num_items_in_batch is None else num_items_in_batch)


def learnt(labels_BT: torch.Tensor) -> torch.Tensor:
    """keep_BT: the places whose next token is learnt."""
    return torch.nn.functional.pad(labels_BT[:, 1:] != -100, (0, 1))


@contextlib.contextmanager
def only_at(keep_BT: torch.Tensor, model: PeftModel):
    """Inside, the output layer gets the trunk's states of these N places alone, as one row: logits are [1, N, V].

    Half of a dialogue is the other side's, and logits of the whole vocabulary cost a third of a small model's step.
    """

    def choose(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state[keep_BT][None]
        return output

    hook = model.get_base_model().base_model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


class FriendTrainer(ReadsInOrder, StopsAtNan, SFTTrainer):
    """SFTTrainer with logits of the learnt tokens alone, an exact evaluation, an order of rows that survives a resume, and
    a stop at the first loss that is not a number."""

    def __init__(self, **settings):
        super().__init__(compute_loss_func=next_token_loss, **settings)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """transformers' own. trl's adds the entropy at every place, over the whole vocabulary, at every step."""
        inputs["use_cache"] = False
        with only_at(learnt(inputs["labels"]), self.accelerator.unwrap_model(model)):
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        return self.in_order(lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Another dataset, tokenised as the training set was."""
        return self._prepare_dataset(dataset, self.processing_class, self.args, False, None, "test")

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean nats per token of the role's turns, end tokens included, and bits per byte of their text."""
        loader = self.get_eval_dataloader(eval_dataset)
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)  # nats, tokens
        for batch in loader:
            keep_BT = learnt(batch["labels"])
            with only_at(keep_BT, self.model), self.compute_loss_context_manager():
                logits_NV = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0]
            label_N = batch["labels"].roll(-1, 1)[keep_BT]
            nats_N = torch.nn.functional.cross_entropy(logits_NV.float(), label_N, reduction="none")
            rows = torch.zeros(len(keep_BT), 2, dtype=torch.float64, device=sums.device)
            rows[:, 0].index_add_(0, keep_BT.nonzero()[:, 0], nats_N.double())
            rows[:, 1] = keep_BT.sum(1)
            sums += self.accelerator.gather_for_metrics(rows).sum(0)  # less those that only fill the last batch
        nats, tokens = sums.tolist()
        size = sum((eval_dataset or self.eval_dataset)["spoken_bytes"])
        result = {
            f"{metric_key_prefix}_loss": nats / tokens,
            f"{metric_key_prefix}_bits_per_byte": nats / math.log(2) / size,
        }
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result


class RunCallback(TrainerCallback):
    """Passes the trainer's logs to the run."""

    def __init__(self, run):
        self.run = run

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            numbers = {k: v for k, v in logs.items() if isinstance(v, int | float)}
            self.run.log(
                {
                    k.replace("_", "/", 1) if k.startswith(("eval_", "test_")) else f"train/{k}": v
                    for k, v in numbers.items()
                },
                step=state.global_step,
            )


def fit(trainer: FriendTrainer, run: Run, before: dict[str, float]) -> dict[str, float]:
    """Trains, from the last whole checkpoint on if there is one; returns transformers' metrics of the training.

    A run that was interrupted after its last step gets its best weights back and no more: transformers would take one
    step beyond the end. Its metrics are then unknown.
    """
    checkpoint = last_checkpoint(run.dir)
    if checkpoint is None:
        run.rewind(-1)
        trainer.log(before)
        return trainer.train().metrics
    state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
    run.rewind(state.global_step)
    if state.global_step < state.max_steps:
        return trainer.train(resume_from_checkpoint=str(checkpoint)).metrics
    trainer.state = state
    trainer._load_best_model()
    return {}


def sampled(model, tokenizer, dialogues: Dataset, config: FriendConfig, seed: int) -> tuple[list[str], list[list]]:
    """A table of what the model says, where its context has room: replies in validation dialogues, and openers for
    validation scenes."""
    instruction, rows, chats_ = INSTRUCTIONS[config.instruction], [], []
    for chat in dialogues[:20]["messages"]:
        last = max(i for i, m in enumerate(chat) if m["role"] == "assistant")
        chats_.append(("reply", chat[:last], chat[last]["content"]))
    if config.role == "friend":
        for scene in scenes_of("sample", "validation", most=20):
            chats_.append(("opener", prompt_messages(scene, instruction), ""))
    prompts = [prompt_ids(tokenizer, c) for _, c, _ in chats_]
    room = model.config.max_position_embeddings - config.max_new_tokens
    chats_ = [chat for chat, prompt in zip(chats_, prompts, strict=True) if len(prompt) <= room]
    prompts = [prompt for prompt in prompts if len(prompt) <= room]
    model.eval()
    said, _ = say(
        model,
        tokenizer,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
    )
    for (kind, chat, human), text in zip(chats_, said, strict=True):
        rows.append(
            [kind, " | ".join(m["content"] for m in chat if m["role"] != "system"), chat[0]["content"], text, human]
        )
    return ["kind", "heard", "system", "said", "human"], rows


if __name__ == "__main__":
    main(*parse_config(FriendConfig, SFTConfig))
