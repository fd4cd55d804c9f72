"""PPO on openers: a subclass of trl 1.12's PPOTrainer that owns the loop.

Kept from trl: the configuration, batch arithmetic, optimizer and schedule, callbacks, accelerate. Ours: what one update
is. Where stock differs, and why (facts checked in trl 1.12.0):

- Optimizer steps: num_ppo_epochs x num_mini_batches an update, whatever the accumulation. Stock lets accelerate count
  micro-batches over the whole batch, and steps too seldom, and too often in the last update of a pass.
- One trunk: the value head sits on the policy (or, by recipe, on a trunk of its own, as stock's always does).
- The scorer reads text with its own tokenizer. Stock feeds it the policy's token ids.
- The reference is the SFT adapter, frozen, on the same base. With adapters off it would be the base, not the friend.
- Log-probabilities of policy and reference come from a forward pass at the sampling temperature.
- The score lands on the last real token, the end token. Stock adds it to the pad after that, so that GAE discounts it by
  lambda; and where the pad is the end token it never trains the end.
- What openers begin with in common is read once (rl/tree.py). Stock reads a padded row for each, four times over.
- What is evaluated and kept may be the mean of the policy over updates (average_decay).
- Statistics are means over real tokens; gradients are clipped; KL, early stop and scores have limits (OpenerConfig).
- Everything random is a function of seed and update (see rollout.scene_rows, models.sampling), so a checkpoint needs no
  random state, and batch 1 x accumulation 8 is 8 x 1.
- per_device_train_batch_size x gradient_accumulation_steps is the whole batch: several processes share its accumulation,
  so that the same recipe is the same run on one process and on several, and goes on on another number of them.

tests/test_parity.py shows both sides of each, and that they agree where stock is right.
"""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from data.scenes import Scene
from data.source import write_whole
from experiments.run import Run
from models.compiled import compile_layers
from models.linear import use_onednn
from models.load import use_plain_attention
from models.lora import fuse, leave_casting_to_autocast
from models.sampling import decode, left_pad, sample
from models.scorer import Scorer
from rl import ppo
from rl.evaluate import Evaluator, SceneConfig, check_lengths, opener_prompt
from rl.rollout import (
    POLICY,
    REFERENCE,
    MergedCopy,
    PolicyWithValueHead,
    Rollout,
    ValueHead,
    minibatches,
    reading,
    scene_rows,
    value_trunk,
)
from rl.tree import prefix_trees


@dataclass
class OpenerConfig(SceneConfig):
    """What PPO optimises on which scenes; how it is done stands in trl's PPOConfig."""

    num_generations: int = field(
        default=1, metadata={"help": "openers a scene in a batch: they share its reading, whole micro-batches best"}
    )
    kl_target: float | None = field(default=None, metadata={"help": "nats a response: adapt kl_coef towards it"})
    kl_horizon: int = field(default=10_000, metadata={"help": "episodes over which kl_coef adapts"})
    max_approx_kl: float | None = field(
        default=None, metadata={"help": "end an update's epochs above this, nats a token"}
    )
    kl_limit: float = field(
        default=200.0, metadata={"help": "an update's KL above this ends the run with an error, nats a response"}
    )
    average_decay: float | None = field(
        default=None,
        metadata={
            "help": "keep an exponential mean of the policy over updates, from SFT on: it is evaluated and saved"
        },
    )
    separate_value_model: bool = field(
        default=False, metadata={"help": "values from a full trunk of their own, not from a head on the policy's"}
    )
    normalize_score: bool = field(
        default=False, metadata={"help": "subtract the running mean, divide by the deviation"}
    )
    score_clip: float | None = field(default=None, metadata={"help": "clip scores to +- this, after normalising"})

    def __post_init__(self):
        super().__post_init__()
        if self.kl_target is not None and self.kl_target <= 0:
            raise ValueError(f"kl_target is {self.kl_target}: it must be above 0 nats, or null for a fixed kl_coef")
        self.must_be_positive("num_generations", "kl_horizon", "max_approx_kl", "kl_limit", "score_clip")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(
                f"average_decay is {self.average_decay}: it must be between 0 and 1, or null for no average"
            )
        if self.separate_value_model and self.quantization:
            raise ValueError(
                f"separate_value_model trains a trunk in full, which quantization {self.quantization} cannot: drop one"
            )


class OpenerPPOTrainer(PPOTrainer):
    """Optimises `policy`'s adapter POLICY against `scorer` on `scenes`, with its adapter REFERENCE as reference."""

    def __init__(
        self,
        config: OpenerConfig,
        args: PPOConfig,
        run: Run,
        tokenizer,
        policy: PeftModel,
        scorer: Scorer,
        scenes: list[Scene],
        val_scenes: list[Scene],
        gold: Scorer | None = None,
    ):
        processes = PartialState().num_processes
        check(config, args, scenes, processes)
        args = copy.copy(args)
        args.gradient_accumulation_steps //= processes  # the batch stays the same batch
        self.config, self.run, self.scenes, self.val_scenes = config, run, scenes, val_scenes
        self.prompts = [opener_prompt(tokenizer, scene, config.instruction) for scene in scenes]
        val_prompts = [opener_prompt(tokenizer, scene, config.instruction) for scene in val_scenes]
        check_lengths(
            policy.config.max_position_embeddings,
            args.response_length,
            [*scenes, *val_scenes],
            self.prompts + val_prompts,
        )
        fuse(policy)
        use_onednn(scorer.model)
        if not args.bf16:
            use_onednn(policy)
        else:
            leave_casting_to_autocast(policy)
            if args.device.type == "cpu":
                use_plain_attention(policy)
        self.sampler = MergedCopy(policy, torch.bfloat16 if args.bf16 else None)
        trunk = value_trunk(policy, POLICY) if config.separate_value_model else None
        args.model_adapter_name, args.ref_adapter_name = POLICY, REFERENCE
        args.output_dir, args.report_to, args.num_sample_generations = str(run.dir), [], 0
        # Stock names its wrapper globally; ours takes its place while stock builds optimizer, schedule and accelerator.
        with mock.patch.object(ppo_trainer, "PolicyAndValueWrapper", PolicyWithValueHead):
            super().__init__(
                args=args,
                processing_class=tokenizer,
                model=policy,
                ref_model=None,
                reward_model=scorer.model,
                value_model=ValueHead(policy.get_base_model().get_input_embeddings().weight.shape[1], trunk),
                train_dataset=Dataset.from_dict({"input_ids": self.prompts}),
                eval_dataset=Dataset.from_dict({"input_ids": val_prompts}),
            )
        if args.gradient_checkpointing:  # stock takes the setting and does nothing with it
            policy.gradient_checkpointing_enable()
            policy.train()  # where layers checkpoint; stock has set every dropout to 0
        if args.torch_compile:
            compile_layers(self.model, args.device)
        self.accelerator.gradient_accumulation_steps = 1  # we scale the loss ourselves
        self.sampler.model.to(self.accelerator.device)
        self.end_token_id = tokenizer.eos_token_id if self.stop_token_id is None else self.stop_token_id
        self.kl_coef, self.moments = args.kl_coef, ppo.RunningMoments()
        self.optimizer_steps, self.best, self.told_to_stop = 0, {}, False
        self.average = self._weights() if config.average_decay else None
        self.evaluator = Evaluator(
            config,
            run,
            tokenizer,
            policy,
            self.sampler,
            scorer,
            gold,
            temperature=args.temperature,
            response_length=args.response_length,
            end_token_id=self.end_token_id,
            missing_eos_penalty=args.missing_eos_penalty or 0.0,
            batch_size=args.per_device_eval_batch_size,
            forward_batch_size=args.local_rollout_forward_batch_size,
            autocast=self.autocast,
        )

    # ------------------------------------------------------------------------------------------ the loop

    def train(self) -> None:
        """All updates, from the last whole checkpoint on if there is one. SIGTERM saves, then ends the process."""
        args = self.args
        start = self._resume()
        self.state.max_steps, self.state.global_step = args.num_total_batches, start
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        if start == 0:
            self._evaluate(0)
        with self._sigterm_noted():
            for update in range(start, args.num_total_batches):
                self._train_on(update)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)

    def _train_on(self, update: int) -> None:
        """One update from its rollout to its checkpoint."""
        args, began, done = self.args, time.perf_counter(), update + 1
        rollout, times = self.rollout(update)
        self._leave_if_told(update)
        metrics = self.improve(rollout, update)
        self._update_average()
        seconds, tokens = time.perf_counter() - began, rollout.mask_BT.sum().item()
        metrics |= times | {
            "time/update_s": seconds - sum(times.values()),
            "time/tokens_per_s": tokens / seconds,
            "time/episodes_per_s": args.batch_size / seconds,
            "lr": self.lr_scheduler.get_last_lr()[0],
            "update": done,
        }
        self.lr_scheduler.step()
        self.state.global_step, self.state.episode = done, done * args.batch_size
        self.run.log(metrics, step=self.state.episode)
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)
        last = done == args.num_total_batches
        if last or (args.eval_steps and done % args.eval_steps == 0):
            self._evaluate(done)
        if last or (args.save_steps and done % args.save_steps == 0):
            self._save(done)
        self._leave_if_told(done)

    @torch.no_grad()
    def rollout(self, update: int) -> tuple[Rollout, dict[str, float]]:
        """Samples the update's openers, scores them, and reads them with policy and reference.

        The rollout is of the whole batch on every process: each writes its share, then all are gathered.
        """
        args, clock = self.args, Clock()
        rows = scene_rows(update, args.batch_size, len(self.scenes), args.seed, self.config.num_generations)
        keys = update * args.batch_size + np.arange(args.batch_size)
        mine = np.array_split(np.arange(args.batch_size), self.accelerator.num_processes)[
            self.accelerator.process_index
        ]
        rollout = self.read([self.scenes[row] for row in rows[mine]], rows[mine], keys[mine], args.seed, POLICY, clock)
        return self._gather(rollout), clock.times

    @torch.no_grad()
    def read(self, scenes: list[Scene], rows, keys, seed: int, adapter: str, clock: "Clock") -> Rollout:
        """Openers of `adapter` for scenes, with scores, log-probabilities under it and the reference, and values."""
        args, tokenizer, device = self.args, self.processing_class, self.accelerator.device
        prompts = [opener_prompt(tokenizer, scene, self.config.instruction) for scene in scenes]
        samples = sample(
            self.sampler.merge(adapter),
            prompts,
            max_new_tokens=args.response_length,
            temperature=args.temperature,
            eos_token_id=self.end_token_id,
            pad_token_id=tokenizer.pad_token_id,
            seed=seed,
            keys=keys,
        )
        clock.lap("time/generate_s")
        score_B = self.evaluator.scores(scenes, decode(samples, tokenizer), samples.ended_B)
        clock.lap("time/score_s")
        ids, mask = left_pad(prompts, tokenizer.pad_token_id)
        empty = torch.zeros(samples.mask_BT.shape, device=device)
        rollout = Rollout(
            ids.to(device),
            mask.to(device),
            samples.response_BT,
            samples.mask_BT,
            samples.ended_B,
            torch.as_tensor(rows, device=device),
            score_B.to(device),
            empty,
            empty.clone(),
            empty.clone(),
        )
        self._forward_old(rollout, adapter)
        clock.lap("time/forward_s")
        return rollout

    def improve(self, rollout: Rollout, update: int) -> dict[str, float]:
        """One update: rewards, advantages, then epochs of minibatches. Returns its metrics."""
        args, mask_BT = self.args, rollout.mask_BT.float()
        kl = ((rollout.logp_BT - rollout.ref_logp_BT) * mask_BT).sum(1).mean().item()
        check_kl(kl, self.config.kl_limit, update)
        kl_BT = ppo.kl_estimate(rollout.logp_BT, rollout.ref_logp_BT, args.kl_estimator)
        rewards_BT = ppo.token_rewards(self._shaped(rollout.score_B), kl_BT, mask_BT, self.kl_coef)
        if args.whiten_rewards:
            rewards_BT = ppo.whiten(rewards_BT, mask_BT, shift_mean=False)
        advantages_BT, returns_BT = ppo.gae(rewards_BT, rollout.values_BT, mask_BT, args.gamma, args.lam)
        explained = ppo.explained_variance(rollout.values_BT, returns_BT, mask_BT).item()
        advantages_BT = ppo.whiten(advantages_BT, mask_BT)

        steps: list[dict[str, float]] = []
        of_update = update, args.batch_size, args.num_ppo_epochs, args.num_mini_batches, args.seed
        for rows in minibatches(*of_update, self.config.num_generations):
            steps.append(self._step(rollout, advantages_BT, returns_BT, rows))
            if self.config.max_approx_kl and steps[-1]["policy/approx_kl"] > self.config.max_approx_kl:
                break  # this update has gone far enough
        score = rollout.score_B.mean().item()
        metrics = {
            "objective/score": score,
            "objective/kl": kl,
            "objective/rlhf_reward": score - self.kl_coef * kl,
            "objective/kl_coef": self.kl_coef,
            "value/explained_variance": explained,
            "response/length": mask_BT.sum(1).mean().item(),
            "response/ended": rollout.ended_B.float().mean().item(),
            "policy/first_ratio": steps[0]["policy/ratio"],
            "optimizer_steps": self.optimizer_steps,
            **{key: float(np.mean([step[key] for step in steps])) for key in steps[0]},
        }
        if self.config.kl_target:
            self.kl_coef = ppo.adapted_kl_coef(
                self.kl_coef, kl, self.config.kl_target, args.batch_size, self.config.kl_horizon
            )
        return metrics

    def _step(self, rollout: Rollout, advantages_BT, returns_BT, minibatch: np.ndarray) -> dict[str, float]:
        """One optimizer step on a minibatch, in micro-batches of per_device_train_batch_size; its mean statistics."""
        args, accelerator, device = self.args, self.accelerator, self.accelerator.device
        tokens = rollout.mask_BT[minibatch].sum()
        mine = np.split(minibatch, accelerator.num_processes)[accelerator.process_index]
        micros = [
            mine[i : i + args.per_device_train_batch_size]
            for i in range(0, len(mine), args.per_device_train_batch_size)
        ]
        sums: dict[str, torch.Tensor] = {}
        for i, micro in enumerate(micros):
            index = torch.as_tensor(micro, device=device)
            part = rollout.rows(index)
            mask_BT = part.mask_BT.float()
            waits = accelerator.no_sync(self.model) if i + 1 < len(micros) else contextlib.nullcontext()
            with waits:
                with self.autocast():
                    logp_BT, entropy_BT, values_BT = self.model(
                        part.query_BP, part.query_mask_BP, part.response_BT, part.mask_BT, args.temperature
                    )
                pg_BT, pg = ppo.policy_loss(logp_BT, part.logp_BT, advantages_BT[index], mask_BT, args.cliprange)
                vf_BT, vf = ppo.value_loss(values_BT, part.values_BT, returns_BT[index], mask_BT, args.cliprange_value)
                # The minibatch's mean, whatever its cut into micro-batches and processes (DDP averages gradients).
                loss = (pg_BT.sum() + args.vf_coef * vf_BT.sum()) / tokens * accelerator.num_processes
                self.run.check_finite(loss.item(), self.optimizer_steps + 1)
                accelerator.backward(loss)
            terms = {
                "policy/loss": pg_BT.sum(),
                "value/loss": vf_BT.sum(),
                "objective/entropy": (entropy_BT * mask_BT).sum(),
                **pg,
                **vf,
            }
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value.detach()
        norm = accelerator.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer_steps += 1
        means = accelerator.reduce(torch.stack(list(sums.values())), "sum") / tokens
        return dict(zip(sums, means.tolist(), strict=True)) | {"policy/grad_norm": float(norm)}

    # ------------------------------------------------------------------------------------------ evaluation

    def _evaluate(self, update: int) -> None:
        """Validation scenes, and the best policy by score within max_kl is kept; of the average where there is one."""
        with self._averaged():
            metrics = self.evaluator.validate(self.val_scenes, self.args.seed, step=update * self.args.batch_size)
            if metrics["eval/kl"] <= self.config.max_kl and metrics["eval/score"] > self.best.get("score", -np.inf):
                self.best = {"update": update, "score": metrics["eval/score"], "kl": metrics["eval/kl"]}
                self._write_adapter(self.run.dir / "best")

    def load_best(self) -> None:
        """Puts the best policy's weights back into the adapter."""
        self._set_weights(load_file(self.run.dir / "best" / "adapter.safetensors"))

    # ------------------------------------------------------------------------------------------ the average

    @torch.no_grad()
    def _update_average(self) -> None:
        """average = decay * average + (1 - decay) * policy, from the SFT policy on: what noise did to single updates
        cancels out, and the weights stay nearer to SFT's (WARP, Rame et al. 2024, sections 3.1 and 3.3). A and B of LoRA
        are averaged each for itself."""
        if self.average:
            for name, weight in self._weights().items():
                self.average[name].lerp_(weight, 1 - self.config.average_decay)

    @contextlib.contextmanager
    def _averaged(self):
        """The policy with the average's weights, for reading."""
        if not self.average:
            yield
            return
        own = self._weights()
        self._set_weights(self.average)
        try:
            yield
        finally:
            self._set_weights(own)

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of the policy's adapter."""
        state = get_peft_model_state_dict(self.policy_model, adapter_name=POLICY, save_embedding_layers=False)
        return {name: weight.detach().clone() for name, weight in state.items()}

    def _set_weights(self, weights: dict[str, torch.Tensor]) -> None:
        set_peft_model_state_dict(self.policy_model, weights, adapter_name=POLICY)

    # ------------------------------------------------------------------------------------------ helpers

    def autocast(self):
        """Around forward passes: bfloat16 where the recipe says so. (trl 1.12 takes `bf16` and does nothing with it.)"""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _forward_old(self, rollout: Rollout, adapter: str) -> None:
        """Fills in log-probabilities and values, local_rollout_forward_batch_size rows at a time."""
        wrapper, policy, args = self.accelerator.unwrap_model(self.model), self.policy_model, self.args
        for index in torch.arange(len(rollout.score_B)).split(args.local_rollout_forward_batch_size):
            part = rollout.rows(index)
            batch = part.query_BP, part.query_mask_BP, part.response_BT, part.mask_BT
            with reading(policy, adapter), self.autocast():
                rollout.logp_BT[index], _, rollout.values_BT[index] = wrapper(*batch, args.temperature)
            with reading(policy, REFERENCE), self.autocast():
                trees = prefix_trees(*batch, policy.config._attn_implementation)
                rollout.ref_logp_BT[index] = trees.rows(trees.read(policy, args.temperature)[0])

    def _shaped(self, score_B: torch.Tensor) -> torch.Tensor:
        if self.config.normalize_score:
            self.moments.update(score_B)
            score_B = (score_B - self.moments.mean) / (self.moments.std + 1e-8)
        return (
            score_B
            if self.config.score_clip is None
            else score_B.clamp(-self.config.score_clip, self.config.score_clip)
        )

    def _gather(self, rollout: Rollout) -> Rollout:
        if self.accelerator.num_processes == 1:
            return rollout
        pad, values = self.processing_class.pad_token_id, {}
        for name, tensor in vars(rollout).items():
            dtype = tensor.dtype
            if dtype == torch.bool:
                tensor = tensor.int()  # accelerate pads a bool to int64, and only where it is the shorter one
            if tensor.ndim == 2:
                index = pad if name in ("query_BP", "response_BT") else 0
                tensor = self.accelerator.pad_across_processes(
                    tensor, dim=1, pad_index=index, pad_first=name.startswith("query")
                )
            values[name] = self.accelerator.gather(tensor).to(dtype)
        return Rollout(**values)

    def _write_adapter(self, directory: Path) -> None:
        if self.accelerator.is_main_process:
            directory.mkdir(exist_ok=True)
            save_file(self._weights(), directory / "adapter.safetensors.tmp")
            os.replace(directory / "adapter.safetensors.tmp", directory / "adapter.safetensors")

    @contextlib.contextmanager
    def _sigterm_noted(self):
        """SIGTERM is noted here and obeyed by `_leave_if_told`, where the weights are those between two updates."""

        def note(*_):
            self.told_to_stop = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _leave_if_told(self, done: int) -> None:
        """After a SIGTERM, to whichever process: a checkpoint of the `done` updates, then SystemExit."""
        told = torch.tensor(float(self.told_to_stop), device=self.accelerator.device)
        if self.accelerator.reduce(told, "sum") > 0:
            if done:  # before the first update there is nothing to save
                self._save(done)
            raise SystemExit(143)

    def _save(self, update: int) -> None:
        """A checkpoint, whole: adapter, values, optimizer, schedule, coefficients, and the best adapter so far. state.json
        comes last and names each file's sha256. The last two checkpoints are kept."""
        final = self.run.dir / f"checkpoint-{update}"
        if self.accelerator.is_main_process and not is_whole(final):
            new = self.run.dir / ".checkpoint.tmp"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            self._write_adapter(new)
            save_file(
                self.accelerator.unwrap_model(self.model).value_model.state_dict(), new / "value_head.safetensors"
            )
            torch.save(
                {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()},
                new / "optimizer.pt",
            )
            if self.best:
                shutil.copy(self.run.dir / "best" / "adapter.safetensors", new / "best.safetensors")
            if self.average:
                save_file(self.average, new / "average.safetensors")
            state = {
                "update": update,
                "batch_size": self.args.batch_size,
                "kl_coef": self.kl_coef,
                "moments": self.moments.state(),
                "best": self.best,
                "optimizer_steps": self.optimizer_steps,
                "files": {path.name: sha256(path) for path in sorted(new.iterdir())},
            }
            write_whole(new / "state.json", json.dumps(state))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(new, final)
            for old in checkpoints(self.run.dir)[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Loads the newest whole checkpoint, if any; returns the number of updates done."""
        found = checkpoints(self.run.dir)
        while found and not is_whole(found[-1]):
            print(f"{found.pop()} is not whole: going on from the one before it")
        if not found:
            self.run.rewind(-1)
            return 0
        path = found[-1]
        state = json.loads((path / "state.json").read_text())
        if state["batch_size"] != self.args.batch_size:
            raise ValueError(
                f"{path} was made with {state['batch_size']} episodes a batch, now per_device_train_batch_size x "
                f"gradient_accumulation_steps makes {self.args.batch_size}: keep the product, or take another run_dir"
            )
        self._set_weights(load_file(path / "adapter.safetensors"))
        if self.average:
            self.average = load_file(path / "average.safetensors", device=str(self.accelerator.device))
        self.accelerator.unwrap_model(self.model).value_model.load_state_dict(
            load_file(path / "value_head.safetensors")
        )
        saved = torch.load(path / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["schedule"])
        self.kl_coef, self.best, self.optimizer_steps = state["kl_coef"], state["best"], state["optimizer_steps"]
        self.moments = ppo.RunningMoments(**state["moments"])
        if self.best and self.accelerator.is_main_process:  # a later best belongs to updates that are made again
            (self.run.dir / "best").mkdir(exist_ok=True)
            shutil.copy(path / "best.safetensors", self.run.dir / "best" / "adapter.safetensors")
        self.run.rewind(state["update"] * self.args.batch_size)
        self.accelerator.wait_for_everyone()
        return state["update"]


class Clock:
    """Seconds between laps, added up by name."""

    def __init__(self):
        self.times, self.last = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.times[name], self.last = self.times.get(name, 0.0) + now - self.last, now


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints, oldest first. They come into being by a rename, so a killed process leaves none by halves."""
    return sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def is_whole(checkpoint: Path) -> bool:
    """Whether its files are those that its state.json names: where the machine failed, a rename may outlive its data."""
    try:
        files = json.loads((checkpoint / "state.json").read_text())["files"]
        return all(sha256(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(config: OpenerConfig, args: PPOConfig, scenes: list[Scene], processes: int) -> None:
    """Refuses settings that cannot work, naming the key."""
    if not scenes:
        raise ValueError("scene_sources gave no training scenes")
    for key in ("total_episodes", "num_ppo_epochs", "num_mini_batches", "response_length"):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise ValueError(f"{key} is {getattr(args, key)}: it must be 1 or more")
    for key in ("eval_steps", "save_steps"):
        if 0 < (getattr(args, key) or 0) < 1:
            raise ValueError(f"{key} is {getattr(args, key)}, a share of the run: give a number of updates")
    if args.gradient_accumulation_steps % processes:
        raise ValueError(
            f"gradient_accumulation_steps {args.gradient_accumulation_steps} must be divisible by the {processes} "
            "processes: they share it, so that the batch stays the same; lower per_device_train_batch_size for it"
        )
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if batch // processes % (args.num_mini_batches * config.num_generations):  # a scene's openers stay in one minibatch
        raise ValueError(
            f"num_mini_batches {args.num_mini_batches}"
            + f" x num_generations {config.num_generations}" * (config.num_generations > 1)
            + " must divide per_device_train_batch_size x "
            f"gradient_accumulation_steps = {batch}" + f" / {processes} processes" * (processes > 1)
        )
    if args.temperature <= 0:
        raise ValueError(f"temperature is {args.temperature}: PPO samples, it must be above 0")
    if (args.missing_eos_penalty or 0.0) < 0:
        raise ValueError(f"missing_eos_penalty is {args.missing_eos_penalty}: it is subtracted, so 0 or more")
    if config.kl_target is not None and args.kl_coef <= 0:
        raise ValueError(f"kl_coef is {args.kl_coef}: kl_target adapts it by factors, so it must start above 0")


def check_kl(kl: float, limit: float, update: int) -> None:
    """Ends a run whose policy has left the reference behind: what it says has long stopped being language."""
    if kl > limit:
        raise FloatingPointError(
            f"the KL to the SFT policy is {kl:.1f} nats a response before update {update + 1}, kl_limit is {limit}: raise "
            "kl_coef, set kl_target or max_approx_kl, or lower learning_rate"
        )
