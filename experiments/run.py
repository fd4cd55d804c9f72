"""A run: one directory and one wandb run, opened by `start_run` and closed by `finish_run`, nowhere else.

    runs/<experiment>/<recipe>-s<seed>/
        recipe.yaml      the recipe as it was            metrics.jsonl    one row per logged step
        config.json      every setting, resolved         checkpoint*/     what a resume needs
        lineage.json     parents by run id and sha256    model/           what the next stage loads
        code.diff        commit and uncommitted change   wandb/           offline unless WANDB_MODE=online
        summary.json     last, by rename: it means "done"

A run whose settings and parents are those of an unfinished directory goes on there. Anything else that is found in the
directory moves to <run_dir>.old, so that no result is mixed with another's and the last one is kept: an unfinished run
moves to <run_dir>.unfinished.old where a finished one lies in the former place.
"""

import atexit
import ctypes
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState

from data.source import write_whole

ROOT = Path(__file__).parent.parent
PROJECT = "icebreaker"


@dataclass
class RunConfig:
    """Fields that every stage has. A stage's settings are one or more dataclasses, this one's child first."""

    run_dir: str | None = field(default=None, metadata={"help": "default: runs/<experiment>/<recipe>-s<seed>"})

    def __post_init__(self):
        self.recipe = None  # the recipe's path, set by parse_config


def parse_config(*types: type) -> tuple:
    """Settings of a stage from `--config recipe.yaml` and `--key value`, unknown keys refused (trl's TrlParser).

    YAML gives 10.5 or true to an int field without a word: refused here, naming the key.
    """
    from trl import TrlParser

    argv = sys.argv[1:]
    configs = TrlParser(types).parse_args_and_config()
    configs[0].recipe = argv[argv.index("--config") + 1] if "--config" in argv else None
    for config in configs:
        for name, spec in type(config).__dataclass_fields__.items():
            value = getattr(config, name)
            if spec.type in (int, int | None) and isinstance(value, float | bool):
                raise ValueError(f"{name} is {value!r} but must be a whole number")
    return configs


class Run:
    """An open run. Only the first process of several writes; on the others every method does nothing."""

    def __init__(self, directory: Path, id: str, axis: str, wandb_run):
        self.dir, self.id, self.axis, self.wandb = directory, id, axis, wandb_run
        self.is_main = int(os.environ.get("RANK", 0)) == 0

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Appends a row to metrics.jsonl and to wandb, at `step` of the run's own x axis."""
        if not self.is_main:
            return
        row = {self.axis: step, **metrics}
        with open(self.dir / "metrics.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self.wandb.log(row)

    def rewind(self, step: int) -> None:
        """Drops the rows of metrics.jsonl after `step`: a resumed run writes them again."""
        path = self.dir / "metrics.jsonl"
        if self.is_main and path.exists():
            rows = [line for line in path.read_text().splitlines() if _row_step(line, self.axis) <= step]
            write_whole(path, "".join(line + "\n" for line in rows))

    def table(self, name: str, columns: list[str], rows: list[list]) -> None:
        """A table for wandb and, as rows of JSON, <run>/<name>.jsonl."""
        if not self.is_main:
            return
        import wandb

        write_whole(
            self.dir / f"{name}.jsonl",
            "".join(json.dumps(dict(zip(columns, r, strict=True)), ensure_ascii=False) + "\n" for r in rows),
        )
        self.wandb.log({name: wandb.Table(columns=columns, data=rows)})

    def check_finite(self, loss: float, step: int) -> None:
        """Raises FloatingPointError when a loss is NaN or infinite; the last checkpoint stays as it is."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} at step {step}; the last checkpoint in {self.dir} is from before it. Lower learning_rate."
            )


class StopsAtNan:
    """Mixed into a Trainer: a loss that is no number ends the run before the optimizer sees it. `run` is set afterwards."""

    run: Run

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.check_finite(loss.item(), self.state.global_step + 1)
        return loss


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the system at every step and faults them in again, which takes up to a fifth of a
    training's time on a CPU. From here on this process keeps them (mallopt(3)); other C libraries are left alone."""
    M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, -1
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)


def one_gpu_a_process(args, module: str) -> None:
    """Refuses what a Trainer does with several GPUs in one process: torch's DataParallel, which splits a batch where these
    stages look at the whole of it."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process: set CUDA_VISIBLE_DEVICES=0, or start one for each with "
            f"torchrun --nproc_per_node {args.n_gpu} -m {module}"
        )


def start_run(*configs, stage: str, seed: int, axis: str = "step", parents: list[str | Path] = ()) -> Run:
    """Opens the run of these settings. `parents` are the directories of the runs or models it starts from.

    Of several processes the first opens it, and the others wait until it stands.

    In wandb the experiment is the run's group, and its arm, which is the recipe's name (without one: the stage), the job
    type: grouped by both, as wandb's own page does, seeds are one line and arms are apart. wandb is offline unless
    WANDB_MODE=online, and flushes every second, so that a killed run loses no more than that. SIGTERM ends the process
    through SystemExit.
    """
    keep_freed_memory()
    first = configs[0]
    directory = run_directory(first, seed)
    lineage = [_parent(parent) for parent in parents]
    for parent in lineage:
        if parent["sha256"] is None and (Path(parent["path"]).is_dir() or parent["path"].startswith("runs/")):
            raise FileNotFoundError(f"{parent['path']} holds no weights: has that stage finished?")
    settings = {key: value for config in reversed(configs) for key, value in _plain(config).items()}
    fingerprint = hashlib.sha256(json.dumps([settings, lineage], sort_keys=True, default=str).encode()).hexdigest()
    main = int(os.environ.get("RANK", 0)) == 0

    if not main:
        PartialState().wait_for_everyone()  # the first process is making the directory
        return Run(directory, "", axis, None)
    old = _read_json(directory / "lineage.json")
    id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # a wandb sweep names its runs
    if old.get("fingerprint") == fingerprint and not (directory / "summary.json").exists():
        id = old["id"]
        print(f"{directory}: goes on where it was interrupted")
    else:
        _set_aside(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if first.recipe and not _same_text(first.recipe, directory / "recipe.yaml"):
        shutil.copy(first.recipe, directory / "recipe.yaml")
    write_whole(directory / "config.json", json.dumps(settings, indent=1, default=str) + "\n")
    commit, diff = _code()
    write_whole(directory / "code.diff", f"commit {commit}\n{diff}")
    write_whole(
        directory / "lineage.json",
        json.dumps({"id": id, "fingerprint": fingerprint, "commit": commit, "parents": lineage}, indent=1) + "\n",
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    PartialState().wait_for_everyone()
    return Run(directory, id, axis, _open_wandb(directory, id, axis, stage, seed, settings, lineage, first.recipe))


def finish_run(run: Run, summary: dict) -> None:
    """Closes wandb, then writes summary.json: from here on the run is done. The number of processes stands in it."""
    if not run.is_main:
        return
    summary = {"id": run.id, **summary, "processes": PartialState().num_processes}
    run.wandb.summary.update(summary)
    _log_model(run)
    url = run.wandb.url  # None offline
    run.wandb.finish()
    if url:
        print(f"wandb: {url}")
    write_whole(run.dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(f"done: {run.dir}")


def run_directory(config: RunConfig, seed: int) -> Path:
    """--run_dir, or the place that the recipe's path and the seed give."""
    if config.run_dir:
        return Path(config.run_dir)
    if not config.recipe:
        raise ValueError("give --config experiments/<experiment>/<recipe>.yaml or --run_dir")
    recipe = Path(config.recipe)
    return Path("runs") / recipe.resolve().parent.name / f"{recipe.stem}-s{seed}"


def settings_of(path: str | Path) -> dict:
    """The settings that a run was made with (config.json); none of a model that is no run."""
    is_run = (Path(path) / "lineage.json").exists()
    return json.loads((Path(path) / "config.json").read_text()) if is_run else {}


def last_checkpoint(directory: Path) -> Path | None:
    """The latest checkpoint that was written to its end (trainer_state.json is its last file), or None."""
    whole = [path.parent for path in directory.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def weights_hash(path: str | Path) -> str | None:
    """sha256 of the safetensors of a run or model directory; None for a hub id (its revision is not on disk)."""
    path = Path(path)
    files = sorted(path.glob("model/*.safetensors")) or sorted(path.glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def scorer_hash(path: str | Path) -> str | None:
    """sha256 of scorer.json in a run or model directory, which turns a reward's outputs into its score; None without."""
    files = [file for file in (Path(path) / "model" / "scorer.json", Path(path) / "scorer.json") if file.exists()]
    return hashlib.sha256(files[0].read_bytes()).hexdigest() if files else None


def git(*command: str) -> str:
    """What git says of this repository; nothing where it fails, or is not there."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


# ---------------------------------------------------------------------------------------------------------


def _open_wandb(
    directory: Path, id: str, axis: str, stage: str, seed: int, settings: dict, lineage: list, recipe: str | None
):
    import wandb

    mode = "online" if os.environ.get("WANDB_MODE") == "online" else "offline"
    os.environ.setdefault("WANDB_DATA_DIR", str((directory / "wandb").resolve()))  # artifacts, else in the home folder
    experiment, arm = directory.parent.name, Path(recipe).stem if recipe else stage
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(directory),
        id=id,
        name=f"{experiment}/{directory.name}",
        group=experiment,
        job_type=arm,
        tags=list(dict.fromkeys([arm, stage, f"seed-{seed}"])),
        config={**settings, "experiment": experiment, "stage": stage, "arm": arm, "seed": seed, "parents": lineage},
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(x_transaction_log_flush_interval=1, silent=True),
    )
    atexit.register(run.finish, exit_code=1)  # of a run that SIGTERM or an error ends: its rows are written before
    # wandb's own exit hook stops the process that writes them. After finish_run it does nothing.
    if mode == "offline" and (again := len(list(directory.glob("wandb/offline-run-*"))) - 1):
        run.log({}, step=again * 1_000_000)  # a run that goes on offline counts from 0: the server would drop its rows
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis)
    return run


def _log_model(run: Run) -> None:
    """The run's weights as its artifact model-<id>: where they lie and their hash, for wandb's lineage graph; the bytes
    stay here. What it was trained from is in lineage.json; `make sync` draws these edges, which wandb cannot offline."""
    import wandb

    if sha256 := weights_hash(run.dir / "model"):
        model = wandb.Artifact(f"model-{run.id}", type="model", metadata={"sha256": sha256, "run_dir": str(run.dir)})
        model.add_reference((run.dir / "model").resolve().as_uri())
        run.wandb.log_artifact(model)


def _plain(config) -> dict:
    """A config's fields as JSON values; trl's and transformers' know how to hide what they must."""
    values = config.to_dict() if hasattr(config, "to_dict") else asdict(config)
    return json.loads(json.dumps({k: v for k, v in values.items() if k != "run_dir"}, default=str))


def _set_aside(directory: Path) -> None:
    """Moves what is in the directory, but for the recipe, to <directory>.old, replacing what was there; what is not
    finished takes no finished run's place."""
    found = [p for p in directory.iterdir() if p.name != "recipe.yaml"] if directory.exists() else []
    if found:
        old = directory.with_name(directory.name + ".old")
        if (old / "summary.json").exists() and not (directory / "summary.json").exists():
            old = directory.with_name(directory.name + ".unfinished.old")
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for path in found:
            os.replace(path, old / path.name)


def _code() -> tuple[str, str]:
    return git("rev-parse", "HEAD").strip() or "unknown", git("diff", "HEAD", "--", ":!*.jsonl")


def _row_step(line: str, axis: str) -> float:
    try:
        return json.loads(line)[axis]
    except ValueError:
        return math.inf  # the half line of a kill


def _parent(name: str | Path) -> dict:
    """A parent as it stands in lineage.json: a run or model directory, a shipped model or, without hashes, a hub id."""
    path = Path(name) if Path(name).exists() else ROOT / "models" / "pretrained" / name
    return {
        "path": str(name),
        "sha256": weights_hash(path),
        "scorer_sha256": scorer_hash(path),
        "id": _read_json(path / "lineage.json").get("id"),
    }


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _same_text(a: str | Path, b: str | Path) -> bool:
    return Path(b).exists() and Path(a).read_text() == Path(b).read_text()
