"""What GRPO and DPO share: one of trl's own stable trainers as a stage of the project.

trl has the algorithm, its optimizer, checkpoints and resume. Ours are the scenes, the scorer, the evaluator and the run.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from data.scenes import Scene
from experiments.run import Run, last_checkpoint, one_gpu_a_process
from models.load import load_tokenizer, resolve, use_plain_attention
from models.sampling import positions
from rl.evaluate import Evaluator, SceneConfig, check_lengths, judges, opener_prompt, trainable_policy
from rl.rollout import POLICY, MergedCopy


@dataclass
class StableConfig(SceneConfig):
    """What trl's PPOConfig has and its other configurations have not."""

    sft_model_path: str = field(default="", metadata={"help": "SFT run that training starts from, and the reference"})
    reward_model_path: str = field(default="", metadata={"help": "the scorer that is optimised"})
    missing_eos_penalty: float = field(default=0.0, metadata={"help": "subtracted where an opener does not end"})

    def __post_init__(self):
        super().__post_init__()
        for key in ("sft_model_path", "reward_model_path"):
            if not getattr(self, key):
                raise ValueError(f"{key} is missing: give a run, a shipped model's name or a path")
        if self.missing_eos_penalty < 0:
            raise ValueError(f"missing_eos_penalty is {self.missing_eos_penalty}: it is subtracted, so 0 or more")


def configure(args: TrainingArguments, directory: Path) -> None:
    """What the recipe leaves to the stage. A checkpoint is written after every evaluation: one of them is the best."""
    one_gpu_a_process(args, "rl.grpo or rl.dpo")
    args.output_dir, args.report_to, args.logging_nan_inf_filter = str(directory), [], False
    args.disable_dropout = True  # old, new and reference probabilities are of the same network
    args.eval_strategy, args.save_strategy = "no", "steps"  # ours evaluates, with the same evaluator as PPO's
    if 0 < (args.eval_steps or 0) < 1:
        raise ValueError(f"eval_steps is {args.eval_steps}, a share of the run: give a number of optimizer steps")
    args.eval_steps = args.save_steps = int(args.eval_steps or 100)
    args.save_total_limit = None  # any of them may be the best


def make_evaluator(
    config: StableConfig, args: TrainingArguments, run: Run, temperature: float, response_length: int, batch_size: int
) -> Evaluator:
    """The evaluator, with tokenizer, policy and scorers loaded. The policy has POLICY alone: trl adds REFERENCE itself,
    a frozen copy of it as it is when the trainer is made. With adapters off the reference would be the base."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: openers are sampled, it must be above 0")
    tokenizer, policy = load_tokenizer(config.sft_model_path), trainable_policy(config.sft_model_path, config)
    if not config.quantization:  # which puts the model where it belongs by itself
        policy.to(args.device)
    if args.bf16 and args.device.type == "cpu":
        use_plain_attention(policy)
    derive_positions(policy)
    return Evaluator(
        config,
        run,
        tokenizer,
        policy,
        MergedCopy(policy),
        *judges(config, config.reward_model_path, args.device),
        temperature=temperature,
        response_length=response_length,
        end_token_id=tokenizer.eos_token_id,
        missing_eos_penalty=config.missing_eos_penalty,
        batch_size=batch_size,
        forward_batch_size=min(batch_size, 32),
    )


def derive_positions(policy: PeftModel) -> None:
    """From here on the trunk counts positions from the first real token where it is told none.

    trl's log-probability passes give ids and mask alone. A model whose positions are learnt, as the embedded base's, then
    counts the padding on the left too, and every row means something else in another batch.
    """

    def count(trunk, args, kwargs):
        if kwargs.get("position_ids") is None and kwargs.get("attention_mask") is not None:
            kwargs["position_ids"] = positions(kwargs["attention_mask"])
        return args, kwargs

    policy.get_base_model().base_model.register_forward_pre_hook(count, with_kwargs=True)


def check_scenes(evaluator: Evaluator, scenes: list[Scene], validation: list[Scene]) -> None:
    """Refuses scenes that cannot be trained on, naming them."""
    if not scenes:
        raise ValueError("scene_sources gave no training scenes")
    every = [*scenes, *validation]
    prompts = [opener_prompt(evaluator.tokenizer, scene, evaluator.config.instruction) for scene in every]
    check_lengths(evaluator.policy.config.max_position_embeddings, evaluator.response_length, every, prompts)


class Watch(TrainerCallback):
    """Passes the trainer's logs to the run, and evaluates the policy on validation scenes."""

    def __init__(self, evaluator: Evaluator, scenes: list[Scene]):
        self.evaluator, self.scenes = evaluator, scenes

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {f"train/{key}": value for key, value in logs.items() if isinstance(value, int | float)}
        self.evaluator.run.log(numbers, step=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.eval_steps == 0 or state.global_step >= state.max_steps:
            self.evaluator.validate(self.scenes, args.seed, state.global_step)


def fit(trainer: Trainer, evaluator: Evaluator, validation: list[Scene]) -> dict:
    """Trains, from the last whole checkpoint on if there is one, with evaluations before, during and after; then puts the
    best policy in place. Returns what summary.json says of it."""
    run, args, checkpoint = evaluator.run, trainer.args, last_checkpoint(evaluator.run.dir)
    trainer.add_callback(Watch(evaluator, validation))
    if checkpoint is None:
        run.rewind(-1)
        evaluator.validate(validation, args.seed, step=0)
        trainer.train()
    else:
        state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
        run.rewind(state.global_step)
        if state.global_step < state.max_steps:
            trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.accelerator.wait_for_everyone()
    return {"best": load_best(evaluator), "optimizer_steps": last_step(run)}


def load_best(evaluator: Evaluator) -> dict | None:
    """Puts the evaluated policy with the highest score within max_kl in place, PPO's rule; where none is, the last stays.

    Which one is read off metrics.jsonl, so that a resumed run needs no memory of its own.
    """
    found = [row for row in rows(evaluator.run) if row.get("eval/kl", math.inf) <= evaluator.config.max_kl]
    if not found:
        return None
    best = max(found, key=lambda row: row["eval/score"])
    directory = f"checkpoint-{best['step']}"
    path = evaluator.run.dir / directory if best["step"] else Path(resolve(evaluator.config.sft_model_path))
    set_peft_model_state_dict(evaluator.policy, load_file(path / "adapter_model.safetensors"), adapter_name=POLICY)
    adapter = f"{directory}/adapter_model.safetensors" if best["step"] else None
    return {"step": best["step"], "score": best["eval/score"], "kl": best["eval/kl"], "adapter": adapter}


def last_step(run: Run) -> int:
    return max(row["step"] for row in rows(run))


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
