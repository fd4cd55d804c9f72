"""Uploads what was run offline to wandb, then draws the edges of its lineage graph.

    WANDB_API_KEY=... make sync          # python -m experiments.sync [runs]

Of every finished run below `runs` (summary.json is there; what was set aside, *.old, is not looked at) the folders
wandb/offline-run-* that wandb has not marked as synced are given to `wandb sync`. Each run's model came with it as the
artifact model-<run id>, a reference without its bytes. A run cannot say offline what it was trained from: here each one
is told to use the models of its parents, as lineage.json has them. Parents that are no runs, such as the models that ship,
stand in the run's config alone ("parents"). What is done is not done again: wandb leaves run-*.wandb.synced, this module
wandb/lineage.synced. Removing these files uploads anew, into another WANDB_ENTITY or WANDB_PROJECT for instance.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import wandb
from wandb.errors import CommError

from data.source import write_whole
from experiments.run import PROJECT

NO_KEY = (
    "WANDB_API_KEY is not set, and nothing can be uploaded without it. Give the key in the environment:\n"
    "    WANDB_API_KEY=... make sync\n"
    "and WANDB_BASE_URL for a server of your own. What was run offline stays in runs/*/*/wandb until then; "
    "`make leet` and `make board` show it here."
)


def main(root: str = "runs") -> int:
    """Returns the number of uploads and edges that failed."""
    if not os.environ.get("WANDB_API_KEY"):
        raise SystemExit(NO_KEY)
    runs = finished(Path(root))
    if failed := upload([folder for run in runs for folder in offline_folders(run)]):
        print("no edges are drawn before all is there; `make sync` again goes on")
        return failed
    api = wandb.Api()
    entity = os.environ.get("WANDB_ENTITY") or api.default_entity
    home = f"{entity}/{os.environ.get('WANDB_PROJECT', PROJECT)}"
    failed = sum(draw_edges(api, home, run) for run in runs if (run / "wandb").is_dir())
    print(
        f"{len(runs)} finished runs in {root} looked at; {failed or 'nothing'} failed; {home} at {api.settings['base_url']}"
    )
    return failed


def finished(root: Path) -> list[Path]:
    """The directories of finished runs; a line for each that is not, lest a half of it be marked as synced."""
    runs = [
        file.parent for file in sorted(root.rglob("lineage.json")) if not any(p.endswith(".old") for p in file.parts)
    ]
    for run in runs:
        if not (run / "summary.json").exists():
            print(f"{run}: not finished (no summary.json), left for later")
    return [run for run in runs if (run / "summary.json").exists()]


def offline_folders(run: Path) -> list[Path]:
    """wandb's folders of the run that are still to be uploaded; several where it was interrupted."""
    return [
        folder
        for folder in sorted(run.glob("wandb/offline-run-*"))
        if list(folder.glob("run-*.wandb")) and not list(folder.glob("run-*.wandb.synced"))
    ]


def upload(folders: list[Path]) -> int:
    """`wandb sync`, to where the run said or to WANDB_ENTITY and WANDB_PROJECT. Returns how many are not marked as synced
    afterwards: its exit status does not say."""
    if not folders:
        print("nothing to upload: all that was run offline has been")
        return 0
    there = {"-e": os.environ.get("WANDB_ENTITY"), "-p": os.environ.get("WANDB_PROJECT")}
    options = [word for option, value in there.items() if value for word in (option, value)]
    subprocess.run([sys.executable, "-m", "wandb", "sync", *options, *map(str, folders)])
    failed = [folder for folder in folders if not list(folder.glob("run-*.wandb.synced"))]
    for folder in failed:
        print(f"{folder}: not uploaded; what wandb said is above, and in {folder}/logs")
    return len(failed)


def draw_edges(api: wandb.Api, home: str, run: Path) -> int:
    """Tells the server that the run used its parents' models. Returns how many of those are not there."""
    lineage, marker = json.loads((run / "lineage.json").read_text()), run / "wandb" / "lineage.synced"
    parents = [parent for parent in lineage["parents"] if parent.get("id")]
    done = f"{home}/{lineage['id']}\n"
    if not parents or marker.exists() and marker.read_text() == done:
        return 0
    failed = 0
    for parent in parents:
        try:
            artifact = api.artifact(f"{home}/model-{parent['id']}:latest")
            api.run(f"{home}/{lineage['id']}").use_artifact(artifact)
            print(f"{run}: uses {artifact.name}, {parent['path']}")
        except (CommError, ValueError) as error:
            failed += 1
            print(f"{run}: no edge to {parent['path']} (model-{parent['id']}): {error}")
    if not failed:
        write_whole(marker, done)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
