"""A simulated person: how a talk goes on after the opener. Nothing is trained on what comes out.

    make person           # an adapter that answers as the sample's people do: python -m sft.train --config .../person.yaml
    python -m experiments.simulate --arms friend-sft friend-sft+mood friend-sft+best4 friend-ppo \
        --person_path runs/tiny/person-s1 --gold_model_path friend-gold --output_dir runs/tiny/simulated

An arm and the person speak in turns, k = 3 each, from a scene's profile and greeting on; both know the profile. Arms:
NAME (a run, a shipped model or a base), NAME+mood (the original's thresholds: the instruction follows the mood of what the
person said, models/mood.py), NAME+bestN (of N candidates for each turn the one that --proxy_model_path likes best).

Each of the person's replies is read twice:
    emotions     by a head for GoEmotions' labels, on the reply alone: friend-reward's, because friend-gold learnt from
                 dialogues and grades alone and its own head is as it began. Those that are good or bad moods
                 (models/mood.yaml) sum to a positive and a negative part; cumulative emotion is positive less negative
                 under mood.yaml's exponential mean over the replies so far, in [-1, 1].
    disengaged   by the gold judge's reactions to the reply as an utterance in its place, the last four turns as context
                 and no profile
                 (as the reward was trained to read a person's turn): who says "I have to go now." leaves nothing to say.
                 A reply is engaged where the other reactions together, 1 - p(disengaged), are above one half.
A simulated person is no person. It shows which arm keeps this one talking, under the same noise, and no more.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import HfArgumentParser

from data.dialogue import INSTRUCTIONS, Dialogue, Turn, messages
from data.emotions import LABELS
from data.scenes import Scene, load_scenes, scenes_of
from data.source import write_whole
from experiments.run import settings_of
from models.load import load_policy, load_scorer, load_tokenizer
from models.mood import Moods, load_moods, reader
from models.sampling import prompt_ids, say
from models.scorer import Scorer
from rl.metrics import interval

TURNS = 3  # of each side
ENGAGED = 0.5  # 1 - p(disengaged) above which a reply is engaged
CONTEXT_TURNS = 4  # that a scorer reads before an utterance, as it was trained
#: What is told of a talk: name in the rows -> in words.
MEASURES = {
    "cumulative_mean": "cumulative emotion, mean over replies",
    "cumulative_final": "cumulative emotion, after the last",
    "engaged": "share of engaged replies",
    "turns_until_disengaged": "replies before the first disengaged one",
}


@dataclass
class SimulateConfig:
    """Who talks with whom, and who reads it."""

    arms: list[str] = field(
        metadata={"help": "runs, shipped models or bases; NAME+mood, NAME+bestN; the first is the baseline"}
    )
    person_path: str = field(metadata={"help": "an SFT run with role: person (make person)"})
    gold_model_path: str = field(
        metadata={"help": "the scorer that reads the replies: none that an arm was trained on"}
    )
    output_dir: str = field(metadata={"help": "for <arm>.jsonl and summary.json"})
    proxy_model_path: str = field(default="friend-reward", metadata={"help": "chooses for +bestN"})
    emotion_model_path: str = field(
        default="friend-reward",
        metadata={"help": "reads emotions, for +mood too: a scorer whose head for them was trained"},
    )
    scenes_file: str | None = field(default=None, metadata={"help": "default: the sample's test scenes"})
    max_scenes: int | None = None
    samples: int = field(default=1, metadata={"help": "talks a scene"})
    turns: int = field(default=TURNS, metadata={"help": "of each side"})
    temperature: float = field(default=0.5, metadata={"help": "of every arm"})
    person_temperature: float = 0.7
    max_new_tokens: int = field(default=48, metadata={"help": "a turn"})
    batch_size: int = 64
    seed: int = 1

    def __post_init__(self):
        for name in ("samples", "turns", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")


@dataclass(frozen=True)
class Arm:
    """A model and what chooses its words: its own instruction or the mood's, its first candidate or the best."""

    name: str
    model: str
    use_mood: bool = False
    candidates: int = 1


def main(config: SimulateConfig) -> dict:
    """Simulates every arm, writes its rows and the summary, prints the table and a line of JSON."""
    arms = [arm_of(name) for name in config.arms]
    scenes = load_scenes(config.scenes_file) if config.scenes_file else scenes_of("sample", "test")
    scenes = scenes[: config.max_scenes]
    size = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
    person = load_person(config.person_path, config.person_temperature, **size)
    gold, emotions, proxy = load_scorer(config.gold_model_path), load_scorer(config.emotion_model_path), None
    check_readers(gold, emotions)
    if any(arm.candidates > 1 for arm in arms):
        proxy = load_scorer(config.proxy_model_path)
    rows = {}
    for arm in arms:
        friend = load_speaker(arm.model, config.temperature, **size)
        talks = converse(arm, friend, person, scenes, config.samples, config.turns, config.seed, proxy, emotions)
        rows[arm.name] = read(talks, gold, emotions)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[arm.name])
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        write_whole(Path(config.output_dir) / f"{arm.name.replace('/', '-')}.jsonl", "".join(lines))
    summary = {name: summarise(part) for name, part in rows.items()}
    for name in list(rows)[1:]:
        summary[name]["gain"] = gains(rows[name], rows[arms[0].name])
    write_whole(Path(config.output_dir) / "summary.json", json.dumps(summary, indent=1) + "\n")
    show(summary)
    print(json.dumps(summary))
    return summary


def arm_of(name: str) -> Arm:
    """An Arm by its name: NAME, NAME+mood, NAME+bestN."""
    model, *more = name.split("+")
    use_mood, candidates = False, 1
    for word in more:
        if word == "mood":
            use_mood = True
        elif found := re.fullmatch(r"best([1-9]\d*)", word):
            candidates = int(found[1])
        else:
            raise ValueError(f"arm {name!r}: +{word} is neither +mood nor +bestN, such as +best4")
    return Arm(name, model, use_mood, candidates)


# ------------------------------------------------------------------------------------------ who speaks


@dataclass
class Speaker:
    """A model on one side of many talks. `role` is the side, `instruction` its own."""

    model: torch.nn.Module
    tokenizer: object
    role: str
    instruction: str
    temperature: float
    max_new_tokens: int
    batch_size: int

    def next(self, talks: Sequence[Dialogue], instructions: Sequence[str], keys: Sequence[int], seed: int) -> list[str]:
        """The next turn of each talk, those with prompts of like length together. `keys` name the talks for the noise,
        which depends on no batch."""
        prompts = [self._prompt(talk, text) for talk, text in zip(talks, instructions, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        said = [""] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            texts, _ = say(
                self.model,
                self.tokenizer,
                [prompts[i] for i in part],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=seed,
                keys=[keys[i] for i in part],
            )
            for i, text in zip(part, texts, strict=True):
                said[i] = text
        return said

    def _prompt(self, talk: Dialogue, instruction: str) -> list[int]:
        """The chat so far, less its oldest turns where it would not fit."""
        chat = messages(talk, instruction, self.role)
        turns = len(talk.turns)
        head, chat = chat[: len(chat) - turns], chat[len(chat) - turns :]
        room = self.model.config.max_position_embeddings - self.max_new_tokens
        while len(ids := prompt_ids(self.tokenizer, head + chat)) > room and len(chat) > 1:
            chat = chat[1:]
        return ids


def load_speaker(
    name: str,
    temperature: float,
    role: str = "friend",
    max_new_tokens: int = 48,
    batch_size: int = 64,
    dtype: str = "float32",
) -> Speaker:
    """A run, shipped model or base; its adapter merged, for speed."""
    model = load_policy(name, dtype)
    model = model.merge_and_unload() if isinstance(model, PeftModel) else model
    model = model.cuda() if torch.cuda.is_available() else model
    instruction = INSTRUCTIONS[settings_of(name).get("instruction", "friend")]
    return Speaker(model.eval(), load_tokenizer(name), role, instruction, temperature, max_new_tokens, batch_size)


def load_person(path: str, temperature: float = 0.7, **settings) -> Speaker:
    """The simulated person. ValueError for a run that learnt the friend's turns."""
    role = settings_of(path).get("role", "person")
    if role != "person":
        raise ValueError(f"{path} learnt the {role}'s turns: person_path is an SFT run with role: person (make person)")
    return load_speaker(path, temperature, "person", **settings)


# ------------------------------------------------------------------------------------------ talks


def converse(
    arm: Arm,
    friend: Speaker,
    person: Speaker,
    scenes: Sequence[Scene],
    samples: int = 1,
    turns: int = TURNS,
    seed: int = 1,
    proxy: Scorer | None = None,
    emotions: Scorer | None = None,
    openers: dict[str, list[str]] | None = None,
) -> list[dict]:
    """Rows {"arm", "scene_id", "sample", "greeting", "friend", "person"[, "moods"]}: `turns` texts of each side.

    The noise is a function of the seed, the scene's place, the sample and the turn: the same for every arm. `openers`, a
    scene's id -> `samples` texts, replace the arm's first turns (those of a person, or the ones that were measured).
    """
    todo = [(scene, s) for scene in scenes for s in range(samples)]
    talks = [_talk(scene, s) for scene, s in todo]
    moods = load_moods(reader(emotions, LABELS)) if arm.use_mood else None
    rows = [
        {"arm": arm.name, "scene_id": scene.id, "sample": s, "greeting": scene.greeting, "friend": [], "person": []}
        for scene, s in todo
    ]
    keys = range(len(talks))
    for turn in tqdm(range(turns), desc=arm.name, unit="turn", disable=None):
        noise = 1000 * seed + 2 * turn
        instructions = [friend.instruction] * len(talks)
        if moods:
            instructions = [_by_mood(row, moods, friend.instruction) for row in rows]
        if openers and turn == 0:
            said = [openers[scene.id][s] for scene, s in todo]
        else:
            said = _choose(friend, talks, instructions, arm.candidates, noise, proxy)
        talks = _heard(talks, rows, "friend", said)
        answers = person.next(talks, [person.instruction] * len(talks), keys, noise + 1)
        talks = _heard(talks, rows, "person", answers)
    return rows


def _talk(scene: Scene, sample: int) -> Dialogue:
    turns = (Turn("person", scene.greeting),) if scene.greeting else ()
    return Dialogue(f"{scene.id}#{sample}", "simulated", "test", turns, scene.profile)


def _by_mood(row: dict, moods: Moods, instruction: str) -> str:
    """The instruction for the mood of all that the person said in this talk; notes the mood in the row."""
    mood = moods.of([*([row["greeting"]] if row["greeting"] else []), *row["person"]])["name"]
    row.setdefault("moods", []).append(mood)
    return moods.instruction(mood, instruction)


def _choose(
    friend: Speaker,
    talks: Sequence[Dialogue],
    instructions: Sequence[str],
    candidates: int,
    seed: int,
    proxy: Scorer | None,
) -> list[str]:
    """The friend's next turn of each talk: the candidate with the highest proxy score, where there are several."""
    many = [(i, c) for i in range(len(talks)) for c in range(candidates)]
    keys = [i + c * len(talks) for i, c in many]  # the first candidates are what one candidate would have been
    said = friend.next([talks[i] for i, _ in many], [instructions[i] for i, _ in many], keys, seed)
    if candidates == 1:
        return said
    scored = [
        {"context": _context(talks[i].turns), "response": text, "profile": list(talks[i].profile)}
        for (i, _), text in zip(many, said, strict=True)
    ]
    best_B = proxy.score(scored)[0].view(len(talks), candidates).argmax(1).tolist()
    return [said[i * candidates + best] for i, best in enumerate(best_B)]


def _heard(talks: Sequence[Dialogue], rows: list[dict], speaker: str, said: Sequence[str]) -> list[Dialogue]:
    """The talks with one turn more; also in the rows."""
    for row, text in zip(rows, said, strict=True):
        row[speaker].append(text)
    return [
        Dialogue(talk.id, talk.source, talk.split, (*talk.turns, Turn(speaker, text)), talk.profile)
        for talk, text in zip(talks, said, strict=True)
    ]


def _context(turns: Iterable[Turn]) -> list[str]:
    return [turn.text for turn in turns][-CONTEXT_TURNS:]


# ------------------------------------------------------------------------------------------ what the judge reads


def read(rows: Sequence[dict], gold: Scorer, emotions: Scorer) -> list[dict]:
    """The rows of `converse` with, a value a reply, "emotions" {label: probability}, "disengaged" and "cumulative", and
    MEASURES of the talk. A talk without a disengaged reply counts all its replies until one.

    Raises ValueError for a gold without reactions, and for a head for emotions that is not there or was never trained.
    """
    check_readers(gold, emotions)
    replies = [text for row in rows for text in row["person"]]
    seen = []
    for row in rows:
        said = [row["greeting"]] if row["greeting"] else []
        for friend, person in zip(row["friend"], row["person"], strict=True):
            seen.append({"context": [*said, friend][-CONTEXT_TURNS:], "response": person, "profile": []})
            said += [friend, person]
    disengaged_B = gold.score(seen)[1][:, gold.labels.index("disengaged")].tolist()
    emotions_BE = emotions.emotions([{"context": [], "response": text} for text in replies]).tolist()
    told = [dict(zip(LABELS, emotions_E, strict=True)) for emotions_E in emotions_BE]
    moods = load_moods(dict(zip(replies, told, strict=True)).__getitem__)
    found, start = [], 0
    for row in rows:
        part = slice(start, start := start + len(row["person"]))
        found.append(
            {**row, "emotions": told[part], "disengaged": disengaged_B[part]}
            | _measures(row, disengaged_B[part], moods)
        )
    return found


def check_readers(gold: Scorer, emotions: Scorer) -> None:
    """ValueError for a gold that cannot tell a disengaged reply, or emotions that nobody taught."""
    if "disengaged" not in gold.labels:
        raise ValueError(f"the scorer has the labels {gold.labels}, no disengaged: give one of preset reaction")
    if emotions.emotions([{"context": [], "response": "ok"}]).median() > 0.25:  # of 28 labels most are absent anywhere
        raise ValueError(
            "the model's head for emotions was never trained: give emotion_model_path, such as friend-reward"
        )


def _measures(row: dict, disengaged: list[float], moods: Moods) -> dict:
    so_far = [moods.of(row["person"][: i + 1]) for i in range(len(row["person"]))]
    cumulative = [mood["positive"] - mood["negative"] for mood in so_far]
    engaged = [1 - p > ENGAGED for p in disengaged]
    return {
        "cumulative": cumulative,
        "cumulative_mean": float(np.mean(cumulative)),
        "cumulative_final": cumulative[-1],
        "engaged": float(np.mean(engaged)),
        "turns_until_disengaged": engaged.index(False) if False in engaged else len(engaged),
    }


def summarise(rows: Sequence[dict]) -> dict:
    """{measure: {"mean", "low", "high"}}, with the 95 % interval by bootstrap over scenes; and "talks", "scenes"."""
    means = {name: _scene_means(rows, name) for name in MEASURES}
    told = {name: _interval(np.array(list(of.values()))) for name, of in means.items()}
    return {**told, "talks": len(rows), "scenes": len(means["engaged"])}


def gains(rows: Sequence[dict], baseline: Sequence[dict]) -> dict:
    """{measure: {"mean", "low", "high"}} of the rows less the baseline's, scene by scene. ValueError for other scenes."""
    found = {}
    for name in MEASURES:
        ours, theirs = _scene_means(rows, name), _scene_means(baseline, name)
        if ours.keys() != theirs.keys():
            raise ValueError(
                f"scene {min(ours.keys() ^ theirs.keys())!r} is on one side alone: simulate the same scenes"
            )
        found[name] = _interval(np.array([ours[id] - theirs[id] for id in ours]))
    return found


def _scene_means(rows: Sequence[dict], name: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["scene_id"], []).append(row[name])
    return {id: float(np.mean(part)) for id, part in values.items()}


def _interval(values_S: np.ndarray) -> dict:
    low, high = interval(values_S)
    return {"mean": float(values_S.mean()), "low": low, "high": high}


def show(summary: dict) -> None:
    """A row a measure, a column an arm; below each mean its interval, and that of the gain over the first arm."""
    table = Table(title="With a simulated person", show_lines=True)
    table.add_column("")
    for name in summary:
        table.add_column(name)

    def told(value: dict, sign: str = "") -> str:
        return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"

    for measure, words in MEASURES.items():
        cells = [
            told(arm[measure]) + (f"\ngain {told(arm['gain'][measure], '+')}" if "gain" in arm else "")
            for arm in summary.values()
        ]
        table.add_row(words, *cells)
    Console().print(table)


if __name__ == "__main__":
    try:
        main(*HfArgumentParser(SimulateConfig).parse_args_into_dataclasses())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
