"""models/ship.py on tiny runs: what a card says is what the run's files say.

Not covered: the cards of the shipped models themselves, which are printed from their runs.
"""

import json
import shutil

import pytest

from models import ship
from models.load import load_scorer


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A place for shipped models, and a function that makes a finished run of a model directory."""
    monkeypatch.setattr(ship, "PRETRAINED", tmp_path / "pretrained")

    def make(model, **config):
        directory = tmp_path / "runs" / "some" / "stage-s1"
        shutil.copytree(model, directory / "model")
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "lineage.json").write_text('{"commit": "abcdef1234"}')
        (directory / "summary.json").write_text('{"test": {"loss": 3.14159}}')
        return directory

    return make


def test_each_stage_is_told_by_its_files(run, friend_base, friend_adapter, tiny_scorer, tmp_path):
    for model, config, stage in (
        (friend_base, {}, "base"),
        (friend_adapter, {"sources": ["sample"]}, "sft"),
        (friend_adapter, {"reward_model_path": "r"}, "ppo"),
        (tiny_scorer, {}, "reward"),
    ):
        directory = run(model, **config)
        assert ship.stage_of(directory) == stage
        shutil.rmtree(directory)


def test_a_shipped_reward_scores_as_its_run_does_up_to_bfloat16(run, tiny_scorer, tmp_path):
    directory = run(tiny_scorer, sources=["sample"], fold="proxy", architecture="cross_encoder", num_members=1)
    ship.main(directory, "friend-reward")
    shipped = tmp_path / "pretrained" / "friend-reward"
    card = (shipped / "README.md").read_text()
    assert "| test/loss | 3.142 |" in card and "abcdef1" in card and "| My dog died yesterday. |" in card
    row = [{"context": [], "response": "the dog"}]
    assert load_scorer(shipped).score(row)[0].item() == pytest.approx(
        load_scorer(directory).score(row)[0].item(), abs=0.05
    )


def test_the_licence_is_that_of_what_was_read(run, friend_adapter, monkeypatch):
    directory = run(friend_adapter, sources=["sample", "openers"])
    adapter = directory / "model" / "adapter_config.json"
    for base, sources, licence in (
        ("smollm2", ["sample", "openers"], "apache-2.0"),
        ("smollm2", ["sample", "daily"], "cc-by-nc-sa-4.0"),
        (json.loads(adapter.read_text())["base_model_name_or_path"], ["sample"], "cc-by-nc-sa-4.0"),
    ):
        monkeypatch.setattr(ship, "replies", lambda _: "")
        adapter.write_text(json.dumps({**json.loads(adapter.read_text()), "base_model_name_or_path": base}))
        (directory / "config.json").write_text(json.dumps({"sources": sources}))
        assert f"license: {licence}\n" in ship.card(directory, "friend")


def test_a_shipped_adapter_shows_replies(run, friend_adapter, tmp_path):
    ship.main(run(friend_adapter, sources=["sample"]), "friend-sft")
    card = (tmp_path / "pretrained" / "friend-sft" / "README.md").read_text()
    assert card.count("\n| ") >= 20 and "base_model:" in card
