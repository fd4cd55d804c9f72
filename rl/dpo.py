"""DPO on best-of-n pairs, on the scenes, the reward and the evaluation of PPO, by trl's DPOTrainer (Rafailov et al. 2023).

    make dpo             # python -m rl.dpo --config experiments/tiny/dpo.yaml

The SFT policy writes `num_candidates` openers for each training scene, once. The scorer's best and worst of them are the
scene's pair (pairs.jsonl), and the policy learns to tell them apart: no sampling while it trains.
"""

import json
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from data.dialogue import INSTRUCTIONS
from data.scenes import Scene, prompt_messages
from data.source import write_whole
from experiments.run import StopsAtNan, parse_config, start_run
from rl.evaluate import Evaluator, conclude, splits
from rl.rollout import POLICY
from rl.stable import StableConfig, check_scenes, configure, fit, make_evaluator


@dataclass
class PairConfig(StableConfig):
    """How pairs are made; how they are trained on stands in trl's DPOConfig."""

    num_candidates: int = field(default=16, metadata={"help": "openers a scene, of which the best and the worst stay"})
    temperature: float = field(default=0.5, metadata={"help": "of the openers, and of every evaluation"})
    response_length: int = field(default=40, metadata={"help": "tokens of an opener at most"})
    sampling_batch_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates is {self.num_candidates}: a pair is made of 2 or more")
        self.must_be_positive("response_length", "sampling_batch_size")


def main(config: PairConfig, args: DPOConfig) -> None:
    parents = [config.sft_model_path, config.reward_model_path]
    run = start_run(config, args, stage="dpo", seed=args.seed, parents=parents)
    configure(args, run.dir)
    train, validation, test = splits(config)
    evaluator = make_evaluator(
        config, args, run, config.temperature, config.response_length, config.sampling_batch_size
    )
    check_scenes(evaluator, train, validation)

    pairs = kept_pairs(run.dir / "pairs.jsonl", evaluator, train, args.seed)
    trainer = opener_trainer(args, evaluator, train, pairs)
    summary = fit(trainer, evaluator, validation) | {"pairs": len(pairs)}
    conclude("dpo", evaluator, test, config.sft_model_path, args.seed, summary)


def kept_pairs(path: Path, evaluator: Evaluator, scenes: list[Scene], seed: int) -> list[dict]:
    """The pairs of the run: those of the file where an interrupted run has left it, else new ones, written there."""
    if not path.exists():
        num_candidates = evaluator.config.num_candidates
        candidates = [row for *_, part in evaluator.written(scenes, POLICY, num_candidates, seed) for row in part]
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in best_and_worst(candidates)))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def best_and_worst(candidates: list[dict]) -> list[dict]:
    """Of each scene's rows {"scene_id", "opener", "score"}, which stand together, the openers with the highest and the
    lowest score. A scene whose scores are all the same says nothing and is left out; ValueError where all are."""
    pairs = []
    for scene_id, group in groupby(candidates, itemgetter("scene_id")):
        rows = sorted(group, key=itemgetter("score"))
        worst, best = rows[0], rows[-1]
        if best["score"] > worst["score"]:
            pairs.append(
                {
                    "scene_id": scene_id,
                    "chosen": best["opener"],
                    "rejected": worst["opener"],
                    "chosen_score": best["score"],
                    "rejected_score": worst["score"],
                }
            )
    if not pairs:
        raise ValueError("the scorer gives all openers of each scene the same score: there is nothing to prefer")
    return pairs


class OpenerDPOTrainer(StopsAtNan, DPOTrainer):
    pass


def opener_trainer(args: DPOConfig, evaluator: Evaluator, scenes: list[Scene], pairs: list[dict]) -> OpenerDPOTrainer:
    """trl's trainer of the evaluator's policy on pairs of openers for `scenes`."""
    instruction, of = INSTRUCTIONS[evaluator.config.instruction], {scene.id: scene for scene in scenes}
    rows = [
        {
            "prompt": prompt_messages(of[pair["scene_id"]], instruction),
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in pairs
    ]
    trainer = OpenerDPOTrainer(
        model=evaluator.policy,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=evaluator.tokenizer,
    )
    trainer.run = evaluator.run
    return trainer


if __name__ == "__main__":
    main(*parse_config(PairConfig, DPOConfig))
