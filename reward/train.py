"""Trains the reward: an encoder that foretells how the other person takes an utterance.

    make reward          # python -m reward.train --config experiments/tiny/reward.yaml

Preset `reaction` reads (profile and context, utterance) and predicts the emotion of the next turn, or that there is
nothing to say to it; reward/pairs.py says what each source knows of that, reward/negatives.py what had better not be
said. Preset `text` predicts the emotion of the utterance itself, as the original recipe's reward did. models/scorer.py
turns either into one number.

LoRA on every linear layer and fresh heads, all weights (`use_peft: false`), or on from a trained adapter
(`model_name_or_path`). What people did with replies (`feedback_file`) trains beside the sources. The best checkpoint on
validation is kept, and one temperature is fitted there (Guo et al. 2017), and with it what a language model
(`likelihood_model`) has to say beside the classifier. What is left out: human ratings of engagement, which only judge a
reward and never train it.

Axes: B rows, P pairs of them, K members, R labels (reactions), E emotions, F features of the language model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from sklearn.metrics import f1_score
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data import contrasts, emotions
from data.dialogue import EMOTIONS, SPLITS
from data.order import ReadsInOrder
from experiments.run import (
    Run,
    RunConfig,
    StopsAtNan,
    finish_run,
    last_checkpoint,
    one_gpu_a_process,
    parse_config,
    start_run,
)
from models.likelihood import FEATURES
from models.load import (
    MINILM_HUB,
    encoder_path,
    load_classifier,
    load_likelihood,
    load_reward_adapter,
    load_scorer,
    resolve,
    resolve_base,
    use_plain_attention,
)
from models.lora import fuse, leave_casting_to_autocast
from models.pair import ARCHITECTURES
from models.scorer import AGGREGATES, PRESETS, Scorer, encode, with_evidence
from reward.emotions import DISENGAGED, labels_and_weights
from reward.feedback import DISLIKED
from reward.negatives import KINDS
from reward.pairs import FOLDS, SOURCES, load_rows

#: Binary cross-entropy is a mean over 28 mostly absent emotions, a tenth of the reactions' loss: this levels them.
EMOTION_COEF = 10.0
#: Kinds of negatives that differ from their true row in sense or tone, not in who wrote them: people's own words in
#: another's place, the same words spoilt, and one hand's lines for one moment.
COMPARED = (("swapped", "nearest", "moment"), ("corrupted", "spoilt"), contrasts.KINDS)
UNWEIGHED = f"likelihood_model has nothing to be weighed by: add negatives of {sum(COMPARED, ())} or source 'rated'"


@dataclass
class RewardConfig(RunConfig):
    """What the reward is made of; names are transformers' and peft's where they exist."""

    model_name_or_path: str = field(
        default=MINILM_HUB, metadata={"help": "the encoder (MiniLM needs no hub), or a trained reward to go on from"}
    )
    preset: str = field(default="reaction", metadata={"help": "reaction, or text: the original's"})
    sources: list[str] = field(default_factory=lambda: ["sample"], metadata={"help": f"some of {', '.join(SOURCES)}"})
    fold: str = field(default="all", metadata={"help": "which training dialogues: all, proxy, or gold (disjoint)"})
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    max_rows: dict[str, int] = field(default_factory=dict, metadata={"help": "source -> true training rows at most"})
    repeats: dict[str, int] = field(
        default_factory=dict, metadata={"help": "source -> how often each training row is read, with other negatives"}
    )
    negatives: dict[str, float] = field(
        default_factory=lambda: {"swapped": 0.5, "corrupted": 0.15, "unwelcome": 0.15, "spoilt": 0.1},
        metadata={"help": "kind of negative -> how many per true row"},
    )
    feedback_file: str | None = field(default=None, metadata={"help": "rows of what people did (data/feedback.py)"})
    feedback_repeats: int = field(default=4, metadata={"help": "each row of feedback counts as so many: they are few"})
    max_eval_samples: int = field(default=0, metadata={"help": "true rows of a source in validation, test; 0: all"})
    max_length: int = field(default=96, metadata={"help": "tokens of profile, context and response"})
    architecture: str = field(
        default="cross_encoder", metadata={"help": "cross_encoder, or bi_encoder: context and reply read apart"}
    )
    num_members: int = field(default=1, metadata={"help": "heads on the one encoder, each on a bootstrap of the rows"})
    aggregate: str = field(default="mean", metadata={"help": "score of several members: mean, pessimistic or min"})
    likelihood_model: str | None = field(
        default=None, metadata={"help": "a causal LM that speaks as the friend: what it thinks likely counts too"}
    )
    use_peft: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    encoder_dropout: float | None = field(
        default=None, metadata={"help": "default: the encoder's own; MiniLM's .1 takes a third of a step on a CPU"}
    )
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 32
    eval_steps: float = field(default=0.2, metadata={"help": "validate and save so often; below 1: a share of the run"})
    bf16: bool = False
    seed: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name, values in (
            ("preset", PRESETS),
            ("fold", FOLDS),
            ("aggregate", AGGREGATES),
            ("architecture", tuple(ARCHITECTURES)),
        ):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {values}")
        if not self.sources or set(self.sources) - set(SOURCES):
            raise ValueError(f"sources are {self.sources}: give one or more of {SOURCES}")
        for key in ("max_rows", "repeats"):
            if unknown := set(getattr(self, key)) - set(self.sources):
                raise ValueError(f"{key} names {sorted(unknown)[0]!r}, which is not among the sources {self.sources}")
            if few := [source for source, count in getattr(self, key).items() if count < 1]:
                raise ValueError(f"{key} of {few[0]!r} is {getattr(self, key)[few[0]]}, but one is the least")
        if unknown := set(self.negatives) - set(KINDS):
            raise ValueError(f"negatives name {sorted(unknown)[0]!r}; the kinds are {tuple(KINDS)}")
        if "contrasts" not in self.sources and (
            written := [kind for kind in contrasts.KINDS if self.negatives.get(kind)]
        ):
            raise ValueError(
                f"negatives name {written[0]!r}, which only source contrasts has lines of: add it to the sources"
            )
        if self.feedback_file and self.preset != "reaction":
            raise ValueError("feedback_file is given, but preset text reads an utterance alone: it knows no reaction")
        if self.feedback_file and self.fold == "gold":
            raise ValueError(
                "feedback_file is given, but the gold judge must not see what the other reward is trained on"
            )
        if self.feedback_repeats < 1:
            raise ValueError(f"feedback_repeats is {self.feedback_repeats}, but each row counts once at least")
        if self.likelihood_model and self.preset != "reaction":
            raise ValueError("likelihood_model is given, but preset text reads an utterance alone: it knows no moment")
        if (
            self.likelihood_model
            and "rated" not in self.sources
            and not any(map(self.negatives.get, sum(COMPARED, ())))
        ):
            raise ValueError(UNWEIGHED)
        if self.num_members < 1:
            raise ValueError(f"num_members is {self.num_members}, but a reward has one at least")


def main(config: RewardConfig) -> None:
    parents = [encoder_path(config.model_name_or_path)]
    if config.likelihood_model:
        parents.append(resolve(config.likelihood_model))
        resolve_base(config.likelihood_model)  # that it is missing is said before the training
    run = start_run(config, stage="reward", seed=config.seed, parents=parents)
    set_seed(config.seed)
    rows = {split: load_rows(config, split) for split in SPLITS}
    labels, weights = labels_and_weights(config.preset)

    model, tokenizer = make_model(config, labels)
    scorer = Scorer(
        model, tokenizer, labels, weights, config.preset, config.max_length,
        num_members=config.num_members, aggregate=config.aggregate, architecture=config.architecture,
    )  # fmt: skip
    trainer = make_trainer(config, run, scorer, rows)
    before = {f"before/{split}/{k}": v for split in SPLITS[1:] for k, v in evaluate(scorer, rows[split]).items()}

    checkpoint = last_checkpoint(run.dir)
    run.rewind(int(checkpoint.name.split("-")[1]) if checkpoint else -1)
    if checkpoint is None:
        run.log(before, step=0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if run.is_main:
        scorer.save(run.dir / "model")
    trainer.accelerator.wait_for_everyone()

    # From disk: what the next stage will load, without training's autocast.
    scorer = load_scorer(run.dir, trainer.args.device)
    scorer.temperature = fit_temperature(scorer.logits(rows["validation"]), *targets(rows["validation"]))
    if config.likelihood_model:
        scorer.likelihood = load_likelihood(config.likelihood_model, trainer.args.device)
        scorer.likelihood.memory = {}
        fit_likelihood(scorer, rows["validation"])
    after = {f"{split}/{k}": v for split in SPLITS[1:] for k, v in evaluate(scorer, rows[split]).items()}
    run.log(after, step=trainer.state.global_step)
    if run.is_main:
        scorer.save_settings(run.dir / "model")
    report(before, after)
    fitted = {"temperature": scorer.temperature}
    if scorer.likelihood:
        fitted |= {f"likelihood/{name}": weight for name, weight in scorer.likelihood_weights.items()}
    finish_run(run, {**before, **after, **fitted, "rows": len(rows["train"])})


def make_model(config: RewardConfig, labels: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder with fresh heads, under LoRA if asked for, or a trained adapter as it is; and its tokenizer."""
    path = encoder_path(config.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if (Path(path) / "adapter_config.json").exists():
        model = load_reward_adapter(path, is_trainable=True)
        if [model.config.id2label[i] for i in range(model.config.num_labels)] != labels:
            raise ValueError(f"model_name_or_path {config.model_name_or_path!r} knows other labels than {labels}")
        if type(model.get_base_model()) is not ARCHITECTURES[config.architecture]:
            raise ValueError(f"architecture is {config.architecture!r}, but {path} is another")
        if model.config.num_members != config.num_members:
            raise ValueError(f"num_members is {config.num_members}, but {path} has {model.config.num_members}")
        return model, tokenizer
    model = load_classifier(config.model_name_or_path, labels, config.preset, config.num_members, config.architecture)
    if config.use_peft:
        # SEQ_CLS trains the head in full and saves it with the adapter.
        heads = "classifier|score|emotions"
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            exclude_modules=rf"(.*\.)?({heads})(\..*)?",
            modules_to_save=["emotions"] if hasattr(model, "emotions") else None,
        )
        model = get_peft_model(model, lora)
        # The adapter names its encoder as the recipe does, not by the place where this machine keeps it.
        model.peft_config["default"].base_model_name_or_path = config.model_name_or_path
    return model, tokenizer


def evaluate(scorer: Scorer, rows: list[dict]) -> dict[str, float]:
    """Of the rows whose reaction is known: macro_f1 over the labels that occur, the same of the true rows alone
    (macro_f1_true), accuracy, and nll, the reactions' loss of the members' mean; of the comments emotion_bce; loss, the
    two together, by which the best checkpoint is chosen. true_above_<kind>: how often a true reply scores above one of
    that kind in its place; true_above: the mean over kinds; spearman_rated: of score and grade over the rated rows."""
    known = [i for i, row in enumerate(rows) if row["disengaged"] is not None]  # comments have no reaction
    rows_known = [rows[i] for i in known]
    score_B = torch.full((len(rows),), torch.nan)
    score_B[known], probs_BR = scorer.score(rows_known)
    emotion_B, disengaged_B = targets(rows_known)
    target_B = torch.where(disengaged_B > 0.5, len(EMOTIONS), emotion_B)
    guess_B = probs_BR.argmax(-1)
    told_B = target_B >= 0
    true_B = told_B & torch.tensor([row["kind"] == "true" for row in rows_known])
    metrics = {"nll": reaction_loss(probs_BR.clamp_min(1e-9).log()[:, None], emotion_B, disengaged_B).mean().item()}
    if told_B.any():
        metrics["macro_f1"] = macro_f1(target_B[told_B], guess_B[told_B])
        metrics["accuracy"] = (guess_B == target_B)[told_B].float().mean().item()
    if true_B.any():  # of some sources no emotion is known
        metrics["macro_f1_true"] = macro_f1(target_B[true_B], guess_B[true_B])
    metrics["loss"] = metrics["nll"]
    comments = [row for row in rows if "emotions" in row]
    if comments and hasattr(scorer.model, "emotions"):
        present_BE = emotion_targets(comments)
        metrics["emotion_bce"] = F.binary_cross_entropy(scorer.emotions(comments), present_BE).item()
        metrics["loss"] += EMOTION_COEF * metrics["emotion_bce"]
    for kind in (*KINDS, DISLIKED):
        spoilt = [i for i, row in enumerate(rows) if row["kind"] == kind and row["pair"] is not None]
        if spoilt:
            pairs = [rows[i]["pair"] for i in spoilt]
            metrics[f"true_above_{kind}"] = (score_B[pairs] > score_B[spoilt]).float().mean().item()
    rated = [i for i, row in enumerate(rows) if row["kind"] == "rated"]
    if rated:
        likely_B = [-rows[i]["disengaged"] for i in rated]
        metrics["spearman_rated"] = float(spearmanr(score_B[rated], likely_B).statistic)
    above = [value for name, value in metrics.items() if name.startswith("true_above")]
    return {**metrics, "true_above": sum(above) / len(above)} if above else metrics


def make_trainer(config: RewardConfig, run: Run, scorer: Scorer, rows: dict[str, list[dict]]) -> Trainer:
    """transformers' Trainer: rows of like length share a batch, the checkpoint of the lowest validation loss is kept."""
    generator = torch.Generator().manual_seed(config.seed)
    inputs = encode(scorer.tokenizer, rows["train"], config.max_length, config.preset)
    emotion_B, disengaged_B = targets(rows["train"])
    weight_BK = torch.ones(len(inputs), config.num_members)
    if config.num_members > 1:  # a bootstrap of its own for each member (Oza & Russell 2001)
        weight_BK = torch.poisson(weight_BK, generator=generator)
    labels_BL = torch.cat([emotion_B[:, None], disengaged_B[:, None], weight_BK, emotion_targets(rows["train"])], 1)

    def loss(outputs, labels, num_items_in_batch=None):
        K = config.num_members
        logits_BKR = outputs.logits.float().view(len(labels), K, -1)
        weight_BK = labels[:, 2 : 2 + K]
        reaction = (reaction_loss(logits_BKR, labels[:, 0].long(), labels[:, 1]) * weight_BK).mean()
        if "emotion_logits" not in outputs:
            return reaction
        return reaction + EMOTION_COEF * emotion_loss(outputs.emotion_logits.float(), labels[:, 2 + K :])

    if config.encoder_dropout is not None:
        for name, module in scorer.model.named_modules():
            if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
                module.p = config.encoder_dropout
    fuse(scorer.model)
    if config.bf16:
        leave_casting_to_autocast(scorer.model)
    if config.bf16 and not torch.cuda.is_available() and scorer.architecture == "cross_encoder":
        use_plain_attention(scorer.model)  # a bi-encoder's own mask is made for the fused one
    arguments = TrainingArguments(
        output_dir=str(run.dir),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),  # else transformers refuses bf16
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        logging_steps=10,
        logging_nan_inf_filter=False,
        average_tokens_across_devices=False,  # the loss is a process's mean; else it counts as often as there are processes
        report_to="none",
        label_names=["labels"],  # found from forward() otherwise, and PairClassifier leaves the loss to us
        seed=config.seed,
    )
    one_gpu_a_process(arguments, "reward.train")
    trainer = RewardTrainer(
        scorer,
        model=scorer.model,
        args=arguments,
        data_collator=DataCollatorWithPadding(scorer.tokenizer),
        train_dataset=[{**x, "labels": row} for x, row in zip(inputs, labels_BL.tolist(), strict=True)],
        eval_dataset=rows["validation"],
        compute_loss_func=loss,
        callbacks=[LogToRun(run)],
    )
    trainer.run = run
    return trainer


def reaction_loss(logits_BKR: torch.Tensor, emotion_B: torch.Tensor, disengaged_B: torch.Tensor) -> torch.Tensor:
    """loss_BK in nats: cross-entropy with what is known of the reaction.

    With d the probability that the other one was disengaged, -d log p(disengaged) - (1 - d) log p(engaged), and where
    the emotion is known too (emotion_B >= 0), -(1 - d) log p(emotion | engaged). Rows whose disengaged_B is NaN know
    nothing and give 0. Labels without disengaged (preset text) leave the plain cross-entropy.
    """
    logp_BKR = logits_BKR.log_softmax(-1)
    engaged_BK = logp_BKR[..., : len(EMOTIONS)].logsumexp(-1)
    disengaged_BK = logp_BKR[..., len(EMOTIONS) :].sum(-1)  # one label or none
    d_B1 = disengaged_B.nan_to_num(0.0)[:, None]
    index_BK1 = emotion_B.clamp_min(0)[:, None, None].expand(-1, logits_BKR.shape[1], 1)
    given_BK = logp_BKR.gather(-1, index_BK1).squeeze(-1) - engaged_BK
    loss_BK = -(d_B1 * disengaged_BK + (1 - d_B1) * (engaged_BK + given_BK * (emotion_B >= 0)[:, None]))
    return torch.where(disengaged_B.isnan()[:, None], torch.zeros_like(loss_BK), loss_BK)


def emotion_loss(emotion_logits_BE: torch.Tensor, present_BE: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the comments' emotions, mean over B and E; rows of -1 have none and give 0."""
    known_BE = present_BE >= 0
    loss_BE = F.binary_cross_entropy_with_logits(emotion_logits_BE, present_BE.clamp_min(0), reduction="none")
    return (loss_BE * known_BE).mean()


class RewardTrainer(ReadsInOrder, StopsAtNan, Trainer):
    """A Trainer whose order of rows survives a resume, that validates what the scorer is for, and that stops at the first
    loss that is not a number."""

    def __init__(self, scorer: Scorer, **settings):
        super().__init__(**settings)
        self.scorer = scorer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        found = evaluate(self.scorer, eval_dataset or self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(x["input_ids"]) for x in self.train_dataset]
        return self.in_order(lengths, self.args.train_batch_size)


class LogToRun(TrainerCallback):
    """The Trainer's numbers into the run."""

    def __init__(self, run: Run):
        self.run = run

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.run.log({name.replace("eval_", "validation/"): value for name, value in logs.items()}, state.global_step)


def targets(rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """emotion_B: the index of the other one's emotion, -1 where it is unknown; disengaged_B: the probability that they
    were, NaN where nothing is known."""
    emotion = [EMOTIONS.index(row["label"]) if row["label"] not in (None, DISENGAGED) else -1 for row in rows]
    disengaged = [float("nan") if row["disengaged"] is None else row["disengaged"] for row in rows]
    return torch.tensor(emotion), torch.tensor(disengaged)


def emotion_targets(rows: list[dict]) -> torch.Tensor:
    """present_BE: 1 or 0 for each of GoEmotions' labels, -1 throughout for a row that is no comment."""
    present_BE = torch.full((len(rows), len(emotions.LABELS)), -1.0)
    for i, row in enumerate(rows):
        if "emotions" in row:
            present_BE[i] = 0.0
            present_BE[i, [emotions.LABELS.index(label) for label in row["emotions"]]] = 1.0
    return present_BE


def macro_f1(target_B, guess_B) -> float:
    """The mean F1 of the labels that occur in target_B."""
    occurring = sorted({int(target) for target in target_B})
    return float(f1_score(target_B, guess_B, labels=occurring, average="macro", zero_division=0))


def fit_temperature(logits_BKR: torch.Tensor, emotion_B: torch.Tensor, disengaged_B: torch.Tensor) -> float:
    """The temperature in [0.1, 10], to 1 %, at which the loss is least."""
    grid = torch.logspace(-1, 1, 461).tolist()
    return min(grid, key=lambda t: reaction_loss(logits_BKR / t, emotion_B, disengaged_B).mean().item())


def fit_likelihood(scorer: Scorer, rows: list[dict]) -> None:
    """Weighs the language model's features on validation rows, then fits temperature and bias anew; sets all three.

    The weights by comparisons alone (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1: -log sigmoid of a difference of
    scores), each group counting the same: a true reply and another dialogue's or moment's in its place; the same and its
    own words spoilt; the good line of a moment and one that is wrong there by the same hand; two graded openers of a
    model, whose grades differ. By the reactions' loss fluency comes out harmful: a model's own lines are likelier to
    models than people's are, and it would tell who wrote a line, not whether it makes sense (experiments/LOG.md).
    """
    known = [i for i, row in enumerate(rows) if row["disengaged"] is not None]
    place = {i: at for at, i in enumerate(known)}
    rows_known = [rows[i] for i in known]
    logits_BKR = scorer.logits(rows_known).clone()  # out of inference mode, for gradients of what is added
    features_BF = scorer.likelihood.features(rows_known)
    weights_R = torch.tensor(scorer.weights)
    groups = [
        torch.tensor(pairs)
        for pairs in (
            *(
                [(place[row["pair"]], at) for at, row in enumerate(rows_known) if row["kind"] in kinds]
                for kinds in COMPARED
            ),
            pairs_of_grades(rows_known),
        )
        if pairs
    ]
    if not groups:
        raise ValueError(UNWEIGHED)

    weight_F, log_scale = torch.zeros(len(FEATURES), requires_grad=True), torch.zeros((), requires_grad=True)
    centred_BF = features_BF - features_BF.mean(0)

    def preference_loss():
        logits = with_evidence(logits_BKR / scorer.temperature, centred_BF, weight_F, 0.0, scorer.worst)
        score_B = torch.logit(logits.softmax(-1) @ weights_R).mean(1)
        margins = [log_scale.exp() * (score_B[pair_P2[:, 0]] - score_B[pair_P2[:, 1]]) for pair_P2 in groups]
        return sum(F.softplus(-margin_P).mean() for margin_P in margins) / len(groups)

    minimise(preference_loss, [weight_F, log_scale])
    weight_F = weight_F.detach()
    log_temperature = torch.tensor(scorer.temperature).log().requires_grad_()
    bias = (-(features_BF.mean(0) @ weight_F)).requires_grad_()

    def nll():
        logits = with_evidence(logits_BKR / log_temperature.exp(), features_BF, weight_F, bias, scorer.worst)
        return reaction_loss(logits, *targets(rows_known)).mean()

    minimise(nll, [log_temperature, bias])
    scorer.temperature = log_temperature.exp().item()
    scorer.likelihood_weights = dict(zip((*FEATURES, "bias"), [*weight_F.tolist(), bias.item()], strict=True))


def pairs_of_grades(rows: list[dict], most: int = 20_000) -> list[tuple[int, int]]:
    """Indices of (the better, the worse) of two rated rows: all, or evenly spaced ones where they are more than `most`."""
    rated = [i for i, row in enumerate(rows) if row["kind"] == "rated"]
    pairs = [(i, j) for i in rated for j in rated if rows[i]["disengaged"] < rows[j]["disengaged"]]
    return pairs[:: -(-len(pairs) // most) or 1]


def minimise(loss: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> None:
    """A few numbers by L-BFGS, in place."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def report(before: dict[str, float], after: dict[str, float]) -> None:
    """A line per metric on the screen."""
    print(f"{'':32}  before   after")
    for name, value in after.items():
        print(f"{name:32}  {before['before/' + name]:6.3f}  {value:6.3f}")


if __name__ == "__main__":
    main(*parse_config(RewardConfig))
