"""Compares arms on held-out scenes: one table, two figures and a verdict, from rows that are kept.

    make compare         # python -m experiments.compare --config experiments/tiny/compare.yaml --seeds 1 2 3

In runs/<experiment>/compare/: rows.parquet and probes.parquet (what was written, and every measure of it), talks.parquet
(conversations with the simulated person, where there is one: make person), judge.json (where a judge is set), table.md,
table.csv, summary.md (README's table), frontier.png, seeds.png, verdict.md, goals.json, report.html. A second run computes
only the rows that are not there.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data.dialogue import INSTRUCTIONS
from data.scenes import Scene, load_scenes, scenes_of
from data.source import write_whole
from experiments.compare import figures
from experiments.compare.arms import ARMS, BEST_OF, MOOD, TITLES, TRAINED, Speaker, check_held_out, chosen, speakers
from experiments.compare.goals import Goal, goals, write_goals
from experiments.compare.judged import judged
from experiments.compare.openers import Asked, Measured
from experiments.compare.report import write_report
from experiments.compare.summary import write_summary
from experiments.compare.table import Table, tabulate, write_tables
from experiments.compare.talks import TALKING_BEST_OF, talked
from experiments.compare.track import track
from experiments.compare.verdict import verdict
from experiments.run import RunConfig, parse_config, weights_hash
from models.load import resolve
from models.scorer import DTYPES


@dataclass
class CompareConfig(RunConfig):
    """Which arms are compared on which scenes. Names are those of rl's recipes."""

    runs_dir: str = field(default="runs/tiny", metadata={"help": "where the arms' runs are: <arm>-s<seed>"})
    sft_model_path: str = field(default="runs/tiny/sft-s1", metadata={"help": "what all arms started from"})
    reward_model_path: str = field(default="runs/tiny/reward-s1", metadata={"help": "the proxy, which was optimised"})
    gold_model_path: str | None = field(
        default=None, metadata={"help": "a run, path or shipped name; left out where it is not there"}
    )
    person_model_path: str | None = field(
        default=None, metadata={"help": "the simulated person (make person); left out where it is not there"}
    )
    emotion_model_path: str = field(
        default="friend-reward",
        metadata={"help": "reads the person's emotions: a scorer whose head for them was trained"},
    )
    reward_dtype: str = field(default="float32", metadata={"help": f"of proxy and gold, one of {DTYPES}"})
    model_dtype: str = field(
        default="float32",
        metadata={"help": "of all who write, adapters merged; in bfloat16 they are the models that write"},
    )
    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": f"some of {', '.join(ARMS)}, best-of-n"}
    )
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "training seeds of PPO"})
    control_seeds: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "of the other trained arms; each costs a training of them all"}
    )
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
    talk_scenes: int = field(default=100, metadata={"help": "whose people the arms talk with"})
    talk_samples: int = field(default=1, metadata={"help": "talks a scene, of each arm and seed"})
    talk_turns: int = field(default=3, metadata={"help": "of each side"})
    person_temperature: float = 0.7
    judge_scenes: int = field(default=50, metadata={"help": "whose openers a judge model is shown, where one is set"})
    batch_size: int = 64
    resamples: int = field(default=4000, metadata={"help": "of the bootstrap"})
    seed: int = field(default=1, metadata={"help": "of sampling and bootstrap"})

    def __post_init__(self):
        super().__post_init__()
        self.arms = chosen(self.arms)
        if self.instruction not in INSTRUCTIONS:
            raise ValueError(f"instruction is {self.instruction!r}, not one of {sorted(INSTRUCTIONS)}")
        for name in ("seeds", "control_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} are {seeds}: give one or more different ones")
        if self.reward_dtype not in DTYPES:
            raise ValueError(f"reward_dtype is {self.reward_dtype!r}, not one of {DTYPES}")
        positive = ("max_scenes", "temperature", "response_length", "samples", "batch_size", "resamples")
        for key in (*positive, "talk_scenes", "talk_samples", "talk_turns", "person_temperature", "judge_scenes"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}: it must be above 0")
        least = max([self.samples, *(BEST_OF[arm] for arm in self.arms if arm in BEST_OF)])
        if self.pool_size < least:
            raise ValueError(f"pool_size is {self.pool_size}: samples and the largest best-of-n need {least} or more")

    @property
    def training_seeds(self) -> str:
        """In words."""
        listed = [", ".join(map(str, seeds)) for seeds in (self.seeds, self.control_seeds)]
        return f"{listed[0]} of PPO, {listed[1]} of the other trained arms"


@dataclass
class Comparison:
    """All that a report or a log needs: the rows of every opener and talk, and what was made of them."""

    config: CompareConfig
    scenes: list[Scene]
    rows: list[dict]
    table: Table
    verdict: str
    goals: list[Goal] = field(default_factory=list)
    talks: list[dict] = field(default_factory=list)


def main(config: CompareConfig) -> Comparison:
    directory = Path(config.run_dir or Path(config.runs_dir) / "compare")
    scenes = held_out_scenes(config)
    who = speakers(
        config.arms,
        config.seeds,
        config.control_seeds,
        config.runs_dir,
        config.sft_model_path,
        config.reward_model_path,
    )
    check_held_out(scenes, who, config.sft_model_path, config.data_root)
    gold = there(config, "gold_model_path", "make gold", "gold is left out")
    person = there(config, "person_model_path", "make person", "conversations are left out")

    rows, probes = Measured(asked(config, gold), scenes, directory).rows(who)
    talks = talked(config, gold, scenes, who, directory) if gold and person else []
    opinions, said = judged(config, rows, scenes, directory)
    ids = [scene.id for scene in scenes]
    arms = [arm for arm in config.arms if talks or arm != MOOD]
    table = tabulate(rows, probes, arms, ids, config.samples, config.resamples, config.seed, talks, opinions)

    notes = [*about(config, scenes, who, gold), about_talks(config, talks), said]
    write_tables(table, directory, notes)
    curves = figures.learning_curves(who)
    figures.frontier(table, curves, directory / "frontier.png")
    figures.learning(curves, directory / "seeds.png")
    fits = {score: figures.fits(table, curves, score) for score in ("proxy", "gold")}
    reached = goals(table, curves)
    write_goals(reached, directory / "goals.json")
    text = verdict(table, notes[0], fits, reached)
    write_whole(directory / "verdict.md", text)
    comparison = Comparison(config, scenes, rows, table, text, reached, talks)
    write_report(comparison, curves, directory, notes)
    print(write_summary(table, reached, directory, notes) + "\n" + text + f"\ndone: {directory}")
    return comparison


def held_out_scenes(config: CompareConfig) -> list[Scene]:
    if config.scenes_file:
        return load_scenes(config.scenes_file)[: config.max_scenes]
    return [
        s for source in config.scene_sources for s in scenes_of(source, "test", config.data_root, config.max_scenes)
    ]


def there(config: CompareConfig, key: str, make: str, without: str) -> str | None:
    """The model that a key names where its weights are on this machine, else None and a line on the screen."""
    path = getattr(config, key)
    try:
        if path is None or weights_hash(resolve(path)):
            return path
    except FileNotFoundError:
        pass
    print(f"{key} {path!r}: no such model here ({make}); {without}")
    return None


def asked(config: CompareConfig, gold: str | None) -> Asked:
    keys = [key for key in Asked.__dataclass_fields__ if key != "gold_model_path"]
    return Asked(gold_model_path=gold, **{key: getattr(config, key) for key in keys})


def about(config: CompareConfig, scenes: list[Scene], who: list[Speaker], gold: str | None) -> list[str]:
    """What stands below the table."""
    trained = sorted({s.arm for s in who if s.arm in TRAINED})
    seeds = f" Training seeds: {config.training_seeds}." if trained else ""
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


def about_talks(config: CompareConfig, talks: list[dict]) -> str:
    if not talks:
        return "Simulated person: none here (make person), or no gold model to read its replies; so no column of it."
    scenes = len({row["scene"] for row in talks})
    silent = [TITLES[arm] for arm in config.arms if arm in BEST_OF and arm not in TALKING_BEST_OF or arm == "human"]
    return (
        f"Simulated person: {config.person_model_path}, {scenes} scenes, talks a scene and seed: {config.talk_samples}, "
        f"turns of each side: {config.talk_turns}; gold tells engaged replies, {config.emotion_model_path} their emotions. "
        + (f"No talks: {', '.join(silent)}. " if silent else "")
        + "It is no person: it shows which arm keeps this one talking."
    )


if __name__ == "__main__":
    track(main(*parse_config(CompareConfig)))
