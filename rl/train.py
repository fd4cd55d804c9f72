"""PPO: optimises how the friend opens a conversation, against the scorer's engagement, on the training scenes.

    make ppo             # python -m rl.train --config experiments/tiny/ppo.yaml

The policy starts as a copy of the SFT adapter on the untouched base; the SFT adapter, frozen, is the reference. The best
policy on validation scenes by score, within `max_kl`, is what is saved. At the end both write openers for the held-out
test scenes with the same noise, and the difference in score is reported with an interval over scenes.
"""

from peft import PeftModel
from trl.experimental.ppo import PPOConfig

from experiments.run import parse_config, start_run
from models.load import load_tokenizer, resolve
from rl.evaluate import conclude, judges, splits, trainable_policy
from rl.rollout import POLICY, REFERENCE
from rl.trainer import OpenerConfig, OpenerPPOTrainer


def main(config: OpenerConfig, args: PPOConfig) -> None:
    run = start_run(config, args, stage="ppo", seed=args.seed, parents=[args.sft_model_path, args.reward_model_path])
    tokenizer = load_tokenizer(args.sft_model_path)
    policy = policy_with_reference(args.sft_model_path, config)
    scorer, gold = judges(config, args.reward_model_path, args.device)
    train, validation, test = splits(config)

    trainer = OpenerPPOTrainer(config, args, run, tokenizer, policy, scorer, train, validation, gold)
    trainer.train()
    if trainer.best:
        trainer.load_best()

    summary = {
        "best": {**trainer.best, "adapter": "best/adapter.safetensors"} if trainer.best else None,
        "optimizer_steps": trainer.optimizer_steps,
    }
    conclude("ppo", trainer.evaluator, test, args.sft_model_path, args.seed, summary)


def policy_with_reference(sft: str, config: OpenerConfig) -> PeftModel:
    """The base with the SFT adapter twice: POLICY, to be trained, and REFERENCE, frozen."""
    model = trainable_policy(sft, config)
    model.load_adapter(resolve(sft), adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(POLICY)
    return model


if __name__ == "__main__":
    main(*parse_config(OpenerConfig, PPOConfig))
