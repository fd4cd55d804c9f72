"""Trains the embedded base model: a small causal LM of everyday dialogue that needs no hub.

    make base            # python -m sft.pretrain --config experiments/base/pretrain.yaml, then pretrain-everyday.yaml,
                         # pretrain-openers.yaml and, on what sft/distill.py has written, pretrain-taught.yaml

It starts warm: MiniLM's layers turned decoder (BertLMHeadModel with causal attention), and a cased byte-level BPE whose
embeddings start as the mean of MiniLM's WordPieces for the same text. Dialogues are packed into rows of `block_size`
tokens, each attending to itself alone and counting its positions from 0. The order of all rows is fixed by the seed
before the first step, so that a resumed run reads what an uninterrupted one would have read.

The schedule is warm-up, constant, then linear to 0 over the last `decay_fraction` (WSD; Hu et al. 2024, MiniCPM); the
weights of the corpora move from `weights_start` to `weights_end` on the way.
"""

import hashlib
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from data.corpora import LOADERS, without_leaks
from data.dialogue import INSTRUCTIONS, Dialogue, swap, system_text
from data.friend import mixture
from data.openers import openers_of
from data.profile import derive_profile, opener_readings
from experiments.run import RunConfig, finish_run, parse_config, start_run
from models.load import load_base, load_minilm, load_tokenizer, resolve
from sft.tokenizer import END, FRIEND, PERSON, SYSTEM, train_tokenizer

#: What a larger friend said (sft/distill.py), among the corpora of weights_start and weights_end.
TAUGHT = "taught"
#: Corpora of single openers: each is read after its person, and it alone is learnt.
OPENERS = (TAUGHT, "openers", "more_openers")


@dataclass
class PretrainConfig(RunConfig):
    """What the base is made of. Sizes in tokens unless said otherwise."""

    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    weights_start: dict[str, float] = field(
        default_factory=dict, metadata={"help": "corpus -> share of dialogues read"}
    )
    weights_end: dict[str, float] = field(default_factory=dict, metadata={"help": "the same, at the end"})
    init_from: str | None = field(default=None, metadata={"help": "go on from this base, instead of MiniLM"})
    vocab_size: int = 12_000
    num_layers: int = field(default=6, metadata={"help": "how many of MiniLM's six layers are kept"})
    openers_file: str | None = field(
        default=None,
        metadata={"help": "rows of sft/distill.py, read as the corpus `taught`; only the opener is learnt"},
    )
    openers_sha256: str | None = field(default=None, metadata={"help": "of openers_file; found when the run starts"})
    opener_share: float = field(
        default=0.0, metadata={"help": "share of dialogues read as if the friend had opened, where facts allow it"}
    )
    train_megabytes: float = field(default=60.0, metadata={"help": "text to read, in 1e6 bytes of utterances"})
    block_size: int = 256
    batch_size: int = field(default=16, metadata={"help": "rows of block_size per step"})
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon for the trunk's matrices"})
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    max_grad_norm: float = 1.0
    eval_steps: int = 500
    eval_dialogues: int = field(
        default=300, metadata={"help": "validation dialogues per corpus; all of them at the end"}
    )
    stop_after_s: float = field(
        default=0.0, metadata={"help": "stop cleanly after so many seconds (for comparing starts)"}
    )
    compile: bool = True
    seed: int = 1

    def __post_init__(self):
        super().__post_init__()
        corpora = {*LOADERS, *([TAUGHT] if self.openers_file else [])}
        for name in ("weights_start", "weights_end"):
            unknown = set(getattr(self, name)) - corpora
            if unknown == {TAUGHT}:
                raise ValueError(f"{name} names {TAUGHT!r}, which needs openers_file (sft/distill.py writes one)")
            if unknown or not getattr(self, name):
                raise ValueError(f"{name}: {sorted(unknown) or 'empty'}; the corpora are {sorted(corpora)}")
        if set(self.weights_start) != set(self.weights_end):
            raise ValueError("weights_start and weights_end must name the same corpora; write 0 for one left out")
        if self.openers_file and TAUGHT not in self.weights_start:
            raise ValueError(f"openers_file is given, but weights_start has no {TAUGHT!r}: nothing would be read of it")
        if not 0 <= self.opener_share <= 1:
            raise ValueError(f"opener_share is {self.opener_share}, not a share")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer is {self.optimizer!r}, not adamw or muon")


def main(config: PretrainConfig) -> None:
    parents = [resolve(config.init_from)] if config.init_from else []
    taught = list(openers_of(TAUGHT, config.openers_file)) if config.openers_file else []
    if config.openers_file:
        if not taught:
            raise ValueError(f"{config.openers_file} has no openers")
        config.openers_sha256 = hashlib.sha256(Path(config.openers_file).read_bytes()).hexdigest()
    run = start_run(config, stage="base", seed=config.seed, parents=parents)
    torch.manual_seed(config.seed)
    corpora = [name for name in config.weights_start if name != TAUGHT]
    train = {name: list(LOADERS[name]("train", config.data_root)) for name in corpora}
    held_out = {name: list(LOADERS[name]("validation", config.data_root)) for name in corpora}
    test = [dialogue for name in corpora for dialogue in LOADERS[name]("test", config.data_root)]
    test += [dialogue for dialogues in held_out.values() for dialogue in dialogues]
    train = without_leaks(train, test)
    if taught:
        train[TAUGHT] = taught
    if {"empathetic", "daily"} <= set(train):  # what the original recipe's validation loss was measured on
        held_out["original"] = mixture("original", ("empathetic", "daily"), config.data_root)[0]["validation"]

    tokenizer = make_tokenizer(train, config, run.dir / "model")
    model = load_base(config.init_from) if config.init_from else minilm_decoder(tokenizer, config.num_layers)
    rows, megabytes = packed_rows(train, tokenizer, config)
    optimizers = make_optimizers(model, config)
    step, total = resume(run.dir, model, optimizers), len(rows) // config.batch_size
    run.rewind(step)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {total} steps, {megabytes:.0f} MB of text"
    )

    loss_of = torch.compile(row_loss) if config.compile else row_loss
    started, tokens, deadline = time.time(), 0, config.stop_after_s or math.inf
    while step < total and time.time() - started < deadline:
        batch = rows[step * config.batch_size : (step + 1) * config.batch_size]
        scale = learning_rate_scale(step, total, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
        loss = loss_of(model, *as_tensors(batch))
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + config.batch_size * config.block_size
        run.check_finite(loss.item(), step)
        if step % 20 == 0 or step == total:
            speed = tokens / (time.time() - started)
            run.log(
                {
                    "loss": loss.item(),
                    "grad_norm": grad_norm.item(),
                    "lr_scale": scale,
                    "megabytes": megabytes * step / total,
                    "time/tokens_per_s": speed,
                    "time/seconds": time.time() - started,
                },
                step=step,
            )
        if step % config.eval_steps == 0 and step < total:
            run.log(evaluate(model, tokenizer, held_out, config.eval_dialogues), step=step)
            save(run.dir, model, optimizers, step)

    save(run.dir, model, optimizers, step)
    final = evaluate(model, tokenizer, held_out, None)
    run.log(final, step=step)
    model.to(torch.bfloat16).save_pretrained(run.dir / "model")
    finish_run(
        run, {**final, "steps": step, "megabytes": megabytes * step / total, "parameters": model.num_parameters()}
    )


# ------------------------------------------------------------------------------------------------ the start


def make_tokenizer(train: dict[str, list[Dialogue]], config: PretrainConfig, path: Path) -> PreTrainedTokenizerFast:
    """Trains the tokenizer, or loads the one of the base to go on from, or that an interrupted run saved."""
    if (path / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(path)
    if config.init_from:
        tokenizer = load_tokenizer(config.init_from)
        tokenizer.save_pretrained(path)
        return tokenizer
    texts = (turn.text for dialogues in train.values() for dialogue in dialogues for turn in dialogue.turns)
    tokenizer = train_tokenizer(texts, config.vocab_size, context=512)
    tokenizer.save_pretrained(path)
    return tokenizer


def minilm_decoder(tokenizer: PreTrainedTokenizerFast, num_layers: int) -> BertLMHeadModel:
    """MiniLM's first `num_layers` layers and its embeddings as a causal LM over another vocabulary.

    Each new token's embedding is the mean of the embeddings of the WordPieces that MiniLM reads in the token's text, so
    the trunk meets inputs it knows; a little noise tells "The" from "the".
    """
    minilm, wordpiece = load_minilm()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=minilm.config.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=minilm.config.num_attention_heads,
        intermediate_size=minilm.config.intermediate_size,
        max_position_embeddings=minilm.config.max_position_embeddings,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = BertLMHeadModel(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    state = {k: v for k, v in minilm.state_dict().items() if "word_embeddings" not in k and "pooler" not in k}
    model.bert.load_state_dict(
        {k: v for k, v in state.items() if not k.startswith("encoder.layer.") or int(k.split(".")[2]) < num_layers},
        strict=False,
    )
    old = minilm.embeddings.word_embeddings.weight.data
    noise = torch.randn(len(tokenizer), old.shape[1], generator=torch.Generator().manual_seed(0))
    std, special = old.std(), set(tokenizer.all_special_ids)
    new = old.mean(0) + std * noise
    vocab = wordpiece.get_vocab()
    for token_id in range(len(tokenizer)):
        text = tokenizer.decode([token_id])
        piece = text.strip().lower()
        if not piece or token_id in special:
            continue
        if not text.startswith(" ") and "##" + piece in vocab:
            ids = [vocab["##" + piece]]  # the inside of a word
        else:
            ids = wordpiece(piece, add_special_tokens=False)["input_ids"]
        if ids:
            new[token_id] = old[ids].mean(0) + 0.1 * std * noise[token_id]
    model.bert.embeddings.word_embeddings.weight.data.copy_(new)
    model.tie_weights()
    return model


# ------------------------------------------------------------------------------------------------ the text


def pieces(dialogue: Dialogue, rng: np.random.Generator, opener_share: float = 0.0) -> list[tuple[str, str]]:
    """(mark, text) of one reading of a dialogue: the sides change at random where the source has no roles; what the
    person is known by stands in front in half of the readings, always in the sample; the instruction, half as often.
    A share of the dialogues that have `opener_readings` is read as one of them, profile in front. Single openers have the
    profile always and the instruction in half."""
    single = dialogue.source in OPENERS
    as_written = single or dialogue.source == "sample"
    fixed = as_written or dialogue.source == "empathetic"
    if not fixed and rng.random() < 0.5:
        dialogue = swap(dialogue)
    openers = opener_readings(dialogue) if not as_written and rng.random() < opener_share else []
    if openers:
        dialogue = openers[rng.integers(len(openers))]
    profile = dialogue.profile or derive_profile(dialogue)
    if not as_written and not openers and rng.random() < 0.5:
        profile = ()
    instruction = INSTRUCTIONS["friend"] if rng.random() < (0.5 if single else 0.25) else ""
    system = system_text(instruction, profile)
    marks = {"friend": FRIEND, "person": PERSON}
    return ([(SYSTEM, system)] if system else []) + [(marks[turn.speaker], turn.text) for turn in dialogue.turns]


def encode(parts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids exactly as the chat template would give them."""
    return tokenizer("".join(mark + text + END for mark, text in parts), add_special_tokens=False)["input_ids"]


def packed_rows(
    train: dict[str, list[Dialogue]], tokenizer: PreTrainedTokenizerFast, config: PretrainConfig
) -> tuple[np.ndarray, float]:
    """All rows of the run in order: int32 [rows, 2, block_size], token ids and the dialogue's number within the row.

    Also returns the bytes of text in them, in 1e6. A dialogue longer than a row is cut into row-sized parts. Of a
    single opener nothing before it is learnt: the number is negative there.
    """
    rng = np.random.default_rng(config.seed)
    names = sorted(train)
    orders = {name: [] for name in names}
    chosen, size, budget = [], 0, config.train_megabytes * 1e6
    while size < budget:
        progress = size / budget
        p = np.array([(1 - progress) * config.weights_start[n] + progress * config.weights_end[n] for n in names])
        name = names[rng.choice(len(names), p=p / p.sum())]
        if not orders[name]:  # every dialogue of a corpus once before any comes again
            orders[name] = list(rng.permutation(len(train[name])))
        chosen.append((name, pieces(train[name][orders[name].pop()], rng, config.opener_share)))
        size += sum(len(text.encode()) for _, text in chosen[-1][1])
    texts = ["".join(mark + text + END for mark, text in parts) for _, parts in chosen]
    friend = tokenizer.convert_tokens_to_ids(FRIEND)
    rows, open_rows = [], []  # rows still open, a few: first fit keeps nearly every token in use
    for start in range(0, len(texts), 2048):
        encoded = tokenizer(texts[start : start + 2048], add_special_tokens=False)["input_ids"]
        for (name, _), ids in zip(chosen[start : start + 2048], encoded, strict=True):
            given = ids.index(friend) + 1 if name in OPENERS else 0  # read and not learnt
            for begin in range(0, len(ids), config.block_size):
                part = ids[begin : begin + config.block_size]
                fit = next((row for row in open_rows if len(row[0]) + len(part) <= config.block_size), None)
                if fit is None:
                    if len(open_rows) == 16:
                        rows.append(open_rows.pop(0))
                    open_rows.append(fit := ([], []))
                number, unlearnt = abs(fit[1][-1]) + 1 if fit[1] else 1, min(max(given - begin, 0), len(part))
                fit[1].extend([-number] * unlearnt + [number] * (len(part) - unlearnt))
                fit[0].extend(part)
    rows += open_rows
    if len(rows) < config.batch_size:
        raise ValueError(
            f"train_megabytes {config.train_megabytes} fill {len(rows)} rows, less than one batch of "
            f"{config.batch_size}: raise it"
        )
    packed = np.zeros((len(rows), 2, config.block_size), dtype=np.int32)  # id 0 is the pad, dialogue 0 is padding
    for i, (ids, numbers) in enumerate(rows):
        packed[i, 0, : len(ids)], packed[i, 1, : len(numbers)] = ids, numbers
    return packed, size / 1e6


def as_tensors(batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """input ids, positions, labels [B, T] and a boolean attention mask [B, 1, T, T]: causal, within a dialogue."""
    ids, number = torch.from_numpy(batch[:, 0]).long(), torch.from_numpy(batch[:, 1]).long()
    learnt, number = number > 0, number.abs()
    index = torch.arange(ids.shape[1])
    starts = torch.where(
        torch.cat([torch.ones_like(number[:, :1], dtype=torch.bool), number[:, 1:] != number[:, :-1]], 1), index, 0
    )
    positions = index - starts.cummax(1).values
    mask = (number[:, :, None] == number[:, None, :]) & (index[:, None] >= index[None, :])
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where((number[:, 1:] == number[:, :-1]) & learnt[:, 1:], ids[:, 1:], -100)
    return ids, positions, labels, mask[:, None]


# ------------------------------------------------------------------------------------------------ the steps


def row_loss(model, ids, positions, labels, mask) -> torch.Tensor:
    """Mean cross-entropy in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.bert(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
        logits = model.cls(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def make_optimizers(model: BertLMHeadModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon (Jordan 2024) for the trunk's matrices and AdamW for the rest."""
    matrices = [p for n, p in model.bert.encoder.named_parameters() if p.ndim == 2 and config.optimizer == "muon"]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    adamw = torch.optim.AdamW(
        rest, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    optimizers = [adamw]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = config.learning_rate
    return optimizers


def learning_rate_scale(step: int, total: int, config: PretrainConfig) -> float:
    """Warm-up, constant, linear decay to 0."""
    decay = max(1, int(total * config.decay_fraction))
    return min(1.0, (step + 1) / config.warmup_steps, (total - step) / decay)


@torch.no_grad()
def evaluate(model, tokenizer, held_out: dict[str, list[Dialogue]], most: int | None) -> dict[str, float]:
    """Bits per byte of utterance text on each corpus, and on EmpatheticDialogues + DailyDialog together.

    Every utterance token and end mark counts (speaker marks are given); the bytes are the utterances' own. Dialogues
    are read without system message, cut to the context.
    """
    marks = torch.tensor(tokenizer.convert_tokens_to_ids([PERSON, FRIEND, SYSTEM]))
    result, sums = {}, {}
    for corpus, dialogues in held_out.items():
        nats = size = 0.0
        chosen = sorted(dialogues[:most], key=lambda d: sum(len(t.text) for t in d.turns))
        for start in range(0, len(chosen), 16):
            encoded, texts = [], []
            for dialogue in chosen[start : start + 16]:
                parts = [(FRIEND if t.speaker == "friend" else PERSON, t.text) for t in dialogue.turns]
                ids = encode(parts, tokenizer)
                while len(ids) > model.config.max_position_embeddings:
                    parts = parts[:-1]
                    ids = encode(parts, tokenizer)
                encoded.append(ids)
                texts.append(sum(len(text.encode()) for _, text in parts))
            width = max(map(len, encoded))
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in encoded])
            keep = (ids[:, 1:] != tokenizer.pad_token_id) & ~torch.isin(ids[:, 1:], marks)
            mask = torch.ones(width, width, dtype=torch.bool).tril()[None, None].expand(len(ids), 1, -1, -1)
            labels = torch.cat([torch.where(keep, ids[:, 1:], -100), torch.full_like(ids[:, :1], -100)], 1)
            loss = row_loss(model, ids, torch.arange(width).expand_as(ids), labels, mask)
            nats += loss.item() * keep.sum().item()
            size += sum(texts)
        if size:
            result[f"eval/bits_per_byte/{corpus}"] = nats / math.log(2) / size
            sums[corpus] = (nats, size)
    both = [sums[c] for c in ("empathetic", "daily") if c in sums]
    if both:
        result["eval/bits_per_byte"] = sum(n for n, _ in both) / math.log(2) / sum(s for _, s in both)
    return result


def save(run_dir: Path, model, optimizers: list, step: int) -> None:
    """A checkpoint in one rename: weights as safetensors, optimizer state as tensors only."""
    new, final = run_dir / ".checkpoint.tmp", run_dir / "checkpoint"
    new.mkdir(exist_ok=True)
    tied = "cls.predictions.decoder."  # its weight and bias are the embeddings' and the head's own
    save_file({k: v for k, v in model.state_dict().items() if not k.startswith(tied)}, new / "model.safetensors")
    torch.save({"optimizers": [o.state_dict() for o in optimizers], "step": step}, new / "state.pt")
    old = run_dir / ".checkpoint.old"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a kill between the two lines below
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


def resume(run_dir: Path, model, optimizers: list) -> int:
    """Loads the checkpoint of an interrupted run; returns the step it stood at, 0 without one."""
    path = next((p for p in (run_dir / "checkpoint", run_dir / ".checkpoint.old") if p.exists()), None)
    if path is None:
        return 0
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    model.tie_weights()
    state = torch.load(path / "state.pt", weights_only=True)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


if __name__ == "__main__":
    main(*parse_config(PretrainConfig))
