"""A person as the judge: blind pairs in the terminal, and the numbers that experiments/judge.py has of a model's verdicts.

    make judge-human RUN=runs/tiny/ppo-s1 PAIRS=40        # python -m experiments.judge_human --run runs/tiny/ppo-s1
    yes t | make judge-human RUN=runs/tiny/ppo-s1         # from a pipe

Keys: 1, 2, t (a tie), q (enough for now). Nothing on the screen says whose opener is whose. Which pairs, in which order and
which opener first is a function of the seed. A tenth of the pairs comes again at the end the other way round: their
agreement is the person's consistency. Verdicts are kept as they come, so that the same command goes on after a q, and the
numbers appear when all are given: seen on the way they would colour the rest. Another person takes another --cache_file.
"""

import contextlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from transformers import HfArgumentParser

from experiments.judge import Cache, Pair, about, pair_numbers, read_pairs, report, request_hash, same, verdict_row

KEYS = {"1": "1", "2": "2", "t": "tie"}


@dataclass
class HumanConfig:
    """Whose openers are judged; run, against and scenes_file as experiments.judge has them."""

    run: str = field(metadata={"help": "a run that ended with openers, or a file of openers (rl.generate)"})
    against: str | None = field(default=None, metadata={"help": "likewise; default: the run's own openers_sft.jsonl"})
    scenes_file: str | None = field(default=None, metadata={"help": "default: scenes_test.jsonl beside the openers"})
    pairs: int = field(default=50, metadata={"help": "how many, of different scenes; a tenth of them comes twice"})
    seed: int = 1
    output_file: str | None = field(default=None, metadata={"help": "default: judge-human.json beside the openers"})
    cache_file: str | None = field(default=None, metadata={"help": "default: judge-human-answers.jsonl beside them"})


def main(config: HumanConfig, key: Callable[[], str] | None = None) -> dict | None:
    """Shows pairs until all are judged or q; the numbers when all are, else None. `key` reads a key, "" at the end."""
    here, found = read_pairs(config.run, config.against, config.scenes_file, samples=1)
    pairs = chosen(found, config.pairs, config.seed)
    cache = Cache(config.cache_file or here / "judge-human-answers.jsonl")
    console = Console(soft_wrap=True, highlight=False)
    verdicts = ask(order(pairs, config.seed), cache, console, key or read_key)
    if verdicts is None:
        console.print(f"Enough for now. Kept in {cache.path}: the same command goes on from there.", markup=False)
        return None
    result = {"judge": "human", **pair_numbers(pairs, verdicts)}
    report(result, config.output_file or here / "judge-human.json")
    return result


def chosen(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """`most` pairs that differ, in an order drawn by the seed: a smaller number gives the first of a larger one's."""
    if most < 1:
        raise ValueError(f"pairs is {most}: it must be 1 or more")
    differing = [pair for pair in pairs if not same(pair)]
    if not differing:
        raise ValueError("the openers of both sides are the same: there is nothing to judge")
    random.Random(seed).shuffle(differing)
    return differing[:most]


def order(pairs: Sequence[Pair], seed: int) -> list[tuple[Pair, bool]]:
    """Each pair with whether the run's opener comes first; the first tenth again at the end, the other way round."""
    once = [(pair, random.Random(f"{seed} {pair.scene.id}").random() < 0.5) for pair in pairs]
    return once + [(pair, not run_first) for pair, run_first in once[: len(once) // 10]]


def ask(
    shown: Sequence[tuple[Pair, bool]], cache: Cache, console: Console, key: Callable[[], str]
) -> list[dict] | None:
    """Rows as of experiments.judge.compare; None after q, Ctrl-C or the end of the input."""
    rows = []
    for number, (pair, run_first) in enumerate(shown, start=1):
        first, second = pair.shown(run_first)
        question = request_hash({"person": about(pair.scene), "first": first, "second": second})
        if question not in cache:
            console.print(f"\n{number} of {len(shown)}", style="dim")
            console.print(about(pair.scene), markup=False)
            for name, text in (("1", first), ("2", second)):
                console.print(Panel(escape(text.strip() or "(nothing)"), title=name, title_align="left"))
            verdict = choice(console, key)
            if verdict is None:
                return None
            cache.add(question, verdict)
        rows.append(verdict_row(pair, run_first, cache[question]))
    return rows


def choice(console: Console, key: Callable[[], str]) -> str | None:
    """ "1", "2" or "tie"; None for q, Ctrl-C and the end of the input. Asks again at any other key."""
    while True:
        console.print("Which would they rather answer? 1, 2, t (tie), q (stop): ", markup=False, end="")
        try:
            pressed = key().lower()
        except KeyboardInterrupt:
            pressed = "q"
        console.print(pressed.strip(), markup=False)
        if pressed in KEYS:
            return KEYS[pressed]
        if pressed in ("q", ""):
            return None


def read_key() -> str:
    """A key as it is pressed; from a pipe, the first character of the next line. "" at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip()[:1] or line[:1]
    with contextlib.suppress(ImportError):  # without termios (Windows): a line
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
        try:
            tty.setcbreak(sys.stdin)
            return sys.stdin.read(1)
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return input().strip()[:1] or " "


if __name__ == "__main__":
    try:
        main(*HfArgumentParser(HumanConfig).parse_args_into_dataclasses())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
