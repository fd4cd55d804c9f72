"""Prints what the friend learns from: rows in, kept, dropped by reason; the scenes; three examples as they are read.

python -m data --preset clean --sources sample,empathetic,daily
"""

import argparse
import sys

from data import friend
from data.dialogue import INSTRUCTIONS, SPLITS, Dialogue, messages
from data.friend import PRESETS, REASONS, Count, mixture
from data.scenes import SOURCES, Scene, scenes_of
from data.source import data_root


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        sources = args.sources.split(",") if args.sources else default_sources(args.preset, args.data_root)
        splits, counts = mixture(args.preset, tuple(sources), args.data_root)
        print(f"preset {args.preset}\n\n{count_table(counts)}\n\n{example_table(splits)}\n")
        if args.preset == "clean":  # the original recipe had neither scenes nor profiles
            scenes = {
                source: [scenes_of(source, s, args.data_root) for s in SPLITS]
                for source in sources
                if source in SOURCES
            }
            print(f"{scene_table(scenes)}\n")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"python -m data: {error}")
    for dialogue in splits["train"][:: len(splits["train"]) // 3 or 1][:3]:
        print(rendered(dialogue, INSTRUCTIONS["original" if args.preset == "original" else "friend"]), end="\n\n")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="clean", help="the filter's rules (data/friend.py)")
    parser.add_argument(
        "--sources",
        help=f"of {','.join(friend.SOURCES)}; default: {','.join(friend.MIXTURE)}, "
        "or the first two without --data_root and ICEBREAKER_DATA",
    )
    parser.add_argument("--data_root", help="directory of the corpora, laid out like the hub; else ICEBREAKER_DATA")
    return parser.parse_args(argv)


def default_sources(preset: str, root: str | None) -> list[str]:
    if preset == "original":
        return ["empathetic", "daily"]
    return list(friend.MIXTURE) if data_root(root) else ["sample", "openers"]


def count_table(counts: list[Count]) -> str:
    """rows = kept + the dropped; `examples` is what the kept give: two each where the source has no roles."""
    head = ["source", "split", "rows", "kept", *REASONS, "examples"]
    rows = [
        [c.source, c.split, c.rows_in, c.kept, *(c.dropped[reason] for reason in REASONS), c.examples] for c in counts
    ]
    meaning = (
        "rows = kept + dropped: labels (more utterances than labels), held out (repeats one of a later split), filter\n"
        "(situation or emotion not kept), short (under 2 turns), repeated (an earlier one of the split)"
    )
    return f"{table(head, rows)}\n{meaning}"


def example_table(splits: dict[str, list[Dialogue]]) -> str:
    """Examples of each split, the share that the friend opens, and the share with a profile."""
    rows = []
    for split, examples in splits.items():
        opens = sum(dialogue.turns[0].speaker == "friend" for dialogue in examples)
        profiles = sum(bool(dialogue.profile) for dialogue in examples)
        rows.append([split, len(examples), f"{opens / len(examples):.0%}", f"{profiles / len(examples):.0%}"])
    return table(["split", "examples", "friend opens", "with profile"], rows)


def scene_table(scenes: dict[str, list[list[Scene]]]) -> str:
    """Scenes of each source by split, and those among them that begin with a greeting."""
    rows = [
        [source, *(f"{len(found)} ({sum(scene.greeting is not None for scene in found)})" for found in by_split)]
        for source, by_split in scenes.items()
    ]
    return table(["scenes (greeted)", *SPLITS], rows)


def table(head: list[str], rows: list[list]) -> str:
    """Columns as wide as their widest cell; text left, the rest right."""
    cells = [head, *([f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    left = [all(cell[:1].isalpha() for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    )


def rendered(dialogue: Dialogue, instruction: str) -> str:
    """The dialogue as its chat messages, a line each: system, then person (user) and friend (assistant)."""
    names = {"system": "system", "user": "person", "assistant": "friend"}
    return f"[{dialogue.id}]\n" + "\n".join(
        f"{names[m['role']]}: {m['content']}" for m in messages(dialogue, instruction)
    )


if __name__ == "__main__":
    main()
