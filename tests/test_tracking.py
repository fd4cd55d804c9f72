"""What the project tells wandb, by wandb's own client against a server on loopback (fake_wandb.py); and the local page.

Not covered: how the real server draws any of it, which needs an account.
"""

import json
from dataclasses import dataclass

import pytest
import wandb
from PIL import Image

from data.scenes import Scene
from experiments import board, dashboard, sync
from experiments.compare.__main__ import CompareConfig, Comparison
from experiments.compare.numbers import Estimate
from experiments.compare.track import track
from experiments.run import RunConfig, finish_run, start_run
from tests.fake_wandb import ENTITY, FakeWandb


@dataclass
class Settings(RunConfig):
    kl_coef: float = 0.1


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A fake server that wandb's client, started anew, believes to be wandb; the key is in the environment alone."""
    wandb.teardown()
    monkeypatch.chdir(tmp_path)
    with FakeWandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", fake.key)
        monkeypatch.delenv("WANDB_ENTITY", raising=False)
        monkeypatch.delenv("WANDB_PROJECT", raising=False)
        yield fake
        wandb.teardown()
        assert fake.unknown == []


def opened(path, stage, parents=(), **settings):
    return start_run(Settings(run_dir=str(path), **settings), stage=stage, seed=1, parents=parents)


def finished(path, stage, parents=()):
    run = opened(path, stage, parents)
    run.log({"eval/score": 0.5}, step=3)
    return weighed(run)


def weighed(run):
    (run.dir / "model").mkdir()
    (run.dir / "model" / "adapter.safetensors").write_bytes(run.dir.name.encode())
    run.table("openers", ["opener"], [["Hello, Zoë!"]])
    finish_run(run, {"gain": {"score": 0.5}})
    return run.dir


def id_of(run):
    return json.loads((run / "lineage.json").read_text())["id"]


def own_rows(server, run):
    """What the run logged of its own, without wandb's clock."""
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in server.history[id_of(run)]]
    return [row for row in rows if "openers" not in row]


# ------------------------------------------------------------------------------------------------ runs


def test_an_online_run_says_what_a_dashboard_sorts_by(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    run = finished(tmp_path / "runs" / "tiny" / "ppo-s1", "ppo")
    said = server.runs[id_of(run)]
    assert (said["groupName"], said["jobType"], said["tags"]) == ("tiny", "ppo", ["ppo", "seed-1"])
    config = {key: part["value"] for key, part in json.loads(said["config"]).items() if key != "_wandb"}
    expected = {"experiment": "tiny", "arm": "ppo", "stage": "ppo", "seed": 1, "kl_coef": 0.1, "parents": []}
    assert config.items() >= expected.items()
    assert own_rows(server, run) == [{"step": 3, "eval/score": 0.5}] and server.history[id_of(run)][0]["_step"] == 0
    assert server.summary[id_of(run)]["gain"] == {"score": 0.5}
    assert server.artifacts[f"model-{id_of(run)}"]["state"] == "COMMITTED"
    assert not [path for path in server.files if path.endswith(".safetensors")], "weights are for `make publish`"


def test_what_was_run_offline_is_uploaded_with_its_lineage(server, tmp_path, capfd):
    runs = tmp_path / "runs"
    sft = finished(runs / "tiny" / "sft-s1", "sft")
    stopped = opened(runs / "tiny" / "ppo-s1", "ppo", [sft])
    stopped.log({"eval/score": 0.25}, step=1)
    wandb.finish()
    again = opened(runs / "tiny" / "ppo-s1", "ppo", [sft])
    again.log({"eval/score": 0.5}, step=2)
    assert sync.main(str(runs)) == 0  # it runs still: left alone
    assert set(server.runs) == {id_of(sft)}
    ppo = weighed(again)

    assert sync.main(str(runs)) == 0
    assert own_rows(server, ppo) == [{"step": 1, "eval/score": 0.25}, {"step": 2, "eval/score": 0.5}]
    steps = [row["_step"] for row in server.history[id_of(ppo)]]
    assert steps == sorted(set(steps)), "the server drops rows that go back"
    assert server.used == [(id_of(ppo), f"model-{id_of(sft)}")]
    assert server.artifacts[f"run-{id_of(ppo)}-openers"]["state"] == "COMMITTED"
    tables = [json.loads(data) for path, data in server.files.items() if path.endswith("openers.table.json")]
    assert [table["data"] for table in tables] == [[["Hello, Zoë!"]]] * 2

    asked = len(server.operations)
    assert sync.main(str(runs)) == 0 and "UpsertBucket" not in server.operations[asked:] and len(server.used) == 1
    out = "".join(capfd.readouterr())
    assert "ppo-s1: not finished" in out and "nothing to upload" in out
    texts = [out, *(p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file())]
    assert not [text for text in texts if server.key in text], "the key is in a file or on the screen"


def test_a_parent_that_was_never_uploaded_is_named(server, tmp_path, capsys):
    ppo = tmp_path / "runs" / "tiny" / "ppo-s1"
    (ppo / "wandb").mkdir(parents=True)
    parents = [{"path": "runs/tiny/sft-s1", "id": "gone"}, {"path": "friend-reward", "id": None}]
    (ppo / "lineage.json").write_text(json.dumps({"id": "abc", "parents": parents}))
    (ppo / "summary.json").write_text("{}")
    assert sync.main("runs") == 1
    assert "no edge to runs/tiny/sft-s1 (model-gone)" in capsys.readouterr().out


def test_a_refused_key_marks_nothing_as_uploaded(server, tmp_path, monkeypatch, capfd):
    sft = finished(tmp_path / "runs" / "tiny" / "sft-s1", "sft")
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    assert sync.main("runs") == 1 and not server.runs
    out = "".join(capfd.readouterr())
    assert "not uploaded" in out and "f" * 40 not in out
    assert sync.offline_folders(sft)


def test_without_a_key_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(SystemExit, match=r"WANDB_API_KEY is not set.*\n.*WANDB_API_KEY=\.\.\. make sync"):
        sync.main(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    (tmp_path / "tiny").mkdir()
    with pytest.raises(SystemExit, match="needs WANDB_API_KEY"):
        dashboard.main("tiny", str(tmp_path))


# ------------------------------------------------------------------------------------------------ the dashboard


def panels(spec):
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def test_the_dashboard_is_written_offline_and_saved_online(server, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="make ppo EXP=tiny"):
        dashboard.main()
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    written = json.loads(dashboard.main().read_text())
    assert written["url"] is None and "saves it to wandb" in capsys.readouterr().out and not server.views
    shown = panels(written["spec"])
    curves = shown["Learning curves by arm, mean and range over seeds"]
    assert {tuple(panel["metrics"]) for panel in curves} == {(key,) for key in dashboard.CURVES}
    assert {panel["groupBy"] for panel in curves} == {"arm.value"} and {p["groupAgg"] for p in curves} == {"mean"}
    assert [p["xAxis"] for p in shown["Reward against KL"]] == ["eval/kl"] * 2 + ["summary:eval/kl"] * 2
    columns = [column["accessor"] for column in shown["Recipes"][0]["columns"]]
    assert "config:kl_coef.value" in columns and "summary:eval/gold" in columns
    (runs,) = written["spec"]["section"]["runSets"]
    assert [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == [("group", "tiny")]

    monkeypatch.setenv("WANDB_MODE", "online")
    url = json.loads(dashboard.main().read_text())["url"]
    assert url.startswith(f"{server.url}/{ENTITY}/icebreaker?nw=")
    assert json.loads(dashboard.main().read_text())["url"] == url
    (view,) = server.views.values()  # the second time changed the first one's
    assert view["displayName"] == "icebreaker: tiny"
    assert panels(json.loads(view["spec"])).keys() == shown.keys()


# ------------------------------------------------------------------------------------------------ the comparison


@pytest.fixture
def comparison(tmp_path):
    """A comparison of two scenes, SFT, best of 2 and two seeds of PPO, its runs and its figure."""
    runs = tmp_path / "runs" / "tiny"
    for name in ("sft-s1", "reward-s1", "ppo-s1", "ppo-s2"):
        (runs / name / "model").mkdir(parents=True)
        (runs / name / "model" / "model.safetensors").write_bytes(name.encode())
        (runs / name / "lineage.json").write_text(json.dumps({"id": f"id-{name}", "parents": []}))
    (runs / "compare").mkdir()
    Image.new("RGB", (4, 4)).save(runs / "compare" / "frontier.png")
    config = CompareConfig(
        runs_dir=str(runs), sft_model_path=str(runs / "sft-s1"), reward_model_path=str(runs / "reward-s1"),
        arms=["best-of-2", "ppo"], seeds=[1, 2], pool_size=4,
    )  # fmt: skip
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "scene": scene,
            "sample": k,
            "opener": f"{arm} {seed} {scene} {k}",
            "proxy": float(k),
        }
        for arm, seed, samples in (("sft", 0, 4), ("ppo", 1, 1), ("ppo", 2, 1))
        for scene in ("a", "b")
        for k in range(samples)
    ]
    gain = Estimate(0.5, 0.25, 0.75, 2)
    table = {
        "sft": {"words": Estimate(9.0, 8.0, 10.0, 1)},
        "best-of-2": {"proxy_gain": gain},
        "ppo": {"proxy_gain": gain},
    }
    scenes = [Scene("a", ("likes tea",), None), Scene("b", (), "Hi.")]
    return Comparison(config, scenes, rows, table, "# What these numbers say")


def test_a_comparison_is_a_run_of_its_own(comparison, tmp_path, capsys):
    run = track(comparison)
    assert run == tmp_path / "runs" / "tiny" / "compare-s1"
    parents = [parent["id"] for parent in json.loads((run / "lineage.json").read_text())["parents"]]
    assert parents == ["id-sft-s1", "id-reward-s1", "id-ppo-s1", "id-ppo-s2"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ppo"] == {"proxy_gain": 0.5} and summary["sft"] == {"words": 9.0}
    estimates = [json.loads(line) for line in (run / "estimates.jsonl").read_text().splitlines()]
    assert estimates[-1] == {
        "arm": "PPO", "measure": "proxy_gain", "value": 0.5, "low": 0.25, "high": 0.75, "seeds": 2,
    }  # fmt: skip
    beside = [json.loads(line) for line in (run / "side_by_side.jsonl").read_text().splitlines()]
    assert [(row["scene"], row["profile"], row["greeting"]) for row in beside] == [
        ("a", "likes tea", ""),
        ("b", "", "Hi."),
    ]
    assert [row["best-of-2"] for row in beside] == ["sft 0 a 1", "sft 0 b 1"]
    assert [row["ppo"] for row in beside] == ["ppo 1 a 0", "ppo 2 b 0"] and beside[0]["best-of-2 proxy"] == 1.0
    media = {path.name.split("_")[0] for path in run.glob("wandb/offline-run-*/files/media/*/*")}
    assert media == {"frontier", "estimates", "side"}

    assert track(comparison) == run and "no new run" in capsys.readouterr().out
    comparison.verdict += " something else"
    track(comparison)
    assert id_of(run) != id_of(run.with_name("compare-s1.old"))


# ------------------------------------------------------------------------------------------------ the local page


def test_the_board_reads_what_runs_logged(tmp_path):
    for name, text in (("ppo-s1", '{"step": 4, "eval/kl": 0.5}\n{"step": 8, "ev'), ("ppo-s1.old", '{"step": 1}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
        (tmp_path / name / "config.json").write_text('{"kl_coef": 0.1}')
    assert list(board.read(tmp_path)) == [("ppo-s1", {"kl_coef": 0.1}, [(4, {"eval/kl": 0.5})])]
