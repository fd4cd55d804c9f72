"""One side of a comparison: a process of its own, which loads what it needs and then works when told, a round at a time.

So neither side sees the other's memory, threads or global state (accelerate has much of that), and both are alive on the
same machine in the same minutes.
"""

import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from statistics import mean, stdev

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from models.linear import linear


class Side:
    """The parent's end. `work(turns, **settings)` runs in the new process; what it returns, `finish` gives."""

    def __init__(self, work: Callable, **settings):
        context = multiprocessing.get_context("spawn")
        self.name = work.__qualname__
        self.pipe, theirs = context.Pipe()
        self.first = None  # its first round
        self.process = context.Process(target=_run, args=(theirs, torch.get_num_threads(), work, settings), daemon=True)
        self.process.start()
        theirs.close()

    def round(self) -> dict:
        """One round's seconds, and whatever the work counted in it."""
        with contextlib.suppress(BrokenPipeError):  # `_receive` says it
            self.pipe.send("go")
        done = self._receive()
        self.first = self.first or done
        return done

    def finish(self) -> dict:
        """After the last round: what the work returned, and `peak_mb`, memory at its peak above what loading took."""
        result = self._receive()
        self.process.join()
        return result

    def _receive(self) -> dict:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"the process of {self.name} ended early: its error stands above") from None


class Turns:
    """The child's end: `loaded` once, then `begin` and `end` around each round."""

    def __init__(self, pipe: Connection):
        self.pipe, self.start, self.loaded_mb, self.peak_mb = pipe, 0.0, 0.0, 0.0

    def loaded(self) -> None:
        """From here on memory counts. Linux only: the peak so far, loading's own, is forgotten."""
        gc.collect()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self.loaded_mb = memory_mb("VmRSS")

    def begin(self) -> None:
        self.pipe.recv()
        self.start = time.perf_counter()

    def end(self, **counted) -> None:
        seconds = time.perf_counter() - self.start
        self.peak_mb = memory_mb("VmHWM") - self.loaded_mb
        self.pipe.send({"seconds": seconds, **counted})


class Rounds(TrainerCallback):
    """Gives a Trainer's training its turns: a round is `steps` steps, the first one with all that comes before it.

    `counted` is sent with each round and begins anew.
    """

    def __init__(self, turns: Turns, steps: int = 1):
        self.turns, self.steps, self.counted = turns, steps, Counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.turns.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.turns.end(**self.counted)
            self.counted.clear()
            if state.global_step < state.max_steps:
                self.turns.begin()


def paired(ours: Side, stock: Side, rounds: int, title: str, after: int = 0) -> list[tuple[dict, dict]]:
    """(ours, stock) of each round, one after the other, who goes first alternating. A first round is not counted: it
    warms both up. Nor are `after` rounds at the end. So the sides need to be ready for 1 + `rounds` + `after`."""
    pairs = []
    for i in tqdm(range(1 + rounds + after), desc=title, unit="pair of rounds"):
        first, second = (ours, stock) if i % 2 else (stock, ours)
        done = {first: first.round(), second: second.round()}
        pairs.append((done[ours], done[stock]))
    return pairs[1 : 1 + rounds]


def spread(values: list[float]) -> float:
    """Standard deviation over rounds, 0 of a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def matmul_peak(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """FLOP/s of a matrix product on this machine, the best of ten, by torch's own way or ours (models/linear.py)."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(timed(partial(way, a, b)) for way in (torch.mm, linear) for _ in range(10))


def timed(work: Callable) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory_mb(key: str) -> float:
    """Of this process, in MB: VmRSS is memory now, VmHWM its peak. (getrusage's peak would be the parent's too.)"""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def rounded(figures: dict) -> dict:
    """Four significant digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}


def show(title: str, figures: dict) -> None:
    print(f"\n{title}")
    for key, value in figures.items():
        print(f"  {key:32} {value:>12}")


def averaged(rounds: list[dict], key: str = "seconds") -> float:
    return mean(done[key] for done in rounds)


def _run(pipe: Connection, threads: int, work: Callable, settings: dict) -> None:
    torch.set_num_threads(threads)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - trainers print their metrics; what matters is sent
    turns = Turns(pipe)
    result = work(turns, **settings)
    pipe.send({**result, "peak_mb": turns.peak_mb})
