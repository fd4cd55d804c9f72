"""Openers of several arms read blind: sheets of mixed lines for readers to grade, and what the grades say.

    make blind ARMS="sft ppo best-of-16" READING=1      # python -m experiments.blind sheets --reading 1 --arms ...
    make blind-grades                                   # python -m experiments.blind grades

A reading takes one opener of each arm and seed for each of the same test scenes out of a comparison's rows.parquet, the
lines of a scene in random order and the same words once. `sheets` writes into <compare_dir>/blind-<reading>/ a brief and
sheet-<n>.json; a reader, be it a person or a language model, writes grades-<n>.json, {scene: {line: 1 to 5}}. key.json says
whose line is whose, and is nothing for readers. Another reading takes other openers.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data.scenes import Scene, load_scenes, scenes_of
from data.source import write_whole
from experiments.compare.arms import MOOD, TRAINED, chosen
from experiments.compare.table import by_arm
from rl.metrics import interval

BRIEF = """# Grading openers

Each scene has a profile (facts about a person), perhaps a greeting (what the person said first; null where the friend
speaks first), and lines with which a friend might open. Grade each line by itself, 1 to 5: how gladly would this very person
answer?

5 full sense, kind, specific, easy to answer: a kind person could have said it
4 makes sense and is kind, but flat, or a little off in tone
3 understandable; somebody could answer, though something is odd
2 partly nonsense, or mistaken about the person, or the wrong mood
1 nonsense, or unkind

Be strict and consistent: read what the line literally says about this person. Warm words over what hurts are the wrong mood.
A slip of grammar that leaves the sense clear costs one grade.

Write the grades of sheet-N.json into grades-N.json beside it, every line of every scene:
{"<scene>": {"<line>": grade, ...}, ...}
"""
#: Of these all seeds are read; best-of-n and SFT are one.
DEFAULT_ARMS = ("sft", "ppo", "best-of-16")


def sheets(args: argparse.Namespace) -> None:
    folder = args.compare_dir / f"blind-{args.reading}"
    if folder.exists():
        raise FileExistsError(f"{folder} is there: grade it, or take another --reading")
    if args.scenes < args.sheets or args.sheets < 1:
        raise ValueError(f"{args.scenes} scenes on {args.sheets} sheets: each sheet needs one or more")
    arms = [arm for arm in chosen(args.arms) if arm != MOOD]  # which only ever talks
    rows = read_rows(args.compare_dir, arms)
    known = {row["scene"] for row in rows}
    given = load_scenes(args.scenes_file) if args.scenes_file else scenes_of("sample", "test")
    scenes = [scene for scene in given if scene.id in known]
    if len(scenes) < args.scenes:
        where = args.scenes_file or "the sample's test scenes"
        raise ValueError(
            f"{len(scenes)} of the comparison's {len(known)} scenes are in {where}, and {args.scenes} are asked for: give "
            "its --scenes_file, or fewer --scenes"
        )
    rng = np.random.default_rng(args.reading)
    scenes = [scenes[i] for i in sorted(rng.permutation(len(scenes))[: args.scenes])]
    said = openers(rows, arms, scenes, rng)
    target, folder = folder, folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)  # of a kill
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(scenes)), args.sheets)):
        sheet = []
        for scene in (scenes[i] for i in part):
            lines = rng.permutation(sorted(set(said[scene.id].values())))
            numbered = {str(n): str(line) for n, line in enumerate(lines)}
            sheet.append({"scene": scene.id, "profile": scene.profile, "greeting": scene.greeting, "lines": numbered})
        write_whole(folder / f"sheet-{number}.json", json.dumps(sheet, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "key.json", json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "brief.md", BRIEF)
    os.replace(folder, target)
    lines = sum(len(set(of_scene.values())) for of_scene in said.values())
    print(f"{lines} lines of {len(scenes)} scenes on {args.sheets} sheets: {target}; what to do with them: brief.md")


def openers(rows: list[dict], arms: list[str], scenes: list[Scene], rng: np.random.Generator) -> dict:
    """{scene: {who: opener}}, who an arm, a trained one with its seed. ValueError for an arm without openers."""
    here = {scene.id for scene in scenes}
    found = by_arm([row for row in rows if row["scene"] in here], arms, [scene.id for scene in scenes])
    said: dict[str, dict[str, str]] = {scene.id: {} for scene in scenes}
    for arm in arms:
        if not found[arm].rows:
            raise ValueError(f"the comparison has no openers of arm {arm!r}")
        seeds = sorted({row["seed"] for row in rows if row["arm"] == arm}) if arm in TRAINED else [None]
        for seed, part, weights in zip(seeds, found[arm].rows, found[arm].weights, strict=True):
            who = arm if seed is None else f"{arm} {seed}"
            for scene, cell, w in zip(scenes, part, weights, strict=True):
                if not cell:
                    raise ValueError(f"the comparison has no opener of {who} for scene {scene.id!r}")
                said[scene.id][who] = cell[rng.choice(len(cell), p=w / w.sum())]["opener"]
    return said


def grades(args: argparse.Namespace) -> None:
    folders = sorted(args.compare_dir.glob("blind-*"))
    if not folders:
        raise FileNotFoundError(f"{args.compare_dir} has no sheets: make them first (sheets)")
    readings = {}
    for folder in folders:
        left = [path.name for path in sorted(folder.glob("sheet-*.json")) if not grades_of(path).exists()]
        if left:
            print(f"{folder} is not graded yet ({', '.join(left)}; {folder / 'brief.md'} says how): left out")
        else:
            readings[folder.name.removeprefix("blind-")] = graded(folder)
    if not readings:
        raise FileNotFoundError(f"no reading in {args.compare_dir} has all its grades")
    result = {name: numbers([reading]) for name, reading in readings.items()}
    if len(readings) > 1:
        result["all"] = numbers(list(readings.values()))
        if missing := {who for reading in readings.values() for who in reading} - set(result["all"]):
            print(f"Not in every reading, so not in `all`: {', '.join(sorted(missing))}")
    for name, found in result.items():
        print(f"\nreading {name}\n" + table(found))
    print(json.dumps(result))


def graded(folder: Path) -> dict[str, dict[str, int]]:
    """{who: {scene: grade}} of a reading. ValueError names the sheet, scene and line that has no grade of 1 to 5."""
    said = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, int]] = {}
    for sheet in sorted(folder.glob("sheet-*.json")):
        file = grades_of(sheet)
        given = json.loads(file.read_text(encoding="utf-8"))
        for row in json.loads(sheet.read_text(encoding="utf-8")):
            of_line = {}
            for number, line in row["lines"].items():
                grade = given.get(row["scene"], {}).get(number)
                if grade not in (1, 2, 3, 4, 5):
                    raise ValueError(
                        f"{file}: scene {row['scene']!r}, line {number}: the grade is {grade!r}, not 1 to 5"
                    )
                of_line[line] = grade
            for who, line in said[row["scene"]].items():
                found.setdefault(who, {})[row["scene"]] = of_line[line]
    return found


def grades_of(sheet: Path) -> Path:
    return sheet.with_name(sheet.name.replace("sheet", "grades"))


def numbers(readings: list[dict[str, dict[str, int]]]) -> dict[str, dict]:
    """Of each who, and of an arm's seeds together: mean grade, shares of at least 3 and 4, and the mean over SFT's with a
    95 % interval by bootstrap over scenes, of several seeds over seeds too. Readings share scenes: a scene's gains are
    averaged first, and each scene weighs the same."""
    whos = [who for who in readings[0] if all(who in reading for reading in readings)]
    seeds_of: dict[str, list[str]] = {}
    for who in whos:
        seeds_of.setdefault(who.split(" ")[0], []).append(who)
    several = {f"{arm}, all seeds": members for arm, members in seeds_of.items() if len(members) > 1}
    groups = {who: [who] for who in whos} | several
    result = {}
    for name, members in groups.items():
        all_grades = np.array([g for reading in readings for who in members for g in reading[who].values()])
        gains: dict[str, list[list[float]]] = {}  # of a scene: for each member, those of all readings
        for reading in readings:
            for m, who in enumerate(members):
                for scene, grade in reading[who].items():
                    gains.setdefault(scene, [[] for _ in members])[m].append(grade - reading["sft"][scene])
        gain_SM = np.array([[np.mean(of_member) for of_member in of_scene] for of_scene in gains.values()])
        low, high = interval(gain_SM[:, 0]) if len(members) == 1 else of_scenes_and_seeds(gain_SM)
        result[name] = {
            "mean": float(all_grades.mean()), "at_least_3": float((all_grades >= 3).mean()),
            "at_least_4": float((all_grades >= 4).mean()), "lines": len(all_grades), "scenes": len(gain_SM),
            "over_sft": float(gain_SM.mean()), "low": low, "high": high,
        }  # fmt: skip
    return result


def of_scenes_and_seeds(gain_SM: np.ndarray, resamples: int = 9999) -> tuple[float, float]:
    """95 % interval of the mean over S scenes and M seeds, both drawn anew: percentiles, as BCa knows one level alone."""
    rng, (S, M) = np.random.default_rng(0), gain_SM.shape
    means = [gain_SM[rng.integers(S, size=S)].mean(0)[rng.integers(M, size=M)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def table(found: dict[str, dict]) -> str:
    head = ["| who | mean of 5 | 3 or more | 4 or more | over SFT |", "|---|---|---|---|---|"]
    return "\n".join(
        head
        + [
            f"| {who} | {n['mean']:.2f} | {n['at_least_3']:.0%} | {n['at_least_4']:.0%} | "
            + (f"{n['over_sft']:+.2f} [{n['low']:+.2f}, {n['high']:+.2f}] |" if who != "sft" else "|")
            for who, n in found.items()
        ]
    )


def read_rows(compare_dir: Path, arms: list[str]) -> list[dict]:
    """The rows of these arms, and of SFT, whose pool best-of-n is. ValueError for those of a run that was trained again."""
    path = compare_dir / "rows.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make compare writes it")
    columns = ["arm", "seed", "scene", "opener", "proxy", "run_id"]
    rows = [row for row in pq.read_table(path, columns=columns).to_pylist() if row["arm"] in arms]
    for arm, seed, id in sorted({(row["arm"], row["seed"], row["run_id"]) for row in rows if row["arm"] in TRAINED}):
        summary = compare_dir.parent / f"{arm}-s{seed}" / "summary.json"
        if summary.exists() and (now := json.loads(summary.read_text())["id"]) != id:
            raise ValueError(
                f"{path} has openers of {arm} {seed} by run {id}, but {summary.parent} is run {now}: make compare again, "
                f"or leave {arm} out of the arms"
            )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.blind", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("sheets", help="write sheets of mixed lines")
    made.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), help="as make compare's (default: %(default)s)")
    made.add_argument("--reading", type=int, default=1, help="which draw of scenes and openers (default: 1)")
    made.add_argument("--scenes", type=int, default=160, help="how many (default: %(default)s)")
    made.add_argument("--sheets", type=int, default=8, help="on how many sheets (default: %(default)s)")
    made.add_argument("--scenes_file", help="the comparison's scenes, where they are not the sample's test scenes")
    made.set_defaults(run=sheets)
    summed = commands.add_parser("grades", help="add up the grades of all readings")
    summed.set_defaults(run=grades)
    for command in (made, summed):
        command.add_argument("--compare_dir", type=Path, default=Path("runs/tiny/compare"), help="default: %(default)s")
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
