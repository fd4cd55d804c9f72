"""PPO: optimises how the friend opens a conversation, against the scorer's engagement, on the training scenes.

    make ppo             # python -m rl.train --config experiments/tiny/ppo.yaml

The policy starts as a copy of the SFT adapter on the untouched base; the SFT adapter, frozen, is the reference. The best
policy on validation scenes by score, within `max_kl`, is what is saved. At the end both write openers for the held-out
test scenes with the same noise, and the difference in score is reported with an interval over scenes.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from trl.experimental.ppo import PPOConfig

from data.corpora import LOADERS
from data.scenes import Scene, scenes_of
from data.source import write_whole
from experiments.run import Run, finish_run, parse_config, start_run
from models.load import base_of, load_base, load_scorer, load_tokenizer, name_base, resolve, with_adapter
from rl.metrics import copied, distinct, interval
from rl.trainer import POLICY, REFERENCE, OpenerConfig, OpenerPPOTrainer


def main(config: OpenerConfig, args: PPOConfig) -> None:
    run = start_run(config, args, stage="ppo", seed=args.seed, parents=[args.sft_model_path, args.reward_model_path])
    tokenizer = load_tokenizer(args.sft_model_path)
    policy = policy_with_reference(args.sft_model_path, config)
    scorer = load_scorer(args.reward_model_path)
    gold = load_scorer(config.gold_model_path) if config.gold_model_path else None
    train, validation, test = (
        [s for source in config.scene_sources for s in scenes_of(source, split, config.data_root, most)]
        for split, most in (("train", config.max_scenes), ("validation", 100), ("test", 200))
    )

    trainer = OpenerPPOTrainer(config, args, run, tokenizer, policy, scorer, train, validation, gold)
    trainer.train()
    if trainer.best:
        trainer.load_best()

    rows = {
        name: trainer.openers(test, adapter, config.test_samples, seed=args.seed + 1)
        for name, adapter in (("sft", REFERENCE), ("ppo", POLICY))
    }
    summary = compared(rows, test, training_texts(args.sft_model_path))
    for name, part in {
        "openers_sft": rows["sft"],
        "openers_ppo": rows["ppo"],
        "scenes_test": map(asdict, test),
    }.items():
        write_whole(run.dir / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    save_policy(trainer, tokenizer, run, args.sft_model_path)
    summary |= {
        "best": {**trainer.best, "adapter": "best/adapter.safetensors"} if trainer.best else None,
        "optimizer_steps": trainer.optimizer_steps,
        "temperature": args.temperature,
        "test_samples": config.test_samples,
    }
    finish_run(run, summary)
    show(rows, summary, test, run)


def policy_with_reference(sft: str, config: OpenerConfig):
    """The base with the SFT adapter twice: "policy", to be trained, and "reference", frozen."""
    path = resolve(sft)
    if not (Path(path) / "adapter_config.json").exists():
        raise ValueError(f"sft_model_path {sft!r} has no adapter_config.json: PPO starts from an SFT run's adapter")
    base = load_base(base_of(sft), config.model_dtype, config.quantization)
    model = with_adapter(base, path, POLICY, is_trainable=True)
    model.load_adapter(path, adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(POLICY)
    return model


def training_texts(sft: str) -> Iterator[str]:
    """What the SFT run read, turn by turn; of a shipped or foreign model, which says nothing of that, the sample's."""
    path = Path(sft) / "config.json"
    settings = json.loads(path.read_text()) if (Path(sft) / "lineage.json").exists() else {}
    for source in settings.get("sources", ("sample", "openers")):
        for dialogue in LOADERS[source]("train", settings.get("data_root")):
            yield from (turn.text for turn in dialogue.turns)


def compared(rows: dict[str, list[dict]], scenes: list[Scene], training_texts: Iterable[str]) -> dict:
    """Means of both sides on the test scenes, and the gain in score, and in gold where it was asked, with its 95 % interval
    over scenes."""
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
    for key, name in (("score", "gain"), ("gold", "gold_gain")):
        if key in rows["ppo"][0]:
            gain = scene_means(rows["ppo"], scenes, key) - scene_means(rows["sft"], scenes, key)
            low, high = interval(gain)
            summary[name] = {key: float(gain.mean()), "low": low, "high": high, "scenes": len(scenes)}
    return summary


def scene_means(rows: list[dict], scenes: list[Scene], key: str) -> np.ndarray:
    """Mean `key` of each scene's samples, in the order of `scenes`."""
    values: dict[str, list[float]] = {scene.id: [] for scene in scenes}
    for row in rows:
        values[row["scene_id"]].append(row[key])
    return np.array([np.mean(values[scene.id]) for scene in scenes])


def save_policy(trainer: OpenerPPOTrainer, tokenizer, run: Run, sft: str) -> None:
    """The policy's adapter in model/, as SFT saves its own: config and weights at the top, the base by name."""
    if not run.is_main:
        return
    directory = run.dir / "model"
    trainer.policy_model.save_pretrained(directory, selected_adapters=[POLICY], save_embedding_layers=False)
    for file in (directory / POLICY).iterdir():  # peft puts every adapter but "default" in a folder of its name
        file.replace(directory / file.name)
    (directory / POLICY).rmdir()
    name_base(directory, base_of(sft))
    tokenizer.save_pretrained(directory)


def show(rows: dict[str, list[dict]], summary: dict, scenes: list[Scene], run: Run, most: int = 6) -> None:
    """The closing table: openers before and after for a few scenes, then the means."""
    if not run.is_main:
        return
    console, table = Console(), Table(title="Openers on held-out scenes", show_lines=True)
    for column in ("the person", "SFT", "score", "PPO", "score"):
        table.add_column(column)
    first = {name: {row["scene_id"]: row for row in reversed(part)} for name, part in rows.items()}
    for scene in scenes[:most]:
        sft, ppo = first["sft"][scene.id], first["ppo"][scene.id]
        known = "; ".join(scene.profile) + (f'\n"{scene.greeting}"' if scene.greeting else "")
        table.add_row(known, sft["opener"], f"{sft['score']:.2f}", ppo["opener"], f"{ppo['score']:.2f}")
    console.print(table)
    means = Table()
    for column in ("", "score", "KL, nats a response", "tokens", "ended", "distinct-2", "copied 8+ words"):
        means.add_column(column)
    for name in ("sft", "ppo"):
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
        f"PPO - SFT on {gain['scenes']} test scenes: {gain['score']:+.3f}, "
        f"95 % interval [{gain['low']:+.3f}, {gain['high']:+.3f}]; sampling and KL at temperature {summary['temperature']}."
    )
    runs = [str(run.dir), *(parent["path"] for parent in json.loads((run.dir / "lineage.json").read_text())["parents"])]
    console.print("Runs: " + "  ".join(runs))


if __name__ == "__main__":
    main(*parse_config(OpenerConfig, PPOConfig))
