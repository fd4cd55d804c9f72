"""rl/generate.py on the tiny friend: rows in, openers out."""

import json
import shutil

import pytest

from rl.generate import GenerateConfig, main

SCENES = [
    {"id": "bees", "profile": ["keeps bees", "is 71"], "greeting": None},
    {"id": "hello", "profile": [], "greeting": "Hello, who is there?"},
    {"id": "both", "profile": ["cannot swim"], "greeting": "Hi!"},
]


@pytest.fixture
def write(tmp_path, friend_adapter):
    """Writes openers for lines of a scenes file; returns their rows."""

    def run(lines, **settings):
        scenes, openers = tmp_path / "scenes.jsonl", tmp_path / "openers.jsonl"
        scenes.write_text("".join(line + "\n" for line in lines))
        settings = {"run_dir": friend_adapter, "max_new_tokens": 8, "temperature": 1.0} | settings
        main(GenerateConfig(scenes_file=str(scenes), output_file=str(openers), **settings))
        return [json.loads(line) for line in openers.read_text().splitlines()]

    return run


LINES = [json.dumps(scene) for scene in SCENES]


def test_a_row_for_every_sample(write):
    rows = write(LINES, num_return_sequences=4)
    assert [(row["scene_id"], row["sample"]) for row in rows] == [(s["id"], i) for s in SCENES for i in range(4)]
    assert all(set(row) == {"scene_id", "sample", "opener", "ended"} for row in rows)
    assert all(isinstance(row["opener"], str) and isinstance(row["ended"], bool) for row in rows)
    assert len({row["opener"] for row in rows}) > 6


def test_the_seed_decides_and_the_batch_size_does_not(write):
    rows = write(LINES, num_return_sequences=3, seed=1)
    assert write(LINES, num_return_sequences=3, seed=1, batch_size=2) == rows
    assert write(LINES, num_return_sequences=3, seed=2) != rows


def test_a_base_writes_openers_too_but_others(write, friend_base):
    assert write(LINES, run_dir=friend_base) != write(LINES)


def test_a_run_is_sampled_as_it_was_trained(write, friend_adapter, tmp_path):
    run = tmp_path / "ppo-s1"
    shutil.copytree(friend_adapter, run / "model")
    (run / "lineage.json").write_text("{}")
    (run / "config.json").write_text('{"temperature": 3.0, "instruction": "original"}')
    as_trained = write(LINES, run_dir=str(run), temperature=None)
    assert as_trained == write(LINES, temperature=3.0, instruction="original")
    assert as_trained != write(LINES, temperature=None)


def test_temperature_0_is_greedy(write, capsys):
    rows = write(LINES, num_return_sequences=2, temperature=0.0)
    assert all(a["opener"] == b["opener"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert "at temperature 0:" in capsys.readouterr().out
    with pytest.raises(ValueError, match="temperature is -1"):
        write(LINES, temperature=-1.0)


def test_a_broken_scene_names_file_and_line(write):
    with pytest.raises(ValueError, match=r"scenes\.jsonl, line 2: .*'nobody' has neither profile nor greeting"):
        write([LINES[0], '{"id": "nobody", "profile": [], "greeting": null}'])
    with pytest.raises(ValueError, match=r"scenes\.jsonl, line 3"):
        write([*LINES[:2], LINES[2][:-4]])


def test_broken_scenes_can_be_set_aside(write, tmp_path, capsys):
    rows = write([LINES[0], "{broken", LINES[1]], skip_bad_rows=True)
    assert [row["scene_id"] for row in rows] == ["bees", "hello"]
    assert (tmp_path / "scenes.jsonl.bad").read_text() == "{broken\n"
    assert "1 broken rows set aside" in capsys.readouterr().out


def test_a_prompt_beyond_the_context_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="exceeds the model's context of 256"):
        write([json.dumps({"id": "long", "profile": ["likes plums and pears"] * 60})])
    assert not (tmp_path / "openers.jsonl").exists()
