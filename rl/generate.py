"""Writes the openers of any SFT or PPO run for a file of scenes.

    python -m rl.generate --run_dir runs/tiny/ppo-s1 --scenes_file scenes.jsonl --output_file openers.jsonl \
        --num_return_sequences 4 --seed 1

Scenes in: {"id", "profile": [facts], "greeting": text or null}. Openers out, one row a sample:
{"scene_id", "sample", "opener", "ended"}. Instruction and temperature are those of the run unless given.
"""

import json
from dataclasses import dataclass, field

import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from data.dialogue import INSTRUCTIONS
from data.scenes import load_scenes, prompt_messages
from data.source import write_whole
from experiments.run import settings_of
from models.load import load_policy, load_tokenizer
from models.sampling import prompt_ids, say

TEMPERATURE = 0.5


@dataclass
class GenerateConfig:
    """A run (or shipped model) and scenes in, openers out."""

    run_dir: str = field(metadata={"help": "a run, a shipped model's name, or a path"})
    scenes_file: str = field(metadata={"help": "JSON lines of scenes"})
    output_file: str = field(metadata={"help": "JSON lines of openers"})
    num_return_sequences: int = field(default=1, metadata={"help": "openers per scene"})
    seed: int = 1
    temperature: float | None = field(
        default=None, metadata={"help": f"0: greedy; default: the run's own, {TEMPERATURE} for a model that is no run"}
    )
    max_new_tokens: int = 48
    batch_size: int = 32
    instruction: str | None = field(
        default=None, metadata={"help": f"one of {sorted(INSTRUCTIONS)}; default: what the run was trained with"}
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "set broken rows aside in <scenes_file>.bad"})


def main(config: GenerateConfig) -> None:
    scenes = load_scenes(config.scenes_file, config.skip_bad_rows)
    tokenizer, model = load_tokenizer(config.run_dir), load_policy(config.run_dir).eval()
    if torch.cuda.is_available():
        model.cuda()
    settings = settings_of(config.run_dir)
    instruction = INSTRUCTIONS[config.instruction or settings.get("instruction", "friend")]
    temperature = settings.get("temperature", TEMPERATURE) if config.temperature is None else config.temperature
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}: 0 is greedy, else it must be above 0")
    todo = [(scene, s) for scene in scenes for s in range(config.num_return_sequences)]
    lines = []
    for start in tqdm(range(0, len(todo), config.batch_size), desc="openers", unit="batch", disable=None):
        part = todo[start : start + config.batch_size]
        prompts = [prompt_ids(tokenizer, prompt_messages(scene, instruction)) for scene, _ in part]
        openers, ended = say(
            model,
            tokenizer,
            prompts,
            max_new_tokens=config.max_new_tokens,
            temperature=temperature,
            seed=config.seed,
            keys=range(start, start + len(part)),
        )
        for (scene, s), opener, has_ended in zip(part, openers, ended, strict=True):
            row = {"scene_id": scene.id, "sample": s, "opener": opener, "ended": has_ended}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(config.output_file, "".join(lines))
    print(f"{len(lines)} openers for {len(scenes)} scenes at temperature {temperature:g}: {config.output_file}")


if __name__ == "__main__":
    main(*HfArgumentParser(GenerateConfig).parse_args_into_dataclasses())
