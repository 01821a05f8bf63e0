# make demo       profile, train and compare on the embedded model; prints where the report is
# make test       the fast tests
# make check      lint, format, types, import rules
# make results    the demo's chain on both embedded models, with more configurations, what is left
#                 of it after fine-tuning, and the ablations: every table and figure of docs/results
# make reference  train the embedded models again (resumable)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
comma := ,
space := $(subst ,, )

# The chains differ in nothing but the model and their size: profile, train, roll the policy's own
# plans out, train again with those, compare on what was held out.
CHAINS := demo latte wan
MODEL_demo := checkpoints/tiny-latte
MODEL_latte := checkpoints/tiny-latte
MODEL_wan := checkpoints/tiny-wan
CONFIGS_demo := data/configs/demo.json
CONFIGS_latte := data/configs/train.json
CONFIGS_wan := data/configs/wan-train.json
PROFILE_demo := --limit 16 --rollouts 2
PROFILE_latte := --limit 6 --rollouts 1
PROFILE_wan := --limit 6 --rollouts 1
ROUND_demo := --limit 12 --rollouts 2 --seed 500
ROUND_latte := --limit 3 --rollouts 2 --seed 500
ROUND_wan := --limit 3 --rollouts 2 --seed 500
SPEEDUPS := --speedups 1.2 1.5 1.75 2 2.5 3 3.8
COMPARE_demo := --configs data/configs/demo.json --limit 4 $(SPEEDUPS)
COMPARE_latte := --configs data/configs/test.json --limit 24 --qualities 30 35 40 45 $(SPEEDUPS)
COMPARE_wan := --configs data/configs/wan-test.json --limit 24 --qualities 30 35 40 45 $(SPEEDUPS)
# The demo runs beside the learned policy what is closest to it, the others all that applies.
RIVALS := foresight static random fewer-steps
PEERS_demo := $(foreach n,2 3 4,taylorseer[interval=$(n)$(comma)outputs=lite])
PEERS_latte := pab fbcache magcache taylorseer fastercache cache-dit teacache
PEERS_wan := $(PEERS_latte)
# What a policy is worth on a model that was trained a little further after it.
RIVALS_tuned := static fewer-steps foresight teacache taylorseer
TUNE := --vae-steps 0 --image-steps 0 --steps 200 --pool-parts 6 --part-size 100
COMPARE_tuned := --limit 4 $(SPEEDUPS)
CONFIGS_tuned_latte := data/configs/demo.json
CONFIGS_tuned_wan := data/configs/wan-demo.json
ABLATE_latte := --configs data/configs/demo.json --limit 4
ABLATE_wan := --configs data/configs/wan-test.json --limit 4

.PHONY: demo test check results reference \
	$(foreach c,$(CHAINS),profile-$(c) round-$(c) publish-$(c) share-$(c)) \
	tuned-latte tuned-wan more-latte more-wan ablations-latte ablations-wan
.DELETE_ON_ERROR:

demo: runs/demo/comparison/report.html
	@echo "The report: $(abspath $<)"

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

results: publish-latte publish-wan tuned-latte tuned-wan ablations-latte ablations-wan
	$(BIN)/python benchmarks/tables.py $(addprefix docs/results/,latte wan latte-tuned wan-tuned)

$(CHAINS:%=publish-%): publish-%: runs/%/comparison/report.html
	mkdir -p docs/results/$*
	cp $(addprefix runs/$*/comparison/,results.csv setup.json report.html speed-quality.png) \
		docs/results/$*/
	$(MAKE) share-$*

TUNED := runs/latte/tuned/model_index.json runs/wan/tuned/model_index.json
$(TUNED): runs/%/tuned/model_index.json: | $(INSTALLED)
	$(BIN)/python -m foresight.models.reference $(TUNE) --model $(notdir $(MODEL_$*)) \
		--start $(MODEL_$*) --work runs/$*/tuning --output runs/$*/tuned

tuned-latte tuned-wan: tuned-%: publish-% runs/%/tuned/model_index.json
	$(BIN)/foresight compare --model runs/$*/tuned --policies \
		'$(subst $(space),$(comma),runs/$*/policy[fine_tuned=true] $(RIVALS_tuned))' \
		--prompts data/prompts/test.txt --configs $(CONFIGS_tuned_$*) $(COMPARE_tuned) \
		--output runs/$*/tuned-comparison
	mkdir -p docs/results/$*-tuned
	cp $(addprefix runs/$*/tuned-comparison/,results.csv setup.json) docs/results/$*-tuned/

# Generations to make a hundred with, for the learning curve alone.
more-latte more-wan: more-%: $(INSTALLED)
	$(BIN)/foresight profile --model $(MODEL_$*) --prompts data/prompts/train.txt \
		--configs $(CONFIGS_$*) --limit 16 --rollouts 1 --seed 900 --output runs/$*/more

ablations-latte ablations-wan: ablations-%: publish-% more-%
	$(BIN)/python benchmarks/ablations.py --model $(MODEL_$*) --prompts data/prompts/test.txt \
		--traces runs/$*/traces runs/$*/on-policy --more runs/$*/more $(ABLATE_$*) \
		--work runs/$*/ablations --output docs/results/$*/ablations.csv

# What others may start from: the demo's traces, and the policies of the two larger chains.
share-demo:
	rm -rf data/sample-traces
	cp -r runs/demo/traces data/sample-traces

share-latte share-wan: POLICY = checkpoints/policies/$(notdir $(MODEL_$*))
share-latte share-wan: share-%:
	cp runs/$*/policy/model.safetensors runs/$*/policy/config.json $(POLICY)/
	sed -e 's|^# policy:|# $(notdir $(POLICY)):|; s|load_policy("policy")|load_policy("$(POLICY)")|' \
		-e 's|^model_name: policy|model_name: $(notdir $(POLICY))|' \
		runs/$*/policy/README.md > $(POLICY)/README.md

reference: $(INSTALLED)
	$(BIN)/python -m foresight.models.reference --model tiny-latte
	$(BIN)/python -m foresight.models.reference --model tiny-wan

# Both resume where they were stopped and return at once when the trace set is complete.
$(CHAINS:%=profile-%): profile-%: $(INSTALLED)
	$(BIN)/foresight profile --model $(MODEL_$*) --prompts data/prompts/train.txt \
		--configs $(CONFIGS_$*) $(PROFILE_$*) --output runs/$*/traces

$(CHAINS:%=round-%): round-%: runs/%/first/config.json
	$(BIN)/foresight profile --model $(MODEL_$*) --prompts data/prompts/train.txt \
		--configs $(CONFIGS_$*) $(ROUND_$*) --policy runs/$*/first --output runs/$*/on-policy

$(CHAINS:%=runs/%/first/config.json): runs/%/first/config.json: | profile-%
	$(BIN)/train-policy runs/$*/traces --ablate false --output runs/$*/first

$(CHAINS:%=runs/%/policy/config.json): runs/%/policy/config.json: | round-%
	$(BIN)/train-policy runs/$*/traces runs/$*/on-policy --output runs/$*/policy

$(CHAINS:%=runs/%/comparison/report.html): runs/%/comparison/report.html: runs/%/policy/config.json
	$(BIN)/foresight compare --model $(MODEL_$*) \
		--policies '$(subst $(space),$(comma),runs/$*/policy $(RIVALS) $(PEERS_$*))' \
		--prompts data/prompts/test.txt $(COMPARE_$*) --output runs/$*/comparison

# pip's own configuration says where packages come from.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
