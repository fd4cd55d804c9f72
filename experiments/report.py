"""Prints the README's results from finished runs, as Markdown: what stands there is what the runs' files say.

python -m experiments.report runs/tiny runs/full
"""

import json
import sys
from pathlib import Path

from data.scenes import load_scenes


def main(experiments: list[str]) -> None:
    for experiment in experiments:
        for stage in ("sft", "reward", "ppo"):
            if not (Path(experiment) / f"{stage}-s1" / "summary.json").exists():
                sys.exit(f"{experiment}/{stage}-s1 is not there or not finished: make ppo EXP={Path(experiment).name}")
    print("| | " + " | ".join(Path(e).name for e in experiments) + " |\n|---|" + "---|" * len(experiments))
    columns = [figures(Path(experiment)) for experiment in experiments]
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column.get(name, "") for column in columns) + " |")
    for experiment in experiments:
        print(f"\n### 20 openers, unedited: {Path(experiment).name}\n")
        print_openers(Path(experiment) / "ppo-s1", 20)


def figures(experiment: Path) -> dict[str, str]:
    """Name -> figure, from the summaries of the experiment's three stages."""
    sft, reward, ppo = (
        json.loads((experiment / f"{stage}-s1" / "summary.json").read_text()) for stage in ("sft", "reward", "ppo")
    )
    commit = json.loads((experiment / "ppo-s1" / "lineage.json").read_text())["commit"][:7]
    gain, bits = ppo["gain"], "bits_per_byte"
    before, after = reward["before/test/macro_f1"], reward["test/macro_f1"]

    def both(key: str, digits: int = 2) -> str:
        return f"{ppo['sft'][key]:.{digits}f} → {ppo['ppo'][key]:.{digits}f}"

    graded = {}
    if "test/spearman_rated" in reward:
        pair = (reward[f"{when}test/spearman_rated"] for when in ("before/", ""))
        graded["reward: Spearman with the grades of test openers, before → after"] = " → ".join(
            f"{v:.3f}" for v in pair
        )
    gold = {}
    if "gold_gain" in ppo:
        g = ppo["gold_gain"]
        gold["the same on gold, which PPO never saw"] = f"{g['gold']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]"
    return {
        "SFT: bits per byte of the friend's text, validation": (
            f"{sft['before'][f'eval_{bits}']:.3f} → {sft['after'][f'eval_{bits}']:.3f}"
        ),
        "SFT: the same on test, after": f"{sft['test'][f'test_{bits}']:.3f}",
        "reward: macro-F1 on test, before → after": f"{before:.3f} → {after:.3f}",
        "reward: true reply above a swapped one, before → after": (
            f"{reward['before/test/true_above_swapped']:.3f} → {reward['test/true_above_swapped']:.3f}"
        ),
        "reward: true reply above any negative, before → after": (
            f"{reward['before/test/true_above']:.3f} → {reward['test/true_above']:.3f}"
        ),
        **graded,
        "**PPO − SFT: score on test scenes, 95 % interval**": (
            f"**{gain['score']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]**"
        ),
        **gold,
        "score, SFT → PPO": both("score", 3),
        "KL to SFT, nats a response": f"{ppo['ppo']['kl']:.2f}",
        "temperature of sampling and KL": f"{ppo['temperature']}",
        "words an opener": both("words", 1),
        "distinct-2": both("distinct_2"),
        "share with a question": both("question"),
        "share with 8 or more words of SFT's training text": both("copied_8_words", 3),
        "test scenes × samples": f"{gain['scenes']} × {ppo['test_samples']}",
        "commit": commit,
    }


def print_openers(run: Path, most: int) -> None:
    """The first sample of each scene, in the order of the file: no choice was made."""
    scenes = {scene.id: scene for scene in load_scenes(run / "scenes_test.jsonl")}
    rows = {name: {} for name in ("sft", "ppo")}
    for name, part in rows.items():
        for line in (run / f"openers_{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            part.setdefault(row["scene_id"], row)
    print("| the person | SFT | PPO |\n|---|---|---|")
    for id in list(rows["sft"])[:most]:
        scene = scenes[id]
        known = "; ".join(scene.profile) + (f' — "{scene.greeting}"' if scene.greeting else "")
        print(f"| {cell(known)} | {cell(rows['sft'][id]['opener'])} | {cell(rows['ppo'][id]['opener'])} |")


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given if given and not any(path.startswith("-") for path in given) else sys.exit(__doc__))
