"""Compares arms on held-out scenes: one table, two figures and a verdict, from rows that are kept.

    make compare         # python -m experiments.compare --config experiments/tiny/compare.yaml --seeds 1 2 3

In runs/<experiment>/compare/: rows.parquet and probes.parquet (what was written, and every measure of it), table.md,
table.csv, frontier.png, seeds.png, verdict.md. A second run computes only the rows that are not there.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data.dialogue import INSTRUCTIONS
from data.scenes import Scene, load_scenes, scenes_of
from data.source import write_whole
from experiments.compare import figures
from experiments.compare.arms import ARMS, BEST_OF, TRAINED, Speaker, check_held_out, chosen, speakers
from experiments.compare.openers import Asked, Measured
from experiments.compare.table import Table, tabulate, write_tables
from experiments.compare.verdict import verdict
from experiments.run import RunConfig, parse_config, weights_hash
from models.load import resolve


@dataclass
class CompareConfig(RunConfig):
    """Which arms are compared on which scenes. Names are those of rl's recipes."""

    runs_dir: str = field(default="runs/tiny", metadata={"help": "where the arms' runs are: <arm>-s<seed>"})
    sft_model_path: str = field(default="runs/tiny/sft-s1", metadata={"help": "what all arms started from"})
    reward_model_path: str = field(default="runs/tiny/reward-s1", metadata={"help": "the proxy, which was optimised"})
    gold_model_path: str | None = field(
        default=None, metadata={"help": "a run, path or shipped name; left out where it is not there"}
    )
    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": f"some of {', '.join(ARMS)}, best-of-n"}
    )
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "training seeds of every trained arm"})
    scene_sources: list[str] = field(default_factory=lambda: ["sample"], metadata={"help": "whose test scenes"})
    scenes_file: str | None = field(default=None, metadata={"help": "other scenes, as JSON lines, in their place"})
    max_scenes: int = 200
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    instruction: str = field(default="friend", metadata={"help": f"one of {sorted(INSTRUCTIONS)}"})
    temperature: float = field(default=0.4, metadata={"help": "of every opener and of the KL"})
    response_length: int = field(default=40, metadata={"help": "tokens of an opener at most"})
    missing_eos_penalty: float = 1.0
    samples: int = field(default=4, metadata={"help": "openers a scene, of each arm and seed"})
    pool_size: int = field(default=128, metadata={"help": "of the SFT policy, out of which best-of-n is estimated"})
    batch_size: int = 64
    resamples: int = field(default=4000, metadata={"help": "of the bootstrap"})
    seed: int = field(default=1, metadata={"help": "of sampling and bootstrap"})

    def __post_init__(self):
        super().__post_init__()
        self.arms = chosen(self.arms)
        if self.instruction not in INSTRUCTIONS:
            raise ValueError(f"instruction is {self.instruction!r}, not one of {sorted(INSTRUCTIONS)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: give one or more different ones")
        for key in ("max_scenes", "temperature", "response_length", "samples", "batch_size", "resamples"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}: it must be above 0")
        least = max([self.samples, *(BEST_OF[arm] for arm in self.arms if arm in BEST_OF)])
        if self.pool_size < least:
            raise ValueError(f"pool_size is {self.pool_size}: samples and the largest best-of-n need {least} or more")


@dataclass
class Comparison:
    """All that a report, a log or a judge needs: the rows of every opener, and what was made of them."""

    config: CompareConfig
    scenes: list[Scene]
    rows: list[dict]
    table: Table
    verdict: str


def main(config: CompareConfig) -> Comparison:
    directory = Path(config.run_dir or Path(config.runs_dir) / "compare")
    scenes = held_out_scenes(config)
    who = speakers(config.arms, config.seeds, config.runs_dir, config.sft_model_path, config.reward_model_path)
    check_held_out(scenes, who, config.sft_model_path, config.data_root)
    gold = there(config.gold_model_path)

    rows, probes = Measured(asked(config, gold), scenes, directory).rows(who)
    ids = [scene.id for scene in scenes]
    table = tabulate(rows, probes, config.arms, ids, config.samples, config.resamples, config.seed)

    notes = about(config, scenes, who, gold)
    write_tables(table, directory, notes)
    curves = figures.learning_curves(who)
    figures.frontier(table, curves, directory / "frontier.png")
    figures.learning(curves, directory / "seeds.png")
    fits = {score: figures.fits(table, curves, score) for score in ("proxy", "gold")}
    text = verdict(table, notes[0], fits)
    write_whole(directory / "verdict.md", text)
    print((directory / "table.md").read_text() + "\n" + text + f"\ndone: {directory}")
    return Comparison(config, scenes, rows, table, text)


def held_out_scenes(config: CompareConfig) -> list[Scene]:
    if config.scenes_file:
        return load_scenes(config.scenes_file)[: config.max_scenes]
    return [
        s for source in config.scene_sources for s in scenes_of(source, "test", config.data_root, config.max_scenes)
    ]


def there(gold: str | None) -> str | None:
    """The gold model where its weights are on this machine, else None and a line on the screen."""
    try:
        if gold is None or weights_hash(resolve(gold)):
            return gold
    except FileNotFoundError:
        pass
    print(f"gold_model_path {gold!r}: no such model here (make gold); gold is left out")
    return None


def asked(config: CompareConfig, gold: str | None) -> Asked:
    keys = [key for key in Asked.__dataclass_fields__ if key != "gold_model_path"]
    return Asked(gold_model_path=gold, **{key: getattr(config, key) for key in keys})


def about(config: CompareConfig, scenes: list[Scene], who: list[Speaker], gold: str | None) -> list[str]:
    """What stands below the table."""
    trained = sorted({s.arm for s in who if s.arm in TRAINED})
    seeds = f" Training seeds: {', '.join(map(str, config.seeds))}." if trained else ""
    return [
        f"{len(scenes)} held-out scenes, {config.samples} openers a scene and seed, {config.pool_size} of SFT's; sampling "
        f"and KL at temperature {config.temperature}.{seeds} Intervals: 95 %, by bootstrap over scenes and training "
        "seeds together.",
        f"Proxy: {config.reward_model_path}, less {config.missing_eos_penalty} where an opener does not end by itself. "
        + (f"Gold: {gold}, never optimised." if gold else "Gold: none here, so no column of it."),
        "Best of n: unbiased, from SFT's pool; its KL is the bound ln n - (n-1)/n. Sets (distinct, self-BLEU) are of one "
        "opener a scene. Equal length: gain less the words gained times what a word is worth among SFT's openers of a "
        "scene; matched: against SFT's openers of the same scene within one word.",
    ]


if __name__ == "__main__":
    main(*parse_config(CompareConfig))
