"""What a friend had better not have said: negatives of true rows, by kind.

    swapped     the reply of another dialogue; for an opener, the opener of another profile
    nearest     the reply of one of the 50 contexts nearest to this one (frozen MiniLM): the same topic, another moment
    moment      another turn of the same dialogue, of the same speaker
    corrupted   words shuffled, cut off amid the sentence, or a word, a phrase or the whole said again and again
    unwelcome   a line of reward/unwelcome.jsonl (manipulation, flattery, intrusion, coldness, boilerplate, dullness) in
                the reply's place, or added to it; "How lovely!" and the like likewise, whatever was said, which
                policies say too often where a reward takes them for warmth (kind gushing)
    spoilt      shouted, flooded with emoji, stuffed with glad words, or turned into an interrogation
    cold, gushing, generic, confused
                what was written for this very moment and is wrong there in that way, by the hand that wrote the good line
                (data/contrasts.py): of source contrasts alone
    machine     what a small language model says in the reply's place: whole sentences, often without sense, in the very
                style of the openers that PPO starts from. A reward that never saw any takes them for people's

Each is labelled DISENGAGED with a probability of its own: a wrong moment may pass for a right one.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import contrasts
from data.dialogue import INSTRUCTIONS, scene_messages
from data.source import read_jsonl
from models.embed import embed
from models.load import load_policy, load_tokenizer
from models.sampling import prompt_ids, say
from reward.emotions import DISENGAGED

UNWELCOME = Path(__file__).parent / "unwelcome.jsonl"
#: kind -> probability that the other one has nothing to say.
KINDS = {
    "swapped": 1.0, "nearest": 0.9, "moment": 0.7, "corrupted": 0.95, "unwelcome": 0.95, "spoilt": 0.9, "machine": 0.8,
    "cold": 0.9, "gushing": 0.7, "generic": 0.8, "confused": 0.9,
}  # fmt: skip
#: A gushing line is in its place at times, and what stands beside it may still be answered.
GUSHING = 0.6
NEAREST = 50
GLAD = """happy love joy wonderful amazing great awesome beautiful excited smile fun sweet lovely fantastic best perfect
friend sunshine hug yay""".split()
#: Who writes the machine's lines, and how: the shipped friend, a little freer than PPO samples.
MACHINE, MACHINE_TEMPERATURE, MACHINE_TOKENS = "friend-sft", 0.7, 40
EMOJI = "😀 😂 🎉 ❤️ 🔥 ✨ 🥳 😍 🙌 💯 🌟 😎 💕 🤩 👏 🌈 🍀 😘 🚀 💖".split()


def add_negatives(rows: list[dict], ratios: dict[str, float], rng: np.random.Generator) -> list[dict]:
    """rows, and after them round(ratio x candidates) negatives of each kind in `ratios`."""
    made = []
    for kind, ratio in sorted(ratios.items()):
        made += _MAKERS[kind](rows, ratio, rng)
    return rows + made


def swapped_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """Openers are swapped for openers and replies for replies of the same source, so that neither the place nor the
    style gives anything away; rows with neither profile nor context fit anything and are left alone."""
    alike = _groups(rows, lambda row: (row["source"], bool(row["context"]), bool(row["profile"])))
    made = []
    for i in _draw(_placed(rows), ratio, rng):
        group = alike[rows[i]["source"], bool(rows[i]["context"]), bool(rows[i]["profile"])]
        others = (rows[group[j]] for j in rng.integers(len(group), size=100))
        other = next((o for o in others if _differs(o, rows[i])), None)
        if other:  # else, in a tiny split: no dialogue of this form among a hundred draws
            made.append(_spoil(rows[i], i, "swapped", other["response"]))
    return made


def nearest_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """As swapped, from the 50 nearest by what stands right before the reply: the last turn, or the profile."""
    made = []
    chosen = set(_draw(_placed(rows), min(ratio, 1.0), rng))
    groups = _groups(rows, lambda row: (row["source"], bool(row["context"])))
    for _, group in sorted(groups.items()):
        drawn = [i for i in group if i in chosen]
        if not drawn:
            continue
        embeddings_BH = embed([_before(rows[i]) for i in drawn])
        for start in range(0, len(drawn), 512):
            near_BN = (embeddings_BH[start : start + 512] @ embeddings_BH.T).topk(min(NEAREST + 1, len(drawn))).indices
            for i, near in zip(drawn[start : start + 512], near_BN.tolist(), strict=True):
                others = [rows[drawn[j]] for j in near if _differs(rows[drawn[j]], rows[i])]
                if others:
                    made.append(_spoil(rows[i], i, "nearest", others[rng.integers(len(others))]["response"]))
    return made


def moment_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """Another turn of the same dialogue, an even number of turns away, so that it is the same speaker's; of the
    same source, since openers and contrasts bear the ids of dialogues for whose moments they were written, and of
    another context, since a scene's openers are all of one moment."""
    by_dialogue = _groups(rows, lambda row: (row["source"], row["dialogue"]) if row["context"] else None)
    made = []
    for i in _draw([i for i in _placed(rows) if rows[i]["context"]], ratio, rng):
        group = by_dialogue[rows[i]["source"], rows[i]["dialogue"]]
        said = {rows[i]["response"], *rows[i]["context"]}
        others = [
            j
            for j in group
            if (j - i) % 2 == 0 and rows[j]["context"] != rows[i]["context"] and rows[j]["response"] not in said
        ]
        if others:
            made.append(_spoil(rows[i], i, "moment", rows[others[rng.integers(len(others))]]["response"]))
    return made


def corrupted_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """Responses of six words or more that no longer read as English."""
    made = []
    for i in _draw(_sentences(rows), ratio, rng):
        words = rows[i]["response"].split()
        how = rng.integers(3)
        if how == 0:
            words = rng.permutation(words).tolist()
        elif how == 1:
            words = words[: rng.integers(2, len(words) - 2)]
        elif rng.random() < 0.2:
            words = words * int(rng.integers(2, 4))
        else:
            start, length = rng.integers(len(words) - 3), rng.integers(1, 5)
            phrase = words[start : start + length]
            words = words[:start] + phrase * int(rng.integers(2, 6)) + words[start + length :]
        made.append(_spoil(rows[i], i, "corrupted", " ".join(words)))
    return made


def unwelcome_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """A line of the file in place of the response, or, for every second one that is not merely dull, beside it."""
    lines = list(read_jsonl(UNWELCOME))
    made = []
    for i in _draw(_true(rows), ratio, rng):
        line = lines[rng.integers(len(lines))]
        text, response = line["text"], rows[i]["response"]
        if line["kind"] not in ("generic", "cold") and rng.random() < 0.5:
            text = f"{text} {response}" if rng.random() < 0.5 else f"{response} {text}"
        spoilt = _spoil(rows[i], i, "unwelcome", text)
        made.append({**spoilt, "disengaged": GUSHING} if line["kind"] == "gushing" else spoilt)
    return made


def spoilt_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """The response in capitals with exclamation marks, with four or more emoji, with glad words that say nothing, or with
    three more questions."""
    questions = [row["response"] for row in rows if row["response"].endswith("?") and len(row["response"]) < 60]
    made = []
    for i in _draw(_true(rows), ratio, rng):
        response, how = rows[i]["response"], rng.integers(4 if questions else 3)
        if how == 0 and sum(c.islower() for c in response) > 8:
            response = response.upper().rstrip(".!?") + "!" * int(rng.integers(0, 6))
        elif how <= 1:
            words = response.split()
            for _ in range(int(rng.integers(4, 12))):
                at = len(words) if rng.random() < 0.6 else int(rng.integers(len(words) + 1))
                words.insert(at, EMOJI[rng.integers(len(EMOJI))])
            response = " ".join(words)
        elif how == 2:
            glad = " ".join(rng.choice(GLAD, size=rng.integers(3, 9)))
            glad = glad.upper() if rng.random() < 0.3 else glad
            glad += "!" * int(rng.integers(0, 5))
            response = [glad, f"{glad} {response}", f"{response} {glad}"][rng.integers(3)]
        else:
            more = [questions[j] for j in rng.integers(len(questions), size=3)]
            response = " ".join([response, *more])
        made.append(_spoil(rows[i], i, "spoilt", response))
    return made


def machine_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """What the shipped friend says instead, as far as its context reaches back."""
    chosen = _draw(_placed(rows), ratio, rng)
    tokenizer, model = load_tokenizer(MACHINE), load_policy(MACHINE).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    room = model.config.max_position_embeddings - MACHINE_TOKENS
    prompts = {i: prompt for i in sorted(set(chosen)) if len(prompt := _prompt(rows[i], tokenizer)) <= room}
    order = sorted(prompts, key=lambda i: len(prompts[i]))  # rows of like length share a batch
    seed, said = int(rng.integers(2**31)), {}
    for start in tqdm(range(0, len(order), 64), desc="machine's lines", unit="batch", disable=None):
        part = order[start : start + 64]
        texts, _ = say(
            model, tokenizer, [prompts[i] for i in part], max_new_tokens=MACHINE_TOKENS,
            temperature=MACHINE_TEMPERATURE, seed=seed, keys=part,
        )  # fmt: skip
        said.update(zip(part, texts, strict=True))
    return [
        _spoil(rows[i], i, "machine", said[i])
        for i in chosen
        if said.get(i, rows[i]["response"]) != rows[i]["response"]
    ]


def contrast_rows(kind: str, rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """The line of this kind of the same moment."""
    worse = contrasts.worse_lines()
    written = [i for i in _true(rows) if rows[i]["source"] == "contrasts"]
    return [_spoil(rows[i], i, kind, worse[rows[i]["dialogue"]][kind]) for i in _draw(written, ratio, rng)]


def _prompt(row: dict, tokenizer) -> list[int]:
    """Token ids that ask for the friend's turn after the row's context."""
    return prompt_ids(tokenizer, scene_messages(INSTRUCTIONS["friend"], row["profile"], row["context"]))


_MAKERS = {
    "swapped": swapped_rows, "nearest": nearest_rows, "moment": moment_rows, "corrupted": corrupted_rows,
    "unwelcome": unwelcome_rows, "spoilt": spoilt_rows, "machine": machine_rows,
    **{kind: partial(contrast_rows, kind) for kind in contrasts.KINDS},
}  # fmt: skip


def _spoil(row: dict, index: int, kind: str, response: str) -> dict:
    return {
        **row, "response": response, "label": DISENGAGED, "disengaged": KINDS[kind], "kind": kind, "pair": index
    }  # fmt: skip


def _true(rows: list[dict]) -> list[int]:
    return [i for i, row in enumerate(rows) if row["kind"] == "true"]


def _placed(rows: list[dict]) -> list[int]:
    return [i for i in _true(rows) if rows[i]["context"] or rows[i]["profile"]]


def _sentences(rows: list[dict]) -> list[int]:
    return [i for i in _true(rows) if len(rows[i]["response"].split()) >= 6]


def _before(row: dict) -> str:
    return row["context"][-1] if row["context"] else "; ".join(row["profile"])


def _groups(rows: list[dict], key) -> dict:
    groups = {}
    for i in _true(rows):
        groups.setdefault(key(rows[i]), []).append(i)
    return groups


def _draw(indices: list[int], ratio: float, rng: np.random.Generator) -> list[int]:
    """round(ratio x n) of the n indices; each once before any comes twice."""
    count = round(ratio * len(indices))
    rounds = [rng.permutation(indices) for _ in range(-(-count // max(len(indices), 1)))]
    return [int(i) for i in np.concatenate(rounds)[:count]] if rounds else []


def _differs(other: dict, row: dict) -> bool:
    return other["dialogue"] != row["dialogue"] and other["response"] != row["response"]
