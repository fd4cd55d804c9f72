"""What PPO, GRPO and DPO share: the scenes they train on, the evaluator, and the end of a run.

Whatever trained it, a policy is measured in the same way: openers sampled from it and from the SFT policy with the same
noise, their scores, and the KL between the two in nats a response, at the sampling temperature.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from data.corpora import LOADERS
from data.dialogue import INSTRUCTIONS
from data.scenes import Scene, prompt_messages, scenes_of
from data.source import write_whole
from experiments.run import Run, RunConfig, finish_run, settings_of
from models.load import base_of, load_base, load_scorer, name_base, resolve, with_adapter
from models.sampling import Samples, decode, left_pad, prompt_ids, sample
from models.scorer import AGGREGATES, DTYPES, Scorer
from rl.metrics import copied, distinct, interval
from rl.rollout import (
    POLICY,
    REFERENCE,
    MergedCopy,
    reading,
)
from rl.tree import check_reading, prefix_trees


@dataclass
class SceneConfig(RunConfig):
    """Which scenes are trained on and how a policy is judged."""

    scene_sources: list[str] = field(default_factory=lambda: ["sample"], metadata={"help": "sample, empathetic"})
    max_scenes: int | None = field(default=None, metadata={"help": "training scenes per source; None is all"})
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    instruction: str = field(default="friend", metadata={"help": f"one of {sorted(INSTRUCTIONS)}"})
    max_kl: float = field(
        default=20.0, metadata={"help": "the best checkpoint's KL to the SFT policy, nats a response"}
    )
    gold_model_path: str | None = field(
        default=None, metadata={"help": "a second scorer: logged at every evaluation, never optimised or chosen by"}
    )
    reward_aggregate: str | None = field(
        default=None, metadata={"help": f"one of {AGGREGATES} in place of the reward's own, where it has members"}
    )
    reward_dtype: str = field(
        default="float32",
        metadata={"help": f"of reward and gold, one of {DTYPES}; auto is bfloat16 where that is fast"},
    )
    val_samples: int = field(default=1, metadata={"help": "openers per validation scene"})
    test_samples: int = field(default=4, metadata={"help": "openers per test scene, before and after"})
    model_dtype: str = "float32"
    quantization: str | None = field(default=None, metadata={"help": "8bit or 4bit, with bitsandbytes"})

    def __post_init__(self):
        super().__post_init__()
        if self.instruction not in INSTRUCTIONS:
            raise ValueError(f"instruction is {self.instruction!r}, not one of {sorted(INSTRUCTIONS)}")
        if self.reward_aggregate not in (None, *AGGREGATES):
            raise ValueError(f"reward_aggregate is {self.reward_aggregate!r}, not one of {AGGREGATES}")
        if self.reward_dtype not in DTYPES:
            raise ValueError(f"reward_dtype is {self.reward_dtype!r}, not one of {DTYPES}")
        self.must_be_positive("max_kl", "val_samples", "test_samples")

    def must_be_positive(self, *keys: str) -> None:
        for key in keys:
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}: it must be above 0")


def splits(config: SceneConfig) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Training, validation and test scenes of all sources."""
    return tuple(
        [s for source in config.scene_sources for s in scenes_of(source, split, config.data_root, most)]
        for split, most in (("train", config.max_scenes), ("validation", 100), ("test", 200))
    )


def trainable_policy(sft: str, config: SceneConfig) -> PeftModel:
    """The base with the SFT adapter as the policy, to be trained."""
    path = resolve(sft)
    if not (Path(path) / "adapter_config.json").exists():
        raise ValueError(
            f"sft_model_path {sft!r} has no adapter_config.json: training starts from an SFT run's adapter"
        )
    base = load_base(base_of(sft), config.model_dtype, config.quantization)
    policy = with_adapter(base, path, POLICY, is_trainable=True)
    check_reading(policy)
    return policy


def judges(config: SceneConfig, reward: str, device) -> tuple[Scorer, Scorer | None]:
    """The reward, and the gold judge where the recipe names one."""
    scorer = load_scorer(reward, device, config.reward_aggregate, config.reward_dtype)
    gold = config.gold_model_path and load_scorer(config.gold_model_path, device, dtype=config.reward_dtype)
    return scorer, gold


def opener_prompt(tokenizer, scene: Scene, instruction: str) -> list[int]:
    """Token ids of what is asked for a scene; `instruction` by its name."""
    return prompt_ids(tokenizer, prompt_messages(scene, INSTRUCTIONS[instruction]))


def check_lengths(context: int, response_length: int, scenes: list[Scene], prompts: list[list[int]]) -> None:
    """Refuses a scene whose prompt leaves no room for an opener, before anything is trained."""
    for scene, prompt in zip(scenes, prompts, strict=True):
        if len(prompt) + response_length > context:
            raise ValueError(
                f"scene {scene.id!r}: its prompt has {len(prompt)} tokens; with response_length {response_length} "
                f"it exceeds the model's context of {context}: shorten its profile or lower response_length"
            )


def opinions(scorer: Scorer, scenes: list[Scene], openers: list[str]) -> torch.Tensor:
    """A scorer's opinion of each opener [B]. Raises ValueError when its answer is not one finite number a row."""
    rows = [
        {"context": [scene.greeting] if scene.greeting else [], "response": opener, "profile": list(scene.profile)}
        for scene, opener in zip(scenes, openers, strict=True)
    ]
    score_B, _ = scorer.score(rows)
    if score_B.shape != (len(rows),):
        raise ValueError(f"the scorer gave {tuple(score_B.shape)} scores for {len(rows)} openers")
    if not torch.isfinite(score_B).all():
        row = int((~torch.isfinite(score_B)).nonzero()[0])
        raise ValueError(f"the scorer gave {score_B[row].item()} for scene {scenes[row].id!r}: {openers[row]!r}")
    return score_B


@dataclass
class Evaluator:
    """Openers of a policy with adapters POLICY and REFERENCE, and what is to be said of them."""

    config: SceneConfig
    run: Run
    tokenizer: object
    policy: PeftModel
    sampler: MergedCopy
    scorer: Scorer
    gold: Scorer | None
    temperature: float
    response_length: int  # tokens at most, the end token included
    end_token_id: int
    missing_eos_penalty: float
    batch_size: int  # of sampling
    forward_batch_size: int  # of reading
    autocast: Callable = contextlib.nullcontext  # around forward passes: the trainer's own

    def scores(self, scenes: list[Scene], openers: list[str], ended_B: torch.Tensor) -> torch.Tensor:
        """The scorer's opinion of each opener [B], less `missing_eos_penalty` where it did not end by itself."""
        score_B = opinions(self.scorer, scenes, openers)
        return score_B - self.missing_eos_penalty * (~ended_B).to(score_B)

    def written(
        self, scenes: list[Scene], adapter: str, num_samples: int, seed: int
    ) -> Iterator[tuple[list[Scene], Samples, list[dict]]]:
        """`num_samples` openers a scene, in batches: the scene of each, the tokens, and rows {"scene_id", "sample",
        "opener", "ended", "score", "tokens"}. The noise is a function of seed, scene's place and sample."""
        todo = [(scene, s) for scene in scenes for s in range(num_samples)]
        for start in range(0, len(todo), self.batch_size):
            part = todo[start : start + self.batch_size]
            of = [scene for scene, _ in part]
            samples = sample(
                self.sampler.merge(adapter),
                self._prompts(of),
                max_new_tokens=self.response_length,
                temperature=self.temperature,
                eos_token_id=self.end_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                seed=seed,
                keys=np.arange(start, start + len(part)),
            )
            texts = decode(samples, self.tokenizer)
            score_B = self.scores(of, texts, samples.ended_B)
            yield (
                of,
                samples,
                [
                    {
                        "scene_id": scene.id,
                        "sample": s,
                        "opener": texts[i],
                        "ended": bool(samples.ended_B[i]),
                        "score": score_B[i].item(),
                        "tokens": int(samples.mask_BT[i].sum()),
                    }
                    for i, (scene, s) in enumerate(part)
                ],
            )

    def openers(self, scenes: list[Scene], adapter: str, num_samples: int, seed: int) -> list[dict]:
        """The rows of `written`, with "kl" to the reference in nats a response, and "gold" where there is such a judge."""
        rows = []
        for of, samples, part in self.written(scenes, adapter, num_samples, seed):
            for row, kl in zip(part, self.kl(of, samples, adapter).tolist(), strict=True):
                row["kl"] = kl
            if self.gold:
                gold_B = opinions(self.gold, of, [row["opener"] for row in part])
                for row, gold in zip(part, gold_B.tolist(), strict=True):
                    row["gold"] = gold
            rows += part
        return rows

    @torch.no_grad()
    def kl(self, scenes: list[Scene], samples: Samples, adapter: str) -> torch.Tensor:
        """log p - log q [B] of `adapter`'s own samples, q the reference's probability, at the sampling temperature."""
        ids, mask = (
            part.to(samples.mask_BT.device) for part in left_pad(self._prompts(scenes), self.tokenizer.pad_token_id)
        )
        kl_B = torch.zeros(len(scenes), device=mask.device)
        for index in torch.arange(len(scenes)).split(self.forward_batch_size):
            batch = ids[index], mask[index], samples.response_BT[index], samples.mask_BT[index]
            trees, logp = prefix_trees(*batch, self.policy.config._attn_implementation), {}
            for name in (adapter, REFERENCE):
                with reading(self.policy, name), self.autocast():
                    logp[name] = trees.rows(trees.read(self.policy, self.temperature)[0])
            kl_B[index] = (logp[adapter] - logp[REFERENCE]).sum(1)
        return kl_B

    def validate(self, scenes: list[Scene], seed: int, step: int) -> dict[str, float]:
        """The policy on validation scenes: score, KL, length, diversity, logged at `step`; and a table of openers."""
        rows = self.openers(scenes, POLICY, self.config.val_samples, seed)
        kept = [key for key in ("score", "gold", "kl", "tokens", "ended") if key in rows[0]]
        metrics = {f"eval/{key}": float(np.mean([row[key] for row in rows])) for key in kept}
        texts = [row["opener"] for row in rows]
        metrics |= {"eval/distinct_1": distinct(texts, 1), "eval/distinct_2": distinct(texts, 2)}
        self.run.log(metrics, step=step)
        of = {scene.id: scene for scene in scenes}
        self.run.table(
            "openers",
            ["step", "scene", "profile", "greeting", "opener", "score", "kl"],
            [
                [
                    step,
                    r["scene_id"],
                    "; ".join(of[r["scene_id"]].profile),
                    of[r["scene_id"]].greeting or "",
                    r["opener"],
                    r["score"],
                    r["kl"],
                ]
                for r in rows[:40]
            ],
        )
        return metrics

    def _prompts(self, scenes: list[Scene]) -> list[list[int]]:
        return [opener_prompt(self.tokenizer, scene, self.config.instruction) for scene in scenes]


# ------------------------------------------------------------------------------------------ the end of a run


def conclude(name: str, evaluator: Evaluator, test: list[Scene], sft: str, seed: int, summary: dict) -> None:
    """Policy (`name`) against SFT on the test scenes with the same noise: openers_*.jsonl, model/, summary.json, and a
    table on the screen. `summary` holds what the trainer has to say itself."""
    run, num_samples = evaluator.run, evaluator.config.test_samples
    rows = {
        side: evaluator.openers(test, adapter, num_samples, seed + 1)
        for side, adapter in (("sft", REFERENCE), (name, POLICY))
    }
    summary = compared(rows, test, training_texts(sft)) | summary
    summary |= {"temperature": evaluator.temperature, "test_samples": num_samples}
    files = {f"openers_{side}": part for side, part in rows.items()} | {"scenes_test": map(asdict, test)}
    for file, part in files.items():
        write_whole(run.dir / f"{file}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    save_policy(evaluator, sft)
    finish_run(run, summary)
    show(rows, summary, test, run)


def compared(rows: dict[str, list[dict]], scenes: list[Scene], training_texts: Iterable[str]) -> dict:
    """Means of both sides, "sft" and another, on the test scenes, and the gain in score, and in gold where it was asked,
    with its 95 % interval over scenes."""
    training_texts, summary = list(training_texts), {}
    for name, part in rows.items():
        texts = [row["opener"] for row in part]
        summary[name] = {
            **{
                key: float(np.mean([row[key] for row in part]))
                for key in ("score", "gold", "kl", "tokens", "ended")
                if key in part[0]
            },
            "words": float(np.mean([len(text.split()) for text in texts])),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "question": float(np.mean(["?" in text for text in texts])),
            "copied_8_words": copied(texts, training_texts),
        }
    before, after = rows.values()
    for key, name in (("score", "gain"), ("gold", "gold_gain")):
        if key in after[0]:
            gain = scene_means(after, scenes, key) - scene_means(before, scenes, key)
            low, high = interval(gain)
            summary[name] = {key: float(gain.mean()), "low": low, "high": high, "scenes": len(scenes)}
    return summary


def training_texts(sft: str) -> Iterator[str]:
    """What the SFT run read, turn by turn; of a shipped or foreign model, which says nothing of that, the sample's."""
    settings = settings_of(sft)
    for source in settings.get("sources", ("sample", "openers")):
        for dialogue in LOADERS[source]("train", settings.get("data_root")):
            yield from (turn.text for turn in dialogue.turns)


def scene_means(rows: list[dict], scenes: list[Scene], key: str) -> np.ndarray:
    """Mean `key` of each scene's samples, in the order of `scenes`."""
    values: dict[str, list[float]] = {scene.id: [] for scene in scenes}
    for row in rows:
        values[row["scene_id"]].append(row[key])
    return np.array([np.mean(values[scene.id]) for scene in scenes])


def save_policy(evaluator: Evaluator, sft: str) -> None:
    """The policy's adapter in model/, as SFT saves its own, the base by name; and the tokenizer."""
    directory = evaluator.run.dir / "model"
    if evaluator.run.is_main:
        evaluator.policy.save_pretrained(directory, selected_adapters=[POLICY], save_embedding_layers=False)
        name_base(directory, base_of(sft))
        evaluator.tokenizer.save_pretrained(directory)


def show(rows: dict[str, list[dict]], summary: dict, scenes: list[Scene], run: Run, most: int = 6) -> None:
    """The closing table: openers before and after for a few scenes, then the means."""
    if not run.is_main:
        return
    before, after = rows
    console, table = Console(), Table(title="Openers on held-out scenes", show_lines=True)
    for column in ("the person", before.upper(), "score", after.upper(), "score"):
        table.add_column(column)
    first = {name: {row["scene_id"]: row for row in reversed(part)} for name, part in rows.items()}
    for scene in scenes[:most]:
        old, new = first[before][scene.id], first[after][scene.id]
        known = "; ".join(scene.profile) + (f'\n"{scene.greeting}"' if scene.greeting else "")
        table.add_row(known, old["opener"], f"{old['score']:.2f}", new["opener"], f"{new['score']:.2f}")
    console.print(table)
    means = Table()
    for column in ("", "score", "KL, nats a response", "tokens", "ended", "distinct-2", "copied 8+ words"):
        means.add_column(column)
    for name in rows:
        s = summary[name]
        means.add_row(
            name.upper(),
            f"{s['score']:.3f}",
            f"{s['kl']:.2f}",
            f"{s['tokens']:.1f}",
            f"{s['ended']:.2f}",
            f"{s['distinct_2']:.2f}",
            f"{s['copied_8_words']:.3f}",
        )
    console.print(means)
    gain = summary["gain"]
    console.print(
        f"{after.upper()} - SFT on {gain['scenes']} test scenes: {gain['score']:+.3f}, "
        f"95 % interval [{gain['low']:+.3f}, {gain['high']:+.3f}]; sampling and KL at temperature {summary['temperature']}."
    )
    runs = [str(run.dir), *(parent["path"] for parent in json.loads((run.dir / "lineage.json").read_text())["parents"])]
    console.print("Runs: " + "  ".join(runs))
