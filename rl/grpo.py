"""GRPO on the scenes, the reward and the evaluation of PPO, by trl's GRPOTrainer (Shao et al. 2024, section 4.1).

    make grpo            # python -m rl.grpo --config experiments/tiny/grpo.yaml

For each scene a group of openers is sampled; an opener's advantage is its score against the group's, the same for all its
tokens, so there is no value model. The KL to the SFT adapter stands in the loss, times `beta`, per token (k3).
"""

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from data.dialogue import INSTRUCTIONS
from data.scenes import Scene, prompt_messages
from experiments.run import StopsAtNan, parse_config, start_run
from rl.evaluate import Evaluator, conclude, splits
from rl.stable import StableConfig, check_scenes, configure, fit, make_evaluator


def main(config: StableConfig, args: GRPOConfig) -> None:
    parents = [config.sft_model_path, config.reward_model_path]
    run = start_run(config, args, stage="grpo", seed=args.seed, parents=parents)
    configure(args, run.dir)
    train, validation, test = splits(config)
    check(args, train)
    evaluator = make_evaluator(
        config, args, run, args.temperature, args.max_completion_length, args.generation_batch_size
    )
    check_scenes(evaluator, train, validation)

    trainer = opener_trainer(args, evaluator, train)
    summary = fit(trainer, evaluator, validation)
    conclude("grpo", evaluator, test, config.sft_model_path, args.seed, summary)


def check(args: GRPOConfig, scenes: list[Scene]) -> None:
    """Refuses settings that cannot work, naming the key."""
    if args.beta <= 0:
        raise ValueError(f"beta is {args.beta}: without a KL in its loss the policy forgets the friend; set it above 0")
    groups = args.generation_batch_size // args.num_generations
    if len(scenes) < groups:
        raise ValueError(
            f"{len(scenes)} training scenes, but generation_batch_size {args.generation_batch_size} / num_generations "
            f"{args.num_generations} takes {groups} different ones: lower generation_batch_size or take more scenes"
        )
    period = args.steps_per_generation * args.num_iterations
    if args.eval_steps * args.gradient_accumulation_steps % period:
        raise ValueError(
            f"eval_steps is {args.eval_steps}: a checkpoint must fall between two generations, so eval_steps x "
            f"gradient_accumulation_steps must be a multiple of steps_per_generation x num_iterations = {period}"
        )


class OpenerGRPOTrainer(StopsAtNan, GRPOTrainer):
    pass


def opener_trainer(args: GRPOConfig, evaluator: Evaluator, scenes: list[Scene]) -> OpenerGRPOTrainer:
    """trl's trainer of the evaluator's policy, its scorer as the reward."""
    instruction = INSTRUCTIONS[evaluator.config.instruction]
    rows = [{"prompt": prompt_messages(scene, instruction), "scene": i} for i, scene in enumerate(scenes)]

    def score(completion_ids: list[list[int]], scene: list[int], **unused) -> list[float]:
        texts = [evaluator.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completion_ids]
        ended_B = torch.tensor([ids[-1] == evaluator.end_token_id for ids in completion_ids])
        return evaluator.scores([scenes[i] for i in scene], texts, ended_B).tolist()

    trainer = OpenerGRPOTrainer(
        model=evaluator.policy,
        reward_funcs=score,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=evaluator.tokenizer,
    )
    trainer.run = evaluator.run
    return trainer


if __name__ == "__main__":
    main(*parse_config(StableConfig, GRPOConfig))
