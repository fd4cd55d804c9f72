"""Our PPO against trl 1.12's PPOTrainer: the same policy, LoRA, reference, scorer, scenes, seed, batch, epochs and lengths.

Both train in turn, an update a round, each in a process of its own. Four settings, of 64 episodes an update in four
minibatches:

    fp32     a random Llama (8 layers, 256 wide, 8,192 tokens), prompts of 40 tokens, all responses 32 long, four epochs
    bf16     the same. Stock has bf16=True and, since that alone does nothing in trl 1.12, what
             `accelerate launch --mixed_precision bf16` sets: autocast of the training's forward passes. Ours has this too,
             and model_dtype bfloat16: the frozen base, and so the copy that samples, is held in bf16.
    scenes   fp32; the tiny recipe (experiments/tiny/ppo.yaml) on the sample's scenes: responses end where they end. Ours
             writes num_generations openers for each of 16 scenes, which share its reading; stock one for each of 64.
    apart    the same with 64 scenes on both sides.

In the first two ours is compiled (torch_compile: true). first_update_s says what that costs: the first validation and the
first update with all of the compiling, none of which is counted elsewhere.

Stock feeds its reward model the policy's token ids; here that model is a bridge, which finds the scene by its prompt,
decodes the response and asks our scorer (in float32 in the first setting, as the recipe has it in the others). Its value
model is, as its own always is, a second full trunk, trained in full.
With these settings it makes fewer optimizer steps than ours (one where ours makes four): its forward and backward
passes are as many.

Episodes a second are of the measured updates alone: no evaluation, no checkpoint, and neither the first update, which
warms up, nor the last, in which stock steps at every micro-batch. The ratio is the mean over paired rounds. Memory is
the peak above what loading policy, adapters and scorer takes, building the trainer included. The phases are ours:
generate, score, forward (old policy, reference, values), update. FLOPs are those of a row for each opener (what
reading a beginning once saves is not taken off) whose prompt and response have S = P + T tokens, with W weights in
the trunk's linear layers, O in the output's, A in the adapter, L layers of width H, E epochs:

    f = 2 S W + 2 S^2 L H + 2 T O           one forward pass; attention is causal; outputs are of the response alone
    f                                       generation: a pass with a cache, adapter merged
    + 2 (f + 2 S A)                         log-probabilities under policy and reference
    + E (2 f + 6 S A)                       epochs: forward, gradient of activations, gradient of the adapter
    + the scorer's own (see `reward --help`)

with mean lengths; share_of_peak is these over the time taken and the measured peak of a matrix product in that precision.

Prints, last, one line of JSON: {"fp32": {...}, "bf16": {...}, "scenes": {...}, "apart": {...}}, each with episodes_per_s,
stock_episodes_per_s, ratio, ratio_std, peak_mb_above_loading, stock_peak_mb_above_loading, memory_ratio, generate_s,
score_s, forward_s, update_s, first_update_s, response_tokens, gflop_per_episode, matmul_peak_gflops, share_of_peak. About
fifteen minutes on two cores.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from trl.experimental.ppo import PPOConfig, PPOTrainer

from data import sample
from data.scenes import Scene, scenes_of
from experiments.bench import reward
from experiments.bench.side import Rounds, Side, Turns, averaged, matmul_peak, paired, rounded, show, spread
from experiments.run import Run, keep_freed_memory
from models.load import load_tokenizer
from models.scorer import Scorer, encode
from rl.evaluate import opener_prompt, opinions
from rl.rollout import POLICY, REFERENCE, value_trunk
from rl.train import policy_with_reference
from rl.trainer import OpenerConfig, OpenerPPOTrainer
from sft.tokenizer import train_tokenizer

ROUNDS = 5
RECIPE = Path("experiments/tiny/ppo.yaml")
CONTEXT = 512
#: Updates at the end that are not counted: in the last one stock's dataloader is at its end, accelerate then steps at every
#: micro-batch, and its value model makes that twice as long.
AFTER = 1
PHASES = ("generate", "score", "forward", "update")


@dataclass
class Shape:
    """A random friend and how it is trained, where nothing depends on what it says."""

    hidden: int = 256
    layers: int = 8
    vocab: int = 8192
    prompt: int = 40  # tokens
    response: int = 32  # tokens
    batch: int = 64  # episodes an update
    epochs: int = 4


SMALLEST = {"shape": Shape(hidden=32, layers=1, vocab=500, prompt=64, response=4, batch=8, epochs=1)}


def bench(
    rounds: int = ROUNDS, scorer: str = "runs/tiny/reward-s1", friend: str = "friend-sft", shape: Shape | None = None
) -> dict:
    """The figures of all four settings; a `shape` given makes the scenes' batch and lengths as small as its own."""
    shapes = shape or Shape()
    with tempfile.TemporaryDirectory() as path:
        made = random_friend(Path(path), shapes)
        fixed = {"friend": made, "prompt": shapes.prompt, "changed": full_length(shapes), "is_compiled": True}
        ends = {"stop_token": "eos", "gradient_accumulation_steps": 4}
        if shape:
            ends["num_generations"] = 2
            ends |= {key: fixed["changed"][key] for key in ("gradient_accumulation_steps", "num_ppo_epochs")}
            ends |= {"per_device_train_batch_size": shape.batch, "response_length": shape.response}
        return {
            "fp32": compared("fp32", rounds, scorer=scorer, **fixed),
            "bf16": compared("bf16", rounds, scorer=scorer, is_bf16=True, **fixed),
            "scenes": compared("scenes", rounds, scorer=scorer, friend=friend, prompt=None, changed=ends),
            "apart": compared(
                "apart", rounds, scorer=scorer, friend=friend, prompt=None, changed=ends | {"num_generations": 1}
            ),
        }


def compared(title: str, rounds: int, is_compiled: bool = False, **settings) -> dict:
    """Figures of one setting: both sides in paired rounds, ours compiled or not."""
    is_bf16 = settings.setdefault("is_bf16", False)
    peak = matmul_peak(torch.bfloat16 if is_bf16 else torch.float32)
    ours = Side(train_ours, rounds=rounds, is_compiled=is_compiled, **settings)
    stock = Side(train_stock, rounds=rounds, **settings)
    pairs = paired(ours, stock, rounds, title, AFTER)
    first_s = ours.first["seconds"]
    ours, stock = ours.finish(), stock.finish()
    ours_s, stock_s = (averaged(side) for side in zip(*pairs, strict=True))
    ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
    figures = rounded(
        {
            "episodes_per_s": ours["episodes"] / ours_s,
            "stock_episodes_per_s": stock["episodes"] / stock_s,
            "ratio": mean(ratios),
            "ratio_std": spread(ratios),
            "peak_mb_above_loading": ours["peak_mb"],
            "stock_peak_mb_above_loading": stock["peak_mb"],
            "memory_ratio": ours["peak_mb"] / stock["peak_mb"],
            **{f"{phase}_s": ours[phase] for phase in PHASES},
            "first_update_s": first_s,
            "response_tokens": ours["response_tokens"],
            "gflop_per_episode": ours["flops"] / 1e9,
            "matmul_peak_gflops": peak / 1e9,
            "share_of_peak": ours["flops"] * ours["episodes"] / ours_s / peak,
        }
    )
    show(title, figures)
    return figures


# ------------------------------------------------------------------------------------------------ what both train


def full_length(shape: Shape) -> dict:
    """What makes the recipe one of `shape`: no token is the end, small steps, micro-batches of 16."""
    micro = min(16, shape.batch)
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": shape.batch // micro,
        "num_ppo_epochs": shape.epochs,
        "response_length": shape.response,
        "stop_token_id": shape.vocab,
        "num_generations": 1,
        "missing_eos_penalty": None,
        "temperature": 0.7,
        "learning_rate": 1e-4,
    }


def random_friend(directory: Path, shape: Shape) -> str:
    """A random Llama with a LoRA adapter (r 16 on all linear layers) in `directory`; returns the adapter's place."""
    texts = (turn.text for dialogue in sample.load("train") for turn in dialogue.turns)
    tokenizer = train_tokenizer(texts, shape.vocab, CONTEXT)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=round(shape.hidden * 8 / 3 / 16) * 16,
            num_hidden_layers=shape.layers,
            num_attention_heads=max(1, shape.hidden // 64),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    model.name_or_path = str(directory / "base")  # what the adapter calls its base
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(directory / "adapter")
    tokenizer.save_pretrained(directory / "adapter")
    return str(directory / "adapter")


def even_scenes(tokenizer, tokens: int, count: int) -> list[Scene]:
    """`count` scenes of the sample's facts, each cut or filled up so that its prompt has exactly `tokens` tokens."""
    scenes = []
    for scene in scenes_of("sample", "train")[:count]:
        words = " ".join(scene.profile).replace(".", "").split()[:tokens]
        while len(words) > 1 and prompt_length(tokenizer, words) > tokens:
            words.pop()
        while prompt_length(tokenizer, words) < tokens:
            words.append("and")
        if prompt_length(tokenizer, words) != tokens:
            raise ValueError(f"no prompt of {tokens} tokens can be made: take a longer one")
        scenes.append(Scene(scene.id, (" ".join(words),)))
    return scenes


def prompt_length(tokenizer, words: list[str]) -> int:
    return len(opener_prompt(tokenizer, Scene("length", (" ".join(words),)), OpenerConfig.instruction))


@dataclass
class Parts:
    """What a trainer is made of, loaded."""

    config: OpenerConfig
    args: PPOConfig
    policy: PeftModel
    tokenizer: object
    scorer: Scorer
    scenes: list[Scene]


def load(
    turns: Turns,
    directory: str,
    rounds: int,
    friend: str,
    scorer: str,
    prompt: int | None,
    changed: dict,
    is_bf16: bool,
    dtype: str = "float32",
) -> Parts:
    """The parts for 1 + `rounds` + AFTER updates of the tiny recipe with `changed` settings.

    The scenes are the sample's for training, or even ones of `prompt` tokens.
    """
    if is_bf16:  # trl 1.12 does not hand bf16=True on to its Accelerator
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    settings = yaml.safe_load(RECIPE.read_text()) | changed
    config = {key: settings.pop(key) for key in OpenerConfig.__dataclass_fields__ if key in settings}
    args = PPOConfig(output_dir=directory, **settings)
    args.bf16, args.disable_tqdm, args.report_to, args.num_sample_generations = is_bf16, True, [], 0
    args.eval_strategy = args.save_strategy = "no"
    args.eval_steps = args.save_steps = None
    args.total_episodes = (1 + rounds + AFTER) * args.per_device_train_batch_size * args.gradient_accumulation_steps
    config = OpenerConfig(**config | {"model_dtype": dtype})
    tokenizer = load_tokenizer(friend)
    scenes = scenes_of("sample", "train") if prompt is None else even_scenes(tokenizer, prompt, 2 * 64)
    # Without a language model beside it: both sides would wait for that, and its products are not counted.
    judge = reward.classifier(scorer, "float32" if prompt and not is_bf16 else config.reward_dtype)
    parts = Parts(config, args, policy_with_reference(friend, config), tokenizer, judge, scenes)
    turns.loaded()
    return parts


# ------------------------------------------------------------------------------------------------ the two sides


def train_ours(turns: Turns, rounds: int, is_bf16: bool, is_compiled: bool = False, **settings) -> dict:
    """Our trainer's updates; returns the mean seconds of each phase and the necessary FLOPs of an episode."""
    keep_freed_memory()  # as each of our stages begins
    with tempfile.TemporaryDirectory() as directory:
        dtype = "bfloat16" if is_bf16 else "float32"
        parts = load(turns, directory, rounds, is_bf16=is_bf16, dtype=dtype, **settings)
        parts.args.torch_compile = is_compiled
        rows, listener = [], Listener(parts.scorer)
        run = Run(Path(directory), "bench", "episode", SimpleNamespace(log=rows.append))
        trainer = OpenerPPOTrainer(
            parts.config, parts.args, run, parts.tokenizer, parts.policy, listener, parts.scenes, parts.scenes[:8]
        )
        trainer.add_callback(Rounds(turns))
        trainer.train()
    updates = [row for row in rows if "time/update_s" in row][1 : 1 + rounds]
    length = mean(row["response/length"] for row in updates)
    prompt = mean(map(len, trainer.prompts))
    return {
        "episodes": trainer.args.batch_size,
        "response_tokens": length,
        "parameters": sum(p.numel() for name, p in parts.policy.named_parameters() if ".lora_" not in name),
        "flops": flops(parts.policy, prompt, length, trainer.args.num_ppo_epochs) + listener.flops(),
        **{phase: mean(row[f"time/{phase}_s"] for row in updates) for phase in PHASES},
    }


def train_stock(turns: Turns, rounds: int, **settings) -> dict:
    """trl's trainer's updates."""
    with tempfile.TemporaryDirectory() as directory:
        parts = load(turns, directory, rounds, **settings)
        args, tokenizer = parts.args, parts.tokenizer
        args.model_adapter_name, args.ref_adapter_name = POLICY, REFERENCE
        prompts = [opener_prompt(tokenizer, scene, parts.config.instruction) for scene in parts.scenes]
        dataset = [{"input_ids": prompt} for prompt in prompts]
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=parts.policy,
            ref_model=None,
            reward_model=TextReward(parts.scorer, tokenizer, parts.scenes, prompts),
            value_model=Values(value_trunk(parts.policy, POLICY), parts.policy.config.hidden_size),
            train_dataset=dataset,
            eval_dataset=dataset[:1],
        )
        if len(trainer.dataloader) == 0:
            raise ValueError(f"{len(dataset)} scenes are fewer than a batch of {args.batch_size}: stock waits for ever")
        trainer.add_callback(Rounds(turns))
        trainer.train()
    return {"episodes": args.batch_size}


class Values(nn.Module):
    """A value model as stock wants it: a trunk of its own, and a score of its last hidden state."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, hidden_size: int):
        super().__init__()
        self.trunk, self.score = trunk, nn.Linear(hidden_size, 1)


class TextReward(nn.Module):
    """A reward model as stock wants it, which asks our scorer: ids in, the score at every position out."""

    base_model_prefix = "read"

    def __init__(self, scorer: Scorer, tokenizer, scenes: list[Scene], prompts: list[list[int]]):
        super().__init__()
        self.scorer, self.tokenizer, self.score = scorer, tokenizer, nn.Identity()
        self.scene_of = dict(zip(map(tuple, prompts), scenes, strict=True))
        self.lengths = sorted(set(map(len, prompts)), reverse=True)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs) -> SimpleNamespace:
        """`input_ids` are prompt and response, padding anywhere: the longest known prompt in front is the scene's."""
        scenes, texts = [], []
        for row, mask in zip(input_ids, attention_mask.bool(), strict=True):
            ids = tuple(row[mask].tolist())
            size = next(n for n in self.lengths if ids[:n] in self.scene_of)
            scenes.append(self.scene_of[ids[:size]])
            texts.append(self.tokenizer.decode(ids[size:], skip_special_tokens=True).strip())
        score_B = opinions(self.scorer, scenes, texts).to(input_ids.device)
        return SimpleNamespace(hidden_states=[score_B[:, None, None].expand(*input_ids.shape, 1)])


class Listener:
    """Our scorer, which notes what it was asked."""

    def __init__(self, scorer: Scorer):
        self.scorer, self.model, self.rows = scorer, scorer.model, []

    def score(self, rows: list[dict]):
        self.rows += rows
        return self.scorer.score(rows)

    def flops(self) -> float:
        """Necessary FLOPs of a text, the mean of all."""
        scorer = self.scorer
        inputs = encode(scorer.tokenizer, self.rows, scorer.max_length, scorer.preset)
        return mean(reward.flops(scorer.model.config, len(x["input_ids"])) for x in inputs)


def flops(policy: PeftModel, prompt: float, response: float, epochs: int) -> float:
    """Necessary floating-point operations of an episode, the scorer's aside: the formula above."""
    base, S, T = policy.get_base_model(), prompt + response, response
    linear = {name: module.weight.numel() for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    A = sum(size for name, size in linear.items() if name.endswith(f".{POLICY}"))
    plain = {name: size for name, size in linear.items() if ".lora_" not in name}
    W = sum(size for name, size in plain.items() if name.startswith(base.base_model_prefix + "."))
    O = sum(plain.values()) - W  # noqa: E741 - the formula's letter
    f = 2 * S * W + 2 * S**2 * base.config.num_hidden_layers * base.config.hidden_size + 2 * T * O
    return f + 2 * (f + 2 * S * A) + epochs * (2 * f + 6 * S * A)
