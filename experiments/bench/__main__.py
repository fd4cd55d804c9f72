"""Benchmarks: what of ours costs, beside the stock way of doing the same, in one run on this machine's CPU.

    python -m experiments.bench reward     the scorer against transformers' pipeline             (about 5 minutes)
    python -m experiments.bench ppo        our PPO against trl's PPOTrainer: fp32, bf16, scenes  (about 15 minutes)
    python -m experiments.bench sft        our SFT against transformers' Trainer                 (about 10 minutes)
    python -m experiments.bench curves     our PPO's cost against model size, batch and length   (about 20 minutes)

Durations are of two cores with nothing else on them. Each prints its progress, tables and, last, one line of JSON with
the same figures. `--rounds 1` is quicker and has no spread; `--smallest` takes sizes at which no figure means anything,
to see that everything runs. `python -m experiments.bench ppo --help` says what is measured and how.
"""

import argparse
import json

from experiments.bench import curves, ppo, reward, sft

REWARD, FRIEND = "runs/tiny/reward-s1", "friend-sft"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("experiments.bench", description=__doc__, formatter_class=Raw)
    commands = parser.add_subparsers(required=True, metavar="{reward,ppo,sft,curves}")
    for module in (reward, ppo, sft, curves):
        name = module.__name__.split(".")[-1]
        command = commands.add_parser(name, description=module.__doc__, formatter_class=Raw)
        command.set_defaults(module=module)
        command.add_argument("--rounds", type=int, default=module.ROUNDS, help="measured ones (default: %(default)s)")
        command.add_argument("--smallest", action="store_true", help="smallest sizes: to see that it runs, no more")
        if module is sft:
            command.add_argument("--base", default="friend-base", help="shipped name or path (default: %(default)s)")
        else:
            command.add_argument("--scorer", default=REWARD, help="run, shipped name or path (default: %(default)s)")
        if module is ppo:
            command.add_argument("--friend", default=FRIEND, help="SFT adapter for `scenes` (default: %(default)s)")
        if module is curves:
            command.add_argument("--out", default="experiments/curves.png", help="the figure (default: %(default)s)")
    settings = vars(parser.parse_args(argv))
    if settings["rounds"] < 1:
        parser.error(f"--rounds is {settings['rounds']}: it must be 1 or more")
    module, smallest = settings.pop("module"), settings.pop("smallest")
    print(json.dumps(module.bench(**settings, **(module.SMALLEST if smallest else {}))))


class Raw(argparse.RawDescriptionHelpFormatter):
    """Docstrings as they were written."""


if __name__ == "__main__":
    main()
