"""experiments/blind.py: sheets that say nothing of whose line is whose, and numbers that are the grades'."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.scenes import scenes_of
from experiments import blind

SCENES = [scene.id for scene in scenes_of("sample", "test")][:12]


@pytest.fixture
def compare_dir(tmp_path):
    """A comparison's rows: SFT's pool of 16 whose n-th line scores n, two seeds of PPO, and one line that both say."""
    rows = []
    for scene in SCENES:
        lines = [("sft", 0, n, f"sft {n} to {scene}") for n in range(16)]
        lines += [("ppo", seed, n, f"ppo {seed}.{n} to {scene}") for seed in (1, 2) for n in range(3)]
        lines += [("grpo", 1, 0, f"ppo 1.0 to {scene}")]
        for arm, seed, sample, opener in lines:
            score = float(sample)
            rows.append(
                {"arm": arm, "seed": seed, "scene": scene, "sample": sample, "opener": opener, "proxy": score,
                 "gold": score, "run_id": f"{arm}-{seed}"}
            )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


def sheets(compare_dir, *more):
    blind.main(["sheets", "--compare_dir", str(compare_dir), "--scenes", "10", "--sheets", "3", *more])


def grade(folder, grade_of):
    for path in folder.glob("sheet-*.json"):
        given = {
            row["scene"]: {n: grade_of(line) for n, line in row["lines"].items()}
            for row in json.loads(path.read_text())
        }
        (folder / path.name.replace("sheet", "grades")).write_text(json.dumps(given))


def test_a_sheet_tells_nothing_and_the_key_all(compare_dir):
    sheets(compare_dir, "--arms", "ppo", "grpo", "best-of-16")
    folder = compare_dir / "blind-1"
    rows = [row for path in sorted(folder.glob("sheet-*.json")) for row in json.loads(path.read_text())]
    key = json.loads((folder / "key.json").read_text())
    assert len(rows) == len(key) == 10 and {row["scene"] for row in rows} == set(key) <= set(SCENES)
    assert all(set(row) == {"scene", "profile", "greeting", "lines"} for row in rows)
    for row in rows:
        assert set(key[row["scene"]]) == {"sft", "ppo 1", "ppo 2", "grpo 1", "best-of-16"}
        assert sorted(row["lines"].values()) == sorted(set(key[row["scene"]].values())), "the same words are read once"
    first = [list(row["lines"].values()).index(key[row["scene"]]["sft"]) for row in rows]
    assert len(set(first)) > 1, "the order is drawn for each scene"
    best = [int(of["best-of-16"].split()[1]) for of in key.values()]
    assert np.mean(best) > 12  # of a pool of 16 whose n-th scores n
    with pytest.raises(FileExistsError, match="another --reading"):
        sheets(compare_dir)
    sheets(compare_dir, "--arms", "ppo", "grpo", "best-of-16", "--reading", "2")
    other = json.loads((compare_dir / "blind-2" / "key.json").read_text())
    assert other != key
    shutil.rmtree(folder)
    sheets(compare_dir, "--arms", "ppo", "grpo", "best-of-16")
    assert json.loads((folder / "key.json").read_text()) == key, "a reading can be drawn again"


def test_the_numbers_are_those_of_the_grades(compare_dir, capsys):
    for reading in (1, 2):
        sheets(compare_dir, "--arms", "ppo", *(["grpo"] if reading == 2 else []), "--reading", str(reading))
        grade(compare_dir / f"blind-{reading}", lambda line: 4 if line.startswith("ppo 1") else 2)
    blind.main(["grades", "--compare_dir", str(compare_dir)])
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert "Not in every reading, so not in `all`: grpo 1" in out
    assert set(found) == {"1", "2", "all"}
    one, both = found["all"]["ppo 1"], found["all"]["ppo, all seeds"]
    assert (one["mean"], one["at_least_3"], one["at_least_4"], one["over_sft"]) == (4.0, 1.0, 1.0, 2.0)
    assert (both["mean"], both["at_least_3"], both["over_sft"], both["lines"]) == (3.0, 0.5, 1.0, 40)
    assert (both["low"], both["high"]) == (0.0, 2.0), "seeds that differ: the interval knows it"
    assert found["1"]["ppo 1"]["scenes"] == 10 and 10 <= one["scenes"] <= 12
    assert found["all"]["sft"]["over_sft"] == 0 and "| ppo 1 | 4.00 | 100% | 100% | +2.00 [+2.00, +2.00] |" in out


def test_what_is_missing_is_named(compare_dir, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="has no sheets"):
        blind.main(["grades", "--compare_dir", str(compare_dir)])
    with pytest.raises(ValueError, match="no openers of arm 'dpo'"):
        sheets(compare_dir, "--arms", "dpo")
    with pytest.raises(ValueError, match="2 scenes on 3 sheets"):
        sheets(compare_dir, "--scenes", "2")
    with pytest.raises(
        ValueError, match="12 of the comparison's 12 scenes are in the sample's test scenes, and 13 are"
    ):
        sheets(compare_dir, "--scenes", "13")
    sheets(compare_dir)
    folder = compare_dir / "blind-1"
    with pytest.raises(FileNotFoundError, match="no reading in .* has all its grades"):
        blind.main(["grades", "--compare_dir", str(compare_dir)])
    assert "blind-1 is not graded yet (sheet-0.json, sheet-1.json, sheet-2.json; " in capsys.readouterr().out
    grade(folder, lambda line: 6)
    with pytest.raises(ValueError, match=r"grades-0.json: scene 'sample-\d+', line 0: the grade is 6, not 1 to 5"):
        blind.main(["grades", "--compare_dir", str(compare_dir)])
    with pytest.raises(FileNotFoundError, match="rows.parquet is missing: make compare writes it"):
        blind.main(["sheets", "--compare_dir", str(tmp_path / "nothing")])


def test_openers_of_a_run_that_was_trained_again_are_refused(compare_dir):
    nested = compare_dir / "compare"
    nested.mkdir()
    shutil.move(compare_dir / "rows.parquet", nested)
    for seed, id in ((1, "ppo-1"), (2, "another")):
        (compare_dir / f"ppo-s{seed}").mkdir()
        (compare_dir / f"ppo-s{seed}" / "summary.json").write_text(json.dumps({"id": id}))
    with pytest.raises(ValueError, match="openers of ppo 2 by run ppo-2, but .*ppo-s2 is run another: make compare"):
        sheets(nested, "--arms", "ppo")
    sheets(nested, "--arms", "grpo", "sft+mood")
