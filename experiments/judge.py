"""A judge beside the reward: which of two runs' openers a large language model would rather answer, on the same scenes.

    export JUDGE_BASE_URL=http://127.0.0.1:8001/v1 JUDGE_MODEL=qwen3-32b     # and OPENAI_API_KEY, where it is asked for
    make judge RUN=runs/tiny/ppo-s1                       # python -m experiments.judge --run runs/tiny/ppo-s1
    python -m experiments.judge --run openers_a.jsonl --against openers_b.jsonl --scenes_file scenes.jsonl

Any endpoint that speaks OpenAI's chat completions, at temperature 0. Every pair is shown in both orders, since judges like
the first place (Zheng et al. 2023, "Judging LLM-as-a-judge", section 3.4): a pair counts 1 or 0 where both verdicts agree,
and 0.5 where they do not. Every opener is also graded by itself, 1 to 10 (their single-answer grading). An answer from
which no verdict can be read is counted and its pair left out. Answers are kept in a file as they come, by the hash of
what was asked: a second run asks for what is missing alone. The last line printed is the result as JSON.

The same numbers of a person's verdicts: experiments/judge_human.py.
"""

import hashlib
import json
import os
import random
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import HfArgumentParser

from data.scenes import Scene, load_scenes
from data.source import read_jsonl, write_whole
from rl.metrics import interval

RETRIED = (408, 409, 425, 429)  # and every 5xx
LONGEST_PAUSE = 300.0  # seconds, whatever Retry-After says
RESAMPLES = 1000
RIDGE = 1e-3  # of the length fit, nats a pair: keeps it finite where one side wins everything

PAIR = """Two people who are good at small talk each wrote a message to the same person. You know this person well: say \
which message they would rather answer.

{person}

Message 1:
{first}

Message 2:
{second}

What counts is whether it is about them, makes sense, is kind and honest, and is easy and pleasant to answer. Neither \
length nor order counts. Give your reason in one sentence. Then end with your verdict in double brackets: [[1]], [[2]], or \
[[tie]] if they would answer either as gladly."""

GRADE = """Grade a message that somebody who is good at small talk wrote to this person.

{person}

The message:
{opener}

What counts is whether it is about them, makes sense, is kind and honest, and is easy and pleasant to answer. Length does \
not count. Give your reason in one sentence. Then end with a grade from 1 (they would not answer) to 10 (they would answer \
at once, and gladly) in double brackets, such as [[7]]."""


SKIPPED = "skipped, no endpoint is set (JUDGE_BASE_URL and JUDGE_MODEL; OPENAI_API_KEY where it is needed)"


class JudgeError(RuntimeError):
    """The endpoint cannot be used, or stopped answering. What it said before is in the cache."""


@dataclass(frozen=True)
class Pair:
    """Two openers for one scene: the run's and the other's, `against` which it is judged."""

    scene: Scene
    sample: int
    run: str
    against: str

    @property
    def id(self) -> tuple[str, int]:
        return self.scene.id, self.sample

    def shown(self, run_first: bool) -> tuple[str, str]:
        return (self.run, self.against) if run_first else (self.against, self.run)


@dataclass
class JudgeConfig:
    """Whose openers are judged."""

    run: str = field(metadata={"help": "a run that ended with openers, or a file of openers (rl.generate)"})
    against: str | None = field(default=None, metadata={"help": "likewise; default: the run's own openers_sft.jsonl"})
    scenes_file: str | None = field(default=None, metadata={"help": "default: scenes_test.jsonl beside the openers"})
    samples: int = field(default=1, metadata={"help": "openers a scene that are judged, at most"})
    parallel: int = field(default=8, metadata={"help": "requests at a time"})
    timeout: float = field(default=60.0, metadata={"help": "seconds for an answer, then it is asked for again"})
    max_tokens: int = field(default=1024, metadata={"help": "of an answer, thoughts included"})
    output_file: str | None = field(default=None, metadata={"help": "default: judge.json beside the openers"})
    cache_file: str | None = field(default=None, metadata={"help": "default: judge-answers.jsonl beside the openers"})


def main(config: JudgeConfig) -> dict | None:
    """Judges, prints and writes. None, and a line that says so, where no endpoint is set."""
    here, pairs = read_pairs(config.run, config.against, config.scenes_file, config.samples)
    cache = config.cache_file or here / "judge-answers.jsonl"
    judge = judge_from_environment(
        cache, parallel=config.parallel, timeout=config.timeout, max_tokens=config.max_tokens
    )
    if judge is None:
        print(f"judge: {SKIPPED}")
        return None
    result = {"judge": judge.model, **pair_numbers(pairs, compare(judge, pairs)), **grade_numbers(grade(judge, pairs))}
    report(result, config.output_file or here / "judge.json")
    return result


# ------------------------------------------------------------------------------------------ openers in


def read_pairs(run: str, against: str | None, scenes_file: str | None, samples: int) -> tuple[Path, list[Pair]]:
    """The folder of the run's openers, and the pairs. Arguments as JudgeConfig has them."""
    ours = openers_file(run)
    theirs = openers_file(against) if against else ours.parent / "openers_sft.jsonl"
    if theirs.resolve() == ours.resolve():
        raise ValueError(f"{ours} would be judged against itself: name another run or file with --against")
    scenes = load_scenes(scenes_file or ours.parent / "scenes_test.jsonl")
    return ours.parent, pair_up(load_openers(ours), load_openers(theirs), scenes, samples)


def openers_file(run: str) -> Path:
    """A file as it is; of a run directory, the openers of what the run trained."""
    path = Path(run)
    if path.is_file():
        return path
    found = [file for file in sorted(path.glob("openers_*.jsonl")) if file.name != "openers_sft.jsonl"]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{run} holds {len(found)} files openers_<name>.jsonl of its own; a finished PPO, GRPO or DPO run has one. "
            "Name a file: of SFT, <a PPO run>/openers_sft.jsonl; of any other model, what rl.generate wrote"
        )
    return found[0]


def load_openers(path: str | Path) -> list[dict]:
    """Rows of a file of openers, checked: ValueError names file and line, or the scene and sample that is there twice."""

    def parse(row: dict) -> dict:
        for key, kind in (("scene_id", str), ("sample", int), ("opener", str)):
            if not isinstance(row.get(key), kind):
                raise ValueError(f"{key} is {row.get(key)!r}; a row is {{scene_id, sample, opener, ...}}")
        return row

    rows, seen = list(read_jsonl(path, parse=parse)), set()
    for row in rows:
        if (id := (row["scene_id"], row["sample"])) in seen:
            raise ValueError(f"{path}: scene {id[0]!r} has sample {id[1]} twice")
        seen.add(id)
    return rows


def pair_up(run: Iterable[dict], against: Iterable[dict], scenes: Sequence[Scene], samples: int = 1) -> list[Pair]:
    """Pairs of the openers of two sides, by scene and then by their order in it, `samples` a scene at most.

    ValueError where a scene has openers on one side alone, or is not among `scenes`: another set of scenes.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be 1 or more")
    of = {scene.id: scene for scene in scenes}
    sides: list[dict[str, list[str]]] = []
    for rows in (run, against):
        openers = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["sample"]):
            openers[row["scene_id"]].append(row["opener"])
        sides.append(openers)
    if lonely := sorted(set(sides[0]) ^ set(sides[1])):
        raise ValueError(f"scene {lonely[0]!r} has openers on one side alone: both must be of the same scenes")
    if unknown := sorted(set(sides[0]) - set(of)):
        raise ValueError(f"scene {unknown[0]!r} has openers but is not in the file of scenes")
    pairs = [
        Pair(scene, i, *texts)
        for scene in scenes
        if scene.id in sides[0]
        for i, texts in enumerate(list(zip(sides[0][scene.id], sides[1][scene.id], strict=False))[:samples])
    ]
    if not pairs:
        raise ValueError("there are no openers to judge")
    return pairs


# ------------------------------------------------------------------------------------------ the endpoint


@dataclass
class Judge:
    """An OpenAI-compatible endpoint and the answers that it gave. Its key is in no message, file or repr."""

    base_url: str = field(repr=False)
    model: str
    cache: "Cache"
    api_key: str = field(default="", repr=False)
    parallel: int = 8
    timeout: float = 60.0
    retries: int = 6
    pause: float = 1.0  # seconds before the first retry; doubled at each further one
    max_tokens: int = 1024

    def __post_init__(self):
        if self.parallel < 1 or not self.timeout > 0:
            raise ValueError(f"parallel is {self.parallel}, timeout {self.timeout}: both must be above 0")
        self.api_key = self.api_key.strip()
        if not re.fullmatch(r"[!-~]*", self.api_key):  # else the error of the HTTP client would quote it
            raise ValueError("OPENAI_API_KEY holds a character that no header may hold")
        try:
            is_address = httpx.URL(self.base_url).scheme in ("http", "https")
        except httpx.InvalidURL:
            is_address = False
        if not is_address:
            raise ValueError("JUDGE_BASE_URL must be an address such as http://127.0.0.1:8001/v1")
        self.base_url = self.base_url.rstrip("/")

    def answers(self, prompts: Sequence[str], what: str) -> list[str]:
        """The answer to each prompt, those in the cache without asking. `what` stands before the progress bar.

        Raises JudgeError at the first request that fails for good; what was answered until then is kept.
        """
        bodies = {self._key(body): body for body in map(self._body, prompts)}
        missing = [key for key in bodies if key not in self.cache]
        stop = threading.Event()
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        with (
            httpx.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(self.parallel) as pool,
            tqdm(total=len(missing), desc=what, unit="answer", disable=None) as bar,
        ):
            waiting = {pool.submit(self._ask, client, bodies[key], stop): key for key in missing}
            try:
                for done in as_completed(waiting):
                    self.cache.add(waiting[done], done.result())
                    bar.update()
            except BaseException:  # Ctrl-C too: what is on its way is waited for and kept, the rest is not asked
                stop.set()
                pool.shutdown(cancel_futures=True)
                for done, key in waiting.items():
                    if not done.cancelled() and done.exception() is None:
                        self.cache.add(key, done.result())
                raise
        return [self.cache[self._key(self._body(prompt))] for prompt in prompts]

    def _body(self, prompt: str) -> dict:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}

    def _key(self, body: dict) -> str:
        return request_hash({"url": self.base_url, **body})

    def _ask(self, client: httpx.Client, body: dict, stop: threading.Event) -> str:
        """One answer's text, asked for again after 429, 5xx, a timeout, a lost connection or a body of another form."""
        for attempt in range(self.retries + 1):
            wait, trouble = None, ""
            try:
                response = client.post(f"{self.base_url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                trouble = type(error).__name__  # its text may hold the address, and that a password
            else:
                if response.status_code == 200:
                    if (text := answer_text(response)) is not None:
                        return self._without_key(text)
                    trouble = "an answer that is not a chat completion"
                else:
                    trouble = f"HTTP {response.status_code}"
                    wait = retry_after(response.headers.get("Retry-After"))
                    if response.status_code not in RETRIED and response.status_code < 500:
                        said = self._without_key(" ".join(response.text.split())[:200])
                        raise JudgeError(f"the judge {self.model} refuses: {trouble} {said}")
            backoff = self.pause * 2**attempt * random.uniform(0.5, 1)
            if attempt == self.retries or stop.wait(min(LONGEST_PAUSE, backoff if wait is None else wait)):
                break
        raise JudgeError(
            f"the judge {self.model} stopped answering: {trouble}, {attempt + 1} times. The answers so far are kept in "
            f"{self.cache.path}: the same command goes on from there"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self.api_key, "[key]") if self.api_key else text


def judge_from_environment(cache_file: str | Path, **settings) -> Judge | None:
    """The judge of JUDGE_BASE_URL, JUDGE_MODEL and OPENAI_API_KEY; None where the first or the second is not set."""
    url, model = (os.environ.get(name, "").strip() for name in ("JUDGE_BASE_URL", "JUDGE_MODEL"))
    if not url or not model:
        return None
    return Judge(url, model, Cache(cache_file), os.environ.get("OPENAI_API_KEY", ""), **settings)


class Cache:
    """Answers by the hash of what was asked: a file of lines of JSON, each written as it comes. A half last line, from a
    kill, is passed over. Not for several threads at once."""

    def __init__(self, path: str | Path):
        self.path, self._answers = Path(path), {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        self._is_torn = bool(text) and not text.endswith("\n")

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> str:
        return self._answers[key]

    def add(self, key: str, answer: str) -> None:
        if key in self._answers:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as out:
            out.write("\n" * self._is_torn + json.dumps({"key": key, "answer": answer}) + "\n")
        self._is_torn, self._answers[key] = False, answer


def request_hash(request: dict) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def answer_text(response: httpx.Response) -> str | None:
    """The text of a chat completion, "" where it has none (all of it was thought); None where it is no such thing."""
    try:
        text = response.json()["choices"][0]["message"]["content"] or ""
        return text if isinstance(text, str) else None
    except (ValueError, LookupError, TypeError):
        return None


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None without one that can be read."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------ questions and verdicts


def compare(judge: Judge, pairs: Sequence[Pair]) -> list[dict]:
    """Rows {"scene_id", "sample", "run_first", "verdict"}, two a pair: "1", "2", "tie", or None where the answer holds no
    verdict. Openers of the same words are no question: they have no row, and count as a tie."""
    asked = [(pair, run_first) for pair in pairs if not same(pair) for run_first in (True, False)]
    prompts = []
    for pair, run_first in asked:
        first, second = pair.shown(run_first)
        prompts.append(PAIR.format(person=about(pair.scene), first=quoted(first), second=quoted(second)))
    verdicts = map(verdict_of, judge.answers(prompts, "verdicts"))
    return [verdict_row(pair, first, verdict) for (pair, first), verdict in zip(asked, verdicts, strict=True)]


def verdict_row(pair: Pair, run_first: bool, verdict: str | None) -> dict:
    return {"scene_id": pair.scene.id, "sample": pair.sample, "run_first": run_first, "verdict": verdict}


def grade(judge: Judge, pairs: Sequence[Pair]) -> list[dict]:
    """Rows {"scene_id", "sample", "run", "against"}, one a pair: the grades of its openers, each asked for alone; None
    where the answer holds no grade."""
    texts = [(pair.scene, text) for pair in pairs for text in (pair.run, pair.against)]
    prompts = [GRADE.format(person=about(scene), opener=quoted(text)) for scene, text in texts]
    grades = list(map(grade_of, judge.answers(prompts, "grades")))
    return [
        {"scene_id": pair.scene.id, "sample": pair.sample, "run": run, "against": against}
        for pair, run, against in zip(pairs, grades[::2], grades[1::2], strict=True)
    ]


def about(scene: Scene) -> str:
    """What a judge is told of the person."""
    lines = ["About them: " + "; ".join(fact.rstrip(".") for fact in scene.profile) + "."] if scene.profile else []
    lines.append(f'They said: "{scene.greeting}"' if scene.greeting else "They have said nothing yet.")
    return "\n".join(lines)


def quoted(text: str) -> str:
    return f'"{text.strip()}"' if text.strip() else "(nothing: an empty message)"


def same(pair: Pair) -> bool:
    return pair.run.split() == pair.against.split()


def verdict_of(answer: str) -> str | None:
    """ "1", "2" or "tie" of a judge's answer; None where it names none, or several."""
    return _marked(answer, r"1|2|tie")


def grade_of(answer: str) -> float | None:
    """The grade of an answer, 1 to 10; None where it names none, several, or one beyond the scale."""
    found = _marked(answer, r"\d+(?:\.\d+)?(?:\s*/\s*10)?")
    grade = float(found.split("/")[0]) if found else 0.0
    return grade if 1 <= grade <= 10 else None


def _marked(answer: str, pattern: str) -> str | None:
    """What fits the pattern in double brackets, or without them where it is the whole answer. Thoughts are no answer."""
    said = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).lower()
    found = re.findall(rf"\[\[\s*({pattern})\s*\]\]", said) or re.findall(rf"\A[\s\"'*]*({pattern})[\s\"'*.]*\Z", said)
    return found[0] if len(set(found)) == 1 else None


# ------------------------------------------------------------------------------------------ numbers


def pair_numbers(pairs: Sequence[Pair], verdicts: Iterable[dict]) -> dict:
    """What the verdicts say of the pairs (those with a verdict, and those of the same words, which are ties):

    win_rate           {"rate", "low", "high"}: mean over scenes of the pairs' preference for the run
    length_controlled  the same at equal length (`length_controlled`), None where that cannot be told
    unswapped          the win rate of the verdicts with the run's opener in the first place alone: what one order says
    consistency        share of the pairs with two verdicts whose verdicts agree
    first_slot_rate    share of the first place among the verdicts that prefer one: 0.5 without a bias
    invalid_rate       share of the answers without a verdict; pairs with one are left out
    words              mean words of the run's opener less the other's
    """
    of = {pair.id: pair for pair in pairs}
    said = by_pair(pairs, verdicts)
    rows = [row for part in said.values() for row in part]
    valid = {id: part for id, part in said.items() if is_valid(part)}
    twice = [part for part in valid.values() if len(part) == 2]
    decided = [row["verdict"] for row in rows if row["verdict"] in ("1", "2")]
    first = [preferred(row) for row in rows if row["verdict"] and row["run_first"]]
    ids = list(valid)
    wins_N = np.array([preference(valid[id]) for id in ids])
    words_N = np.array([len(of[id].run.split()) - len(of[id].against.split()) for id in ids], dtype=float)
    scenes_N = [id[0] for id in ids]
    return {
        "pairs": len(pairs),
        "judged": len(valid),
        "scenes": len(set(scenes_N)),
        "win_rate": _mean(wins_N, scenes_N),
        "length_controlled": length_controlled(wins_N, words_N, scenes_N) if len(ids) else None,
        "unswapped": _share(first),
        "consistency": _share([preferred(a) == preferred(b) for a, b in twice]),
        "first_slot_rate": _share([verdict == "1" for verdict in decided]),
        "invalid_rate": _share([row["verdict"] is None for row in rows]),
        "words": _share(words_N),
    }


def by_pair(pairs: Sequence[Pair], verdicts: Iterable[dict]) -> dict[tuple[str, int], list[dict]]:
    """The verdicts on each pair; none on those of the same words."""
    said: dict[tuple[str, int], list[dict]] = {pair.id: [] for pair in pairs if same(pair)}
    for row in verdicts:
        said.setdefault((row["scene_id"], row["sample"]), []).append(row)
    return said


def is_valid(verdicts: Sequence[dict]) -> bool:
    return all(row["verdict"] for row in verdicts)


def preferred(row: dict) -> float:
    """1 where the verdict is for the run's opener, 0 where it is for the other, 0.5 for a tie."""
    if row["verdict"] == "tie":
        return 0.5
    return float((row["verdict"] == "1") == row["run_first"])


def preference(verdicts: Sequence[dict]) -> float:
    """Of a pair: what its verdicts say where they agree, else 0.5; a tie where nothing was asked."""
    values = {preferred(row) for row in verdicts}
    return values.pop() if len(values) == 1 else 0.5


def length_controlled(wins_N: np.ndarray, words_N: np.ndarray, scenes_N: Sequence[str], seed: int = 0) -> dict | None:
    """The win rate at equal length {"rate", "low", "high"}: AlpacaEval 2's idea (Dubois et al. 2024, "Length-controlled
    AlpacaEval"), p(win) = sigmoid(a + b tanh(difference / its deviation)), read at difference 0.

    Their third term, an instruction's difficulty, needs many models and is left out. The interval is a percentile
    bootstrap over scenes. None where all pairs differ by the same number of words, not 0: length and the rest are one.
    """
    deviation = words_N.std()
    if deviation == 0 and words_N.any():
        return None
    length_N = np.tanh(words_N / deviation) if deviation else words_N
    names, scene_N = np.unique(scenes_N, return_inverse=True)
    share_N = 1 / np.bincount(scene_N)[scene_N]  # every scene weighs the same
    draws_RS = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights_RN = np.concatenate([np.ones((1, len(names))), draws_RS])[:, scene_N] * share_N
    rate_R = 1 / (1 + np.exp(-_logistic(wins_N, length_N, weights_RN)[:, 0]))
    low, high = np.percentile(rate_R[1:], [2.5, 97.5])
    return {"rate": float(rate_R[0]), "low": float(low), "high": float(high)}


def _logistic(wins_N: np.ndarray, length_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Intercepts and slopes [R, 2] of R weighted logistic fits with a little ridge, by Newton's method."""
    x_N2 = np.stack([np.ones_like(length_N), length_N], 1)
    ridge_R = RIDGE * weights_RN.sum(1)
    fit_R2 = np.zeros((len(weights_RN), 2))
    for _ in range(30):
        p_RN = 1 / (1 + np.exp(-fit_R2 @ x_N2.T))
        slope_R2 = (weights_RN * (wins_N - p_RN)) @ x_N2 - ridge_R[:, None] * fit_R2
        curve_R22 = np.einsum("rn,ni,nj->rij", weights_RN * p_RN * (1 - p_RN), x_N2, x_N2)
        curve_R22 += ridge_R[:, None, None] * np.eye(2)
        step_R2 = np.linalg.solve(curve_R22, slope_R2[..., None])[..., 0]
        fit_R2 += np.clip(step_R2, -1, 1)  # far from the end a whole step may overshoot
    return fit_R2


def grade_numbers(grades: Sequence[dict]) -> dict:
    """{"grade": {"run", "against", "difference", each with "rate", "low", "high"}, "grade_invalid_rate"}: mean over scenes,
    of the rows where both openers have a grade."""
    whole = [row for row in grades if row["run"] is not None and row["against"] is not None]
    run_N, against_N = (np.array([row[side] for row in whole]) for side in ("run", "against"))
    scenes_N = [row["scene_id"] for row in whole]
    sides = {"run": run_N, "against": against_N, "difference": run_N - against_N}
    return {
        "grade": {name: _mean(values_N, scenes_N) for name, values_N in sides.items()},
        "grade_invalid_rate": _share([row[side] is None for row in grades for side in ("run", "against")]),
    }


def _mean(values_N: np.ndarray, scenes_N: Sequence[str]) -> dict | None:
    """Mean over scenes of a scene's mean, with its 95 % interval by bootstrap over scenes; None of no values."""
    if len(values_N) == 0:
        return None
    of_scene = defaultdict(list)
    for value, scene in zip(values_N, scenes_N, strict=True):
        of_scene[scene].append(value)
    means_S = np.array([np.mean(values) for values in of_scene.values()])
    low, high = interval(means_S)
    return {"rate": float(means_S.mean()), "low": low, "high": high}


def _share(values: Sequence) -> float | None:
    return float(np.mean(values)) if len(values) else None


def report(result: dict, file: str | Path) -> None:
    """A table on the screen, the result as a file, and its line of JSON."""
    table = Table(title=f"Judge: {result['judge']}")
    table.add_column("of the run against the other")
    table.add_column("", justify="right")
    table.add_column("95 % interval")
    for name, value in {**result, **result.get("grade", {})}.items():
        if name in ("judge", "grade"):
            continue
        name = f"grade, {name}" if name in ("run", "against", "difference") else name.replace("_", " ")
        if isinstance(value, dict):
            table.add_row(name, f"{value['rate']:.3f}", f"[{value['low']:.3f}, {value['high']:.3f}]")
        else:
            table.add_row(
                name, "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value), ""
            )
    Console().print(table)
    write_whole(Path(file), json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main(*HfArgumentParser(JudgeConfig).parse_args_into_dataclasses())
    except (JudgeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the answers so far are kept: the same command goes on from there")
