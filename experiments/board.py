"""A local page over the runs, fed from their metrics.jsonl: trackio (huggingface/trackio), offline, on loopback alone.

    make board           # .venv/board/bin/python -m experiments.board [experiment [port]]

trackio lives in an environment of its own, because it asks for an older pillow and brings another event loop for uvicorn:
this module imports nothing but it and the standard library. The page's database, runs/<experiment>/board, is made anew at
each start; the runs are only read. Runs of one arm, which differ in the seed alone, are one group.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


def main(experiment: str = "tiny", port: str = "7860") -> None:
    """Fills the page with every run of runs/<experiment> that has logged anything, and serves it until it is interrupted."""
    root = Path("runs") / experiment
    runs = list(read(root))
    if not runs:
        raise SystemExit(f"no run in {root} has a metrics.jsonl: run something first, `make ppo EXP={experiment}`")
    shutil.rmtree(root / "board", ignore_errors=True)
    # Both are read when trackio is imported.
    os.environ |= {"TRACKIO_DIR": str((root / "board").resolve()), "HF_HUB_OFFLINE": "1"}
    import trackio

    for name, config, rows in runs:
        trackio.init(
            project=experiment, name=name, group=name.rsplit("-s", 1)[0], config=config, embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        for step, metrics in rows:
            trackio.log(metrics, step=step)
        trackio.finish()
    print(f"{len(runs)} runs of {root} at http://127.0.0.1:{port}; Ctrl-C ends it", flush=True)
    trackio.show(project=experiment, host="127.0.0.1", server_port=int(port), open_browser=False, share=False)


def read(root: Path) -> Iterator[tuple[str, dict, list[tuple[int, dict]]]]:
    """(name, settings, [(step, metrics)]) of every run that is not set aside (*.old). A last line that a kill left half
    is skipped."""
    for file in sorted(root.glob("*/metrics.jsonl")):
        if file.parent.suffix == ".old":
            continue
        rows = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            axis = next(iter(row))  # Run.log writes the axis first
            rows.append((int(row.pop(axis)), row))
        yield file.parent.name, json.loads((file.parent / "config.json").read_text(encoding="utf-8")), rows


if __name__ == "__main__":
    main(*sys.argv[1:])
