"""An experiment's page in wandb, as code: a workspace of panels over its runs.

    make dashboard                                  # writes runs/<experiment>/dashboard.json
    WANDB_MODE=online WANDB_API_KEY=... make dashboard      # python -m experiments.dashboard [experiment]

It shows score and gold against KL, learning curves by arm (seeds averaged, their range as a band), recipe keys against what
came out in parallel coordinates, and tables of openers. Online it is saved to WANDB_ENTITY (default: the account's own) and
WANDB_PROJECT; dashboard.json remembers its address, and the next time that view is updated instead of a second one made.
Offline the file holds what would be saved, and nothing has to be imported later: the same command online saves it.
A sweep's trials are not on it: they are a group of their own, with wandb's page of the sweep.
"""

import json
import os
import sys
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from data.source import write_whole
from experiments.compare.figures import CURVES
from experiments.run import PROJECT

#: Keys of the recipes that change what comes out, and how their axis is drawn.
KEYS = {
    "kl_coef": True,
    "learning_rate": True,
    "num_mini_batches": False,
    "num_ppo_epochs": False,
    "total_episodes": False,
    "temperature": False,
    "beta": False,
}


def main(experiment: str = "tiny", runs_dir: str = "runs") -> Path:
    """Writes the experiment's dashboard.json, and with WANDB_MODE=online saves the workspace. Returns the file."""
    file = Path(runs_dir) / experiment / "dashboard.json"
    if not file.parent.is_dir():
        raise SystemExit(f"{file.parent} is not there: run something first, `make ppo EXP={experiment}`")
    online = os.environ.get("WANDB_MODE") == "online"
    if online and not os.environ.get("WANDB_API_KEY"):
        raise SystemExit(
            "WANDB_MODE=online needs WANDB_API_KEY in the environment; without both the page is only written"
        )
    url = json.loads(file.read_text())["url"] if file.exists() else None
    entity = os.environ.get("WANDB_ENTITY") or (wandb.Api().default_entity if online else "")
    page = workspace(experiment, entity, os.environ.get("WANDB_PROJECT", PROJECT))
    if online:
        url = save(page, url)
    spec = page._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)  # there is no public way
    write_whole(file, json.dumps({"name": page.name, "url": url, "spec": spec}, indent=1) + "\n")
    print(f"done: {url if online else f'{file}; WANDB_MODE=online make dashboard EXP={experiment} saves it to wandb'}")
    return file


def workspace(experiment: str, entity: str, project: str) -> ws.Workspace:
    """The page. Runs are those of the experiment's group, grouped by arm: a line is the mean over an arm's seeds."""
    by_arm = {"groupby": wr.Config("arm"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return ws.Workspace(
        name=f"icebreaker: {experiment}",
        entity=entity,
        project=project,
        sections=[
            ws.Section(
                name="Reward against KL",
                is_open=True,
                panels=[
                    wr.LinePlot(title=f"{CURVES[key]} against KL", x="eval/kl", y=[key], title_x="nats", **by_arm)
                    for key in ("eval/score", "eval/gold")
                ]
                + [
                    wr.ScatterPlot(
                        title=f"{CURVES[key]} against KL, where each run ended",
                        x=wr.SummaryMetric("eval/kl"),
                        y=wr.SummaryMetric(key),
                    )
                    for key in ("eval/score", "eval/gold")
                ],
            ),
            ws.Section(
                name="Learning curves by arm, mean and range over seeds",
                is_open=True,
                panels=[wr.LinePlot(title=title, x="step", y=[key], **by_arm) for key, title in CURVES.items()],
            ),
            ws.Section(
                name="Recipes",
                is_open=True,
                panels=[
                    wr.ParallelCoordinatesPlot(
                        title="Recipe keys and what came out",
                        columns=[wr.ParallelCoordinatesPlotColumn(wr.Config(key), log=log) for key, log in KEYS.items()]
                        + [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key), display_name=CURVES[key])
                           for key in ("eval/kl", "eval/gold", "eval/score")],
                        layout=wr.Layout(w=24, h=10),
                    )
                ],
            ),
            ws.Section(
                name="Openers",
                is_open=True,
                panels=[
                    wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=12))
                    for name in ("openers", "side_by_side", "estimates")
                ]
                + [wr.MediaBrowser(title="The comparison's figures", media_keys=["frontier", "seeds"], num_columns=1)],
            ),
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=f'Metric("group") == {experiment!r}',
            groupby=[ws.Config("arm")],
        ),
    )  # fmt: skip


def save(page: ws.Workspace, url: str | None) -> str:
    """Saves the page in place of the view at `url`, or as a new one; returns its address."""
    if url:
        view = ws.Workspace.from_url(url)
        view.name, view.sections, view.settings = page.name, page.sections, page.settings
        view.runset_settings = page.runset_settings
        page = view
    return page.save().url


if __name__ == "__main__":
    main(*sys.argv[1:])
