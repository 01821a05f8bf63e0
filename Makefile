# make demo       profile, train and compare on the embedded model; prints where the report is
# make test       the fast tests
# make check      lint, format, types, import rules
# make results    the demo's chain with more prompts and configurations, into docs/results
# make reference  train the embedded models again (resumable)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL := checkpoints/tiny-latte

RIVALS := foresight static random fewer-steps
comma := ,
space := $(subst ,, )

# The two chains differ in nothing but their size.
CHAINS := demo results
PROFILE_demo := --configs data/configs/demo.json --limit 12 --rollouts 4
COMPARE_demo := --configs data/configs/demo.json --limit 4
PROFILE_results := --configs data/configs/train.json --limit 72 --rollouts 6
# On a model of Latte's kind: the closest other method in the demo, all of them in the results.
PEERS_demo := $(foreach n,2 3 4,taylorseer[interval=$(n)$(comma)outputs=lite])
PEERS_results := pab fbcache magcache taylorseer fastercache cache-dit teacache
COMPARE_results := --configs data/configs/test.json --limit 16

.PHONY: demo test check results reference $(CHAINS:%=profile-%)
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

results: runs/results/comparison/report.html
	mkdir -p docs/results
	cp $(addprefix runs/results/comparison/,results.csv report.html speed-quality.png) docs/results/
	@echo "The results: $(abspath docs/results)"

reference: $(INSTALLED)
	$(BIN)/python -m foresight.models.reference --model tiny-latte
	$(BIN)/python -m foresight.models.reference --model tiny-wan

# Resumes where it was stopped and returns at once when the trace set is complete.
$(CHAINS:%=profile-%): profile-%: $(INSTALLED)
	$(BIN)/foresight profile --model $(MODEL) --prompts data/prompts/train.txt \
		$(PROFILE_$*) --output runs/$*/traces

$(CHAINS:%=runs/%/policy/config.json): runs/%/policy/config.json: | profile-%
	$(BIN)/train-policy runs/$*/traces --output runs/$*/policy

$(CHAINS:%=runs/%/comparison/report.html): runs/%/comparison/report.html: runs/%/policy/config.json
	$(BIN)/foresight compare --model $(MODEL) \
		--policies '$(subst $(space),$(comma),runs/$*/policy $(RIVALS) $(PEERS_$*))' \
		--prompts data/prompts/test.txt $(COMPARE_$*) --output runs/$*/comparison

# pip's own configuration says where packages come from.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
