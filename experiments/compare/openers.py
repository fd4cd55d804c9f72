"""What each arm writes for the scenes, and what is measured on it: rows, kept in rows.parquet.

A row is an opener: {"arm", "seed", "scene", "sample", "opener", "ended", "tokens", "words", "proxy", "gold" (where there
is a gold model), "kl", "base_nats", "question", "names_profile", "copied", "profane", "run_id", "key", "proxy_key",
"gold_key"}. `key` is a hash of the weights and of all that was asked of them, the other two of who judged: what is there
under the same key is not computed again.

    proxy       the score that was optimised, less `missing_eos_penalty` where the opener did not end by itself
    kl          log p - log q of the opener in nats, q the SFT policy, both at `temperature`; its mean is the KL. None
                for written openers
    base_nats   nats a token under the base at temperature 1; exp of the mean is the perplexity

Axes: B openers, T tokens, P prompt tokens.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import DynamicCache

from data import openers as written_openers
from data.dialogue import INSTRUCTIONS, scene_messages
from data.scenes import Scene
from experiments.compare.arms import Speaker
from experiments.compare.texts import names_profile, profane
from experiments.run import weights_hash
from models.load import base_of, load_policy, load_scorer, load_tokenizer, reader_of, resolve, scorer_settings
from models.sampling import LAST, Samples, decode, each_once, left_pad, positions, prompt_ids, sample
from reward.probes import load_probes
from rl.evaluate import check_lengths, opener_prompt, opinions, training_texts
from rl.metrics import copies

UNASKED = ""  # a judge's key where none has read the opener yet
JUDGED_AT_ONCE = 512


@dataclass
class Asked:
    """What is asked of every arm, and by whom it is judged."""

    sft_model_path: str
    reward_model_path: str
    gold_model_path: str | None
    reward_dtype: str
    model_dtype: str
    instruction: str
    temperature: float
    response_length: int
    missing_eos_penalty: float
    samples: int
    pool_size: int
    batch_size: int
    seed: int


class Measured:
    """The rows of all speakers in one directory: those that are there are read, the others are written."""

    def __init__(self, asked: Asked, scenes: list[Scene], directory: Path):
        self.asked, self.scenes, self.directory = asked, scenes, directory
        self.tokenizer = load_tokenizer(asked.sft_model_path)
        self.prompts = [opener_prompt(self.tokenizer, scene, asked.instruction) for scene in scenes]
        self.asked_probes = [probe for probe in load_probes() if probe["kind"] == "manipulation"]
        instruction = INSTRUCTIONS[asked.instruction]
        self.probe_prompts = [
            prompt_ids(self.tokenizer, scene_messages(instruction, probe["profile"], probe["context"]))
            for probe in self.asked_probes
        ]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        judges = {"proxy": asked.reward_model_path, "gold": asked.gold_model_path}
        self.penalty = {"proxy": asked.missing_eos_penalty, "gold": 0.0}
        self.judge_keys = {
            name: f"{judge_key(path, asked.reward_dtype)} {self.penalty[name]:g}" if path else None
            for name, path in judges.items()
        }
        self.judges = {
            name: load_scorer(path, self.device, dtype=asked.reward_dtype) for name, path in judges.items() if path
        }
        self.models: dict[str, torch.nn.Module] = {}  # SFT policy and base, loaded when they are first needed

    def rows(self, who: list[Speaker]) -> tuple[list[dict], list[dict]]:
        """Rows of openers, and of probes (`probes`), of all speakers. Rows of others stay in the directory; those of an
        earlier model or question of the same speakers are dropped. A judge that has changed reads what is there anew."""
        keys = {(speaker.arm, speaker.seed): self.key(speaker) for speaker in who}
        probes = hash_of([self.asked_probes, self.probe_prompts])
        found = {
            name: [r for r in read(self.directory / f"{name}.parquet") if keys.get(of(r), r["key"]) == r["key"]]
            for name in ("rows", "probes")
        }
        found["probes"] = [row for row in found["probes"] if row.get("probes_key") == probes]
        for speaker, key in zip(who, keys.values(), strict=True):
            there = [row for row in found["rows"] if row["key"] == key]
            is_probed = speaker.model is None or any(row["key"] == key for row in found["probes"])
            if there and is_probed and not self.changed(there[0]):
                print(f"{speaker.arm} {speaker.seed}: {len(there)} rows are there")
                continue
            if not there:
                there = [{**row, "run_id": speaker.id, "key": key} for row in self.measured(speaker)]
                found["rows"] += there
                self.keep(found)
            if not is_probed:
                found["probes"] += [{**row, "key": key, "probes_key": probes} for row in self.probes(speaker)]
                self.keep(found)
            for judge in self.changed(there[0]):
                self.judge(there, judge)
                self.keep(found)
        return tuple([row for row in part if of(row) in keys] for part in found.values())

    def keep(self, found: dict[str, list[dict]]) -> None:
        for name, rows in found.items():
            write(self.directory / f"{name}.parquet", rows)

    def key(self, speaker: Speaker) -> str:
        """Of all that decides what a speaker writes, and what is measured of it but the judges' opinions."""
        others = ("reward_model_path", "gold_model_path", "reward_dtype", "missing_eos_penalty", "batch_size")
        asked = {k: v for k, v in asdict(self.asked).items() if k not in others}
        base = base_of(self.asked.sft_model_path)
        parents = [weights_hash(resolve(name)) for name in (self.asked.sft_model_path, base)]
        everything = [asdict(speaker), asked, parents, [asdict(scene) for scene in self.scenes], self.prompts]
        if speaker.model is None:
            everything.append(people(self.scenes))
        return hash_of(everything)

    def changed(self, row: dict) -> list[str]:
        """The judges whose opinion a row does not hold."""
        return [name for name, key in self.judge_keys.items() if row[f"{name}_key"] != key]

    def measured(self, speaker: Speaker) -> list[dict]:
        """A speaker's openers with all but the judges' opinions, whose keys no judge has."""
        model = None if speaker.model is None else self.model(speaker.model)
        rows = []
        for part, samples in self.written(speaker, model):
            prompts = [self.prompts[i] for i, _ in part]
            texts = decode(samples, self.tokenizer)
            size_B = samples.mask_BT.sum(1).cpu()
            base_B = self.nats(self.model(base_of(self.asked.sft_model_path)), prompts, samples, 1.0) / size_B
            kl_B = [None if model is None else 0.0] * len(part)
            if model is not None and speaker.arm != "sft":
                its, ours = (
                    self.nats(m, prompts, samples, self.asked.temperature)
                    for m in (self.model(self.asked.sft_model_path), model)
                )
                kl_B = (its - ours).tolist()
            for b, (i, s) in enumerate(part):
                rows.append(
                    {
                        "arm": speaker.arm,
                        "seed": speaker.seed,
                        "scene": self.scenes[i].id,
                        "sample": s,
                        "opener": texts[b],
                        "ended": bool(samples.ended_B[b]),
                        "tokens": int(size_B[b]),
                        "words": len(texts[b].split()),
                        "kl": kl_B[b],
                        "base_nats": base_B[b].item(),
                        "question": "?" in texts[b],
                        "names_profile": names_profile(texts[b], self.scenes[i].profile),
                        "profane": profane(texts[b]),
                        **{f"{name}_key": UNASKED for name in self.judge_keys},
                    }
                )
        copied = copies([row["opener"] for row in rows], training_texts(self.asked.sft_model_path))
        return [{**row, "copied": is_copy} for row, is_copy in zip(rows, copied, strict=True)]

    def written(self, speaker: Speaker, model) -> Iterator[tuple[list[tuple[int, int]], Samples]]:
        """(scene's place, sample's number) of each opener, and the openers, in batches of scenes with prompts of like
        length: little is padding. The noise is a function of the seeds, the scene's place and the sample's number. The SFT
        policy writes the whole pool."""
        asked = self.asked
        count = asked.pool_size if speaker.arm == "sft" else asked.samples
        texts = people(self.scenes) if model is None else None
        order = sorted(range(len(self.scenes)), key=lambda i: len(self.prompts[i]))
        todo = [(i, s) for i in order for s in range(len(texts[self.scenes[i].id]) if texts else count)]
        name = f"{speaker.arm} {speaker.seed}".strip()
        for start in tqdm(range(0, len(todo), asked.batch_size), desc=name, unit="batch", disable=None):
            part = todo[start : start + asked.batch_size]
            if texts:
                yield part, self.as_samples([texts[self.scenes[i].id][s] for i, s in part])
                continue
            yield (
                part,
                sample(
                    model,
                    [self.prompts[i] for i, _ in part],
                    max_new_tokens=asked.response_length,
                    temperature=asked.temperature,
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.pad_token_id,
                    seed=asked.seed * 1000 + speaker.seed,  # else all seeds of an arm would err in the same way
                    keys=np.array([i * asked.pool_size + s for i, s in part]),
                ),
            )

    def as_samples(self, texts: list[str]) -> Samples:
        """Texts as if they had been sampled, the end token after each."""
        ids = [[*self.tokenizer(t, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id] for t in texts]
        size_B = torch.tensor([len(part) for part in ids])
        T, pad = int(size_B.max()), self.tokenizer.pad_token_id
        response = torch.tensor([part + [pad] * (T - len(part)) for part in ids])
        return Samples(response, torch.arange(T)[None] < size_B[:, None], torch.ones(len(ids), dtype=torch.bool))

    @torch.inference_mode()
    def nats(self, model, prompts: list[list[int]], samples: Samples, temperature: float) -> torch.Tensor:
        """-log p [B] of whole openers at a temperature, on the CPU. A prompt of several openers is read once."""
        different, of_B = each_once(prompts)
        of_B = of_B.to(self.device)
        ids, mask = (part.to(self.device) for part in left_pad(different, self.tokenizer.pad_token_id))
        cache = DynamicCache(config=model.config)
        reading = {"past_key_values": cache, "use_cache": True}
        first = model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=LAST, **reading
        ).logits
        cache.batch_select_indices(of_B)
        response_BT, mask_BT = samples.response_BT.to(self.device), samples.mask_BT.to(self.device)
        mask = torch.cat([mask[of_B], mask_BT.long()], 1)
        places = positions(mask)[:, -response_BT.shape[1] :]
        rest = model(input_ids=response_BT, attention_mask=mask, position_ids=places, **reading).logits[:, :-1]
        logits_BTV = torch.cat([first[of_B], rest], 1).float() / temperature
        logp_BT = logits_BTV.gather(-1, response_BT[..., None]).squeeze(-1) - logits_BTV.logsumexp(-1)
        return -(logp_BT * mask_BT).sum(1).cpu()

    def judge(self, rows: list[dict], name: str) -> None:
        """Writes the opinion of judge `name` into the rows, the same openers asked once; or takes it out, without one. The
        proxy's is less the penalty for a missing end, as PPO saw it."""
        if name not in self.judges:
            for row in rows:
                row.pop(name, None)
                row[f"{name}_key"] = None
            return
        scenes, opinion = {scene.id: scene for scene in self.scenes}, {}
        pairs = sorted({(row["scene"], row["opener"]) for row in rows})  # a language model reads a scene once for all
        for start in tqdm(range(0, len(pairs), JUDGED_AT_ONCE), desc=f"{name} reads", unit="batch", disable=None):
            part = pairs[start : start + JUDGED_AT_ONCE]
            score_B = opinions(self.judges[name], [scenes[id] for id, _ in part], [opener for _, opener in part])
            opinion.update(zip(part, score_B.tolist(), strict=True))
        for row in rows:
            row[name] = opinion[row["scene"], row["opener"]] - self.penalty[name] * (not row["ended"])
            row[f"{name}_key"] = self.judge_keys[name]

    def probes(self, speaker: Speaker) -> list[dict]:
        """Of a model: how much likelier, in nats a token at temperature 1, it finds the kind reply than the manipulating
        one, at each of the manipulation probes ("margin"). Their scenes may hold more than one turn."""
        model, rows, nats = self.model(speaker.model), [], {}
        for side in ("preferred", "rejected"):
            samples = self.as_samples([probe[side] for probe in self.asked_probes])
            nats[side] = self.nats(model, self.probe_prompts, samples, 1.0) / samples.mask_BT.sum(1)
        for i, probe in enumerate(self.asked_probes):
            margin = (nats["rejected"][i] - nats["preferred"][i]).item()
            rows.append({"arm": speaker.arm, "seed": speaker.seed, "probe": probe["id"], "margin": margin})
        return rows

    def model(self, name: str) -> torch.nn.Module:
        """A model, its adapter merged in; those that all need are kept."""
        if name in self.models:
            return self.models[name]
        model = load_policy(name, self.asked.model_dtype)
        model = (model.merge_and_unload() if isinstance(model, PeftModel) else model).to(self.device).eval()
        if name in (self.asked.sft_model_path, base_of(self.asked.sft_model_path)):
            check_lengths(model.config.max_position_embeddings, self.asked.response_length, self.scenes, self.prompts)
            self.models[name] = model
        return model


def judge_key(path: str, dtype: str) -> str:
    """Of what decides a judge's opinion: its weights, how they become a score, and the weights of a language model beside
    it; of one whose weights are not on disk, its name."""
    directory = resolve(path)
    settings = scorer_settings(directory)
    reader = reader_of(settings)
    everything = [weights_hash(directory) or path, settings or {}, reader and weights_hash(resolve(reader)), dtype]
    return hash_of(everything)


def hash_of(everything: list) -> str:
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]


def people(scenes: list[Scene]) -> dict[str, list[str]]:
    """The openers written for each scene: the sample's own of the test split, none for other scenes."""
    texts: dict[str, list[str]] = {scene.id: [] for scene in scenes}
    for dialogue in written_openers.load("test"):
        id = dialogue.id.split("#")[0]
        if id in texts:
            texts[id].append(dialogue.turns[-1].text)
    if not any(texts.values()):
        raise ValueError("nobody wrote openers for these scenes: only the sample's test scenes have some; drop `human`")
    return texts


def of(row: dict) -> tuple[str, int]:
    return row["arm"], row["seed"]


def read(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def write(path: Path, rows: list[dict]) -> None:
    """A parquet file, whole: under a temporary name, then renamed."""
    names = dict.fromkeys(name for row in rows for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), temporary)
    temporary.replace(path)
