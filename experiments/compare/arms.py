"""The arms, the runs behind them, and the refusal of arms that cannot be compared."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data.corpora import LOADERS
from data.scenes import Scene, profile_hash, scenes_of
from experiments.run import scorer_hash, settings_of, weights_hash
from models.load import base_of, resolve

#: Arms that are trained, each by the recipe of its name, from the SFT run and the reward.
TRAINED = ("ppo", "ppo-length", "ppo-pessimistic", "grpo", "dpo", "expert")
#: Best of n by the proxy, out of the SFT policy's pool.
BEST_OF = {f"best-of-{n}": n for n in (2, 4, 16, 64)}
#: The SFT policy with an instruction that follows the person's mood (models/mood.py): in conversations alone.
MOOD = "sft+mood"
ARMS = ("base", "sft", MOOD, *BEST_OF, *TRAINED, "human")
#: What is optimised there is not the proxy, on purpose.
OWN_REWARD = ("ppo-length",)

TITLES = {
    "base": "base model",
    "sft": "SFT",
    MOOD: "SFT, prompt by mood",
    **{name: f"best of {n}" for name, n in BEST_OF.items()},
    "ppo": "PPO",
    "ppo-length": "PPO, reward: length alone",
    "ppo-pessimistic": "PPO, pessimistic ensemble",
    "grpo": "GRPO",
    "dpo": "DPO on best-of-n pairs",
    "expert": "SFT on best-of-n winners",
    "human": "written for the scenes",
}


@dataclass(frozen=True)
class Speaker:
    """Whose openers: a model's (None: the written ones) of an arm and a training seed (0 where nothing was trained here)."""

    arm: str
    seed: int
    model: str | None
    id: str
    sha256: str | None


def chosen(names: list[str]) -> list[str]:
    """The arms of a list in the order of ARMS; "best-of-n" stands for all of them. SFT, which all are compared with, is
    always among them. ValueError for an unknown name."""
    names = ["sft", *names] + (list(BEST_OF) if "best-of-n" in names else [])
    if unknown := set(names) - {*ARMS, "best-of-n"}:
        raise ValueError(
            f"arm {min(unknown)!r} is unknown; there are {', '.join(ARMS)}, and best-of-n for all of these"
        )
    return [arm for arm in ARMS if arm in names]


def speakers(
    arms: list[str], seeds: list[int], control_seeds: list[int], runs_dir: str, sft: str, reward: str
) -> list[Speaker]:
    """Everyone who writes. Best-of-n needs nobody of its own: it chooses among what the SFT policy wrote. Nor does the
    policy that is told of a mood: it only talks.

    FileNotFoundError for a run that is missing or not finished; ValueError where one had another base, tokenizer, SFT
    policy or reward than the others.
    """
    who = [Speaker("sft", 0, sft, _id(sft), weights_hash(resolve(sft)))]
    if "base" in arms:
        base = base_of(sft)
        who.append(Speaker("base", 0, base, base, weights_hash(resolve(base))))
    for arm in TRAINED:
        for seed in (seeds if arm == "ppo" else control_seeds) if arm in arms else ():
            run = Path(runs_dir) / f"{arm}-s{seed}"
            check_run(run, arm, sft, reward)
            who.append(Speaker(arm, seed, str(run), _id(str(run)), weights_hash(run)))
    if "human" in arms:
        who.append(Speaker("human", 0, None, "human", None))
    return who


def check_run(run: Path, arm: str, sft: str, reward: str) -> None:
    """Refuses a run that is not there, not finished, or not comparable with the SFT policy and the reward."""
    again = f"make {arm} EXP={run.parent.name} SEED={run.name.rsplit('-s', 1)[1]}"
    if not (run / "lineage.json").exists():
        raise FileNotFoundError(f"{run} is missing: train it with `{again}`, or leave {arm!r} out of the arms")
    if not (run / "summary.json").exists():
        raise FileNotFoundError(f"{run} is not finished (no summary.json): `{again}` goes on where it stopped")
    if base_of(str(run)) != base_of(sft):
        raise ValueError(f"{run} stands on the base {base_of(str(run))!r}, {sft} on {base_of(sft)!r}: not comparable")
    if _tokenizer(str(run)) != _tokenizer(sft):
        raise ValueError(f"{run} has another tokenizer than {sft}: their KL would mean nothing")
    parents = json.loads((run / "lineage.json").read_text())["parents"]
    expected = [("SFT policy", sft)] + ([] if arm in OWN_REWARD else [("reward", reward)])
    for (what, name), parent in zip(expected, parents, strict=False):
        sha256, scorer = weights_hash(resolve(name)), scorer_hash(resolve(name))
        is_it = parent["sha256"] == sha256 and parent.get("scorer_sha256", scorer) == scorer
        if not is_it or sha256 is None and parent["path"] != name:
            settings = " with another scorer.json" if parent["sha256"] == sha256 else ""
            raise ValueError(
                f"{run} was trained with the {what} {parent['path']} of sha256 {str(parent['sha256'])[:12]}, but {name} "
                f"is {str(sha256)[:12]}{settings}: compare arms of one {what}, or train it again "
                f"(rm {run}/summary.json; {again})"
            )


def check_held_out(scenes: list[Scene], who: list[Speaker], sft: str, data_root: str | None) -> None:
    """Refuses scenes whose profile was in training: of the SFT policy's dialogues or of a run's scenes. A scene without
    a profile is told by nothing, and let through."""
    trained: dict[str, str] = {}
    for source in settings_of(sft).get("sources", ("sample", "openers")):
        for dialogue in LOADERS[source]("train", data_root):
            trained.setdefault(profile_hash(dialogue.profile), f"the SFT policy's dialogue {dialogue.id!r}")
    sources = {source for s in who if s.arm in TRAINED for source in settings_of(s.model)["scene_sources"]}
    for source in sorted(sources):
        for scene in scenes_of(source, "train", data_root):
            trained.setdefault(profile_hash(scene.profile), f"training scene {scene.id!r} of {source}")
    for scene in scenes:
        if scene.profile and (where := trained.get(profile_hash(scene.profile))):
            raise ValueError(f"scene {scene.id!r} was trained on: its profile is that of {where}; give held-out scenes")


def _id(model: str) -> str:
    """A run's id; of any other model, its name."""
    lineage = Path(model) / "lineage.json"
    return json.loads(lineage.read_text())["id"] if lineage.exists() else model


def _tokenizer(model: str) -> str:
    return hashlib.sha256((Path(resolve(model)) / "tokenizer.json").read_bytes()).hexdigest()
