"""What our PPO costs as model, batch and responses grow: episodes a second and peak memory above loading.

Random Llamas of 1 M to 50 M parameters (8,192 tokens, prompts of 40 tokens) train as in the benchmark `ppo`, setting fp32,
each point in a process of its own: one update to warm up, then the measured ones. One of model size, batch and response
length changes at a time; the others stay at 8 layers of 256, 64 episodes and 32 tokens.

Draws a figure: episodes a second above, memory below, a column for each. The dashed line is what the FLOPs alone (the
formula of `ppo --help`) would give at the FLOP/s of the middle point; a curve that falls away from it has found another
limit. Prints, last, one line of JSON: {"size": [...], "batch": [...], "length": [...], "figure": path}, each point with
x (parameters, episodes or tokens), episodes_per_s, peak_mb_above_loading, gflop_per_episode and gflops. About twenty
minutes on two cores.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from experiments.bench.ppo import AFTER, Shape, full_length, random_friend, train_ours
from experiments.bench.side import Side, averaged, rounded

ROUNDS = 2
MIDDLE = Shape()
CURVES = {
    "size": [replace(MIDDLE, hidden=h, layers=n) for h, n in ((128, 2), (192, 6), (256, 8), (384, 10), (512, 14))],
    "batch": [replace(MIDDLE, batch=batch) for batch in (16, 32, 64, 128, 256)],
    "length": [replace(MIDDLE, response=tokens) for tokens in (8, 16, 32, 64, 128)],
}
TINY = Shape(hidden=32, layers=1, vocab=500, prompt=64, response=4, batch=4, epochs=1)
SMALLEST = {
    "curves": {
        "size": [TINY, replace(TINY, layers=2)],
        "batch": [TINY, replace(TINY, batch=8)],
        "length": [TINY, replace(TINY, response=8)],
    }
}
LABELS = {"size": "parameters", "batch": "episodes a batch", "length": "tokens a response"}


def bench(
    rounds: int = ROUNDS,
    scorer: str = "runs/tiny/reward-s1",
    out: str = "experiments/curves.png",
    curves: dict[str, list[Shape]] = CURVES,
) -> dict:
    """The points of all curves, drawn into `out`. A shape on several curves is measured once."""
    shapes = list({repr(shape): shape for curve in curves.values() for shape in curve}.values())
    points = {repr(shape): point(shape, rounds, scorer) for shape in tqdm(shapes, desc="curves", unit="point")}
    figures = {
        name: [{"x": position(name, shape, points[repr(shape)]), **points[repr(shape)]} for shape in curve]
        for name, curve in curves.items()
    }
    draw(figures, out)
    for name, curve in figures.items():
        print(f"\n{LABELS[name]:>18} {'episodes/s':>12} {'peak MB':>10} {'GFLOP/s':>10}")
        for p in curve:
            print(f"{p['x']:18} {p['episodes_per_s']:12} {p['peak_mb_above_loading']:10} {p['gflops']:10}")
    return {**figures, "figure": out}


def point(shape: Shape, rounds: int, scorer: str) -> dict:
    """The measured figures of one shape."""
    with tempfile.TemporaryDirectory() as directory:
        friend = random_friend(Path(directory), shape)
        side = Side(
            train_ours,
            rounds=rounds,
            friend=friend,
            scorer=scorer,
            prompt=shape.prompt,
            changed=full_length(shape),
            is_bf16=False,
        )
        seconds = averaged([side.round() for _ in range(1 + rounds + AFTER)][1 : 1 + rounds])
        done = side.finish()
    return rounded(
        {
            "parameters": done["parameters"],
            "episodes_per_s": done["episodes"] / seconds,
            "peak_mb_above_loading": done["peak_mb"],
            "gflop_per_episode": done["flops"] / 1e9,
            "gflops": done["flops"] * done["episodes"] / seconds / 1e9,
        }
    )


def position(curve: str, shape: Shape, point: dict) -> int:
    return {"size": point["parameters"], "batch": shape.batch, "length": shape.response}[curve]


def draw(figures: dict[str, list[dict]], out: str) -> None:
    """Two rows, speed and memory; a column a curve."""
    figure, axes = plt.subplots(2, len(figures), figsize=(10, 5.5), sharex="col", constrained_layout=True)
    for (name, curve), (speed, memory) in zip(figures.items(), axes.T, strict=True):
        x = [p["x"] for p in curve]
        middle = curve[len(curve) // 2]
        speed.loglog(x, [p["episodes_per_s"] for p in curve], "o-", label="measured")
        speed.loglog(
            x, [middle["gflops"] / p["gflop_per_episode"] for p in curve], "--", color="grey", label="FLOPs alone"
        )
        memory.loglog(x, [p["peak_mb_above_loading"] for p in curve], "o-")
        memory.set_xlabel(LABELS[name])
        memory.set_xticks(x, [f"{value / 1e6:.1f} M" if name == "size" else str(value) for value in x])
        memory.xaxis.set_minor_locator(NullLocator())
        for axis in (speed, memory):
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
    axes[0, 0].set_ylabel("episodes a second")
    axes[1, 0].set_ylabel("peak MB above loading")
    axes[0, 0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)
