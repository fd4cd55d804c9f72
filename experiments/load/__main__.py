"""The chat under load and faults: its own processes, loopback only, bounded in time.

    python -m experiments.load server      chat.server: time to first token, tokens/s, memory    (about 2 minutes)
    python -m experiments.load telegram    the bot on a fake Telegram: order, loss, restarts     (about 3 minutes)

Each prints a table and, last, one line of JSON with the same figures. `--smallest` takes sizes at which no figure means
anything, to see that everything runs. `python -m experiments.load server --help` says what is measured and how.
"""

import argparse
import json

from experiments.load import server, telegram


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("experiments.load", description=__doc__, formatter_class=Raw)
    commands = parser.add_subparsers(required=True, metavar="{server,telegram}")
    for module in (server, telegram):
        name = module.__name__.split(".")[-1]
        command = commands.add_parser(name, description=module.__doc__, formatter_class=Raw)
        command.set_defaults(module=module)
        command.add_argument("--run", default=module.RUN, help="run, shipped name or path (default: %(default)s)")
        command.add_argument("--smallest", action="store_true", help="smallest sizes: to see that it runs, no more")
        if module is telegram:
            command.add_argument("--people", type=int, default=telegram.PEOPLE, help="at once (default: %(default)s)")
            command.add_argument("--seconds", type=float, default=telegram.SECONDS, help="(default: %(default)s)")
    settings = vars(parser.parse_args(argv))
    module, smallest = settings.pop("module"), settings.pop("smallest")
    print(json.dumps(module.bench(**settings | (module.SMALLEST if smallest else {}))))


class Raw(argparse.RawDescriptionHelpFormatter):
    """Docstrings as they were written."""


if __name__ == "__main__":
    main()
