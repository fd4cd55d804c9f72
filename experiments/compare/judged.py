"""A judge model's opinion of each arm's openers beside SFT's (experiments/judge.py): rows, judge.json and a line of notes.

Its answers are kept in judge-answers.jsonl by what was asked, so that a second run asks for what is missing alone.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from data.scenes import Scene
from data.source import write_whole
from experiments import judge
from experiments.compare.arms import MOOD
from experiments.compare.table import by_arm

if TYPE_CHECKING:
    from experiments.compare.__main__ import CompareConfig


def judged(config: "CompareConfig", rows: list[dict], scenes: list[Scene], directory: Path) -> tuple[list[dict], str]:
    """Rows {"arm", "seed", "scene", "win_rate", "grade_gain"}, a pair of openers each, and what notes say of them.

    "win_rate" is 1 or 0 where both orders agree and else 0.5, "grade_gain" the grade less that of SFT's opener; None where
    an answer held no verdict. One opener a scene and seed is judged, on the first `judge_scenes` scenes, each seed's
    against another one of SFT's. Where the judge stops answering, the arms until then are told and notes say so.
    """
    model = judge.judge_from_environment(directory / "judge-answers.jsonl")
    if model is None:
        return [], f"Judge: {judge.SKIPPED}."
    scenes = scenes[: config.judge_scenes]
    here = {scene.id for scene in scenes}
    openers = by_arm([row for row in rows if row["scene"] in here], config.arms, [scene.id for scene in scenes])
    found, numbers, stopped = [], {}, ""
    for arm in (arm for arm in config.arms if arm not in ("sft", MOOD)):
        seeds = len(openers[arm].rows)
        theirs = openers["sft"].drawn(seeds, config.seed)[0]
        pairs = [
            judge.Pair(scene, s, mine["opener"], its["opener"])
            for s, (said,) in enumerate(openers[arm].drawn(1, config.seed))
            for scene, mine, its in zip(scenes, said, theirs[s], strict=True)
            if mine
        ]
        try:
            verdicts, grades = judge.compare(model, pairs), judge.grade(model, pairs)
        except judge.JudgeError as error:
            stopped = f" It is not in the columns of {arm} and what follows: {error}."
            break
        numbers[arm] = {**judge.pair_numbers(pairs, verdicts), **judge.grade_numbers(grades)}
        said = judge.by_pair(pairs, verdicts)
        for pair, graded in zip(pairs, grades, strict=True):
            known = None not in (graded["run"], graded["against"])
            found.append(
                {
                    "arm": arm,
                    "seed": pair.sample,
                    "scene": pair.scene.id,
                    "win_rate": judge.preference(said[pair.id]) if judge.is_valid(said[pair.id]) else None,
                    "grade_gain": graded["run"] - graded["against"] if known else None,
                }
            )
    write_whole(directory / "judge.json", json.dumps({"judge": model.model, **numbers}, indent=1) + "\n")
    return found, (
        f"Judge: {model.model}, {len(scenes)} scenes, one opener of each arm and seed beside one of SFT's in both orders; "
        f"judge.json has consistency, first-slot and invalid rates, and win rates at equal length.{stopped}"
    )
