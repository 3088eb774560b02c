# `make run` and `make test` are all that a fresh machine with Python, pip and make needs.
PYTHON ?= python3
BIN := .venv/bin
# The longest first: nothing is known of what they take before the first run.
METHODS := dskd,stfpm,dcam,snl
PUBLISHED := reports/published

.PHONY: run test test-all docs bench bench-against bench-profile bench-peers equal-weights results searches tables format clean

run: .venv/.installed
	$(BIN)/kdbench run --methods $(METHODS) --setting multiclass
	$(BIN)/kdbench report

test: .venv/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# Also what starts Ray, trains on real images, opens a browser or takes more than a few seconds.
test-all: test .venv/.extras
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network"

# The site in build/site, a warning being an error (-q would hide them from --strict); it fetches nothing.
# Material prints an advertisement unless it is told not to.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site is in build/site: $(BIN)/python -m http.server --directory build/site"

# How long the parts of a cell take here.
bench: .venv/.bench
	$(BIN)/python -m pytest -q tests/benchmarks/bench_speed.py --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# Where the time of a grid goes; writes docs/profile.md. DATA has the folder mvtec_ad.
bench-profile: .venv/.installed
	KDBENCH_DATA="$(DATA)" $(BIN)/python tests/benchmarks/share.py --out docs/profile.md --methods stfpm,dcam,snl,dskd,rd4ad \
	    --dataset mvtec_ad --setting oneclass --epochs 2 --set all.image_size=128 --backbone resnet18.tv_in1k --weights "$(WEIGHTS)"

# The same work by anomalib and adeval, in turn, in an environment of their own. What is found replaces the
# file of this machine in tests/benchmarks/peers/; docs/performance.md has a section for each of these.
# IMAGES is a category in MVTec layout, WEIGHTS those of torchvision's ResNet-18.
bench-peers: .venv-peers/.installed
	.venv-peers/bin/python tests/benchmarks/peers.py --images "$(IMAGES)" --weights "$(WEIGHTS)" $(if $(PRECISION),--precision $(PRECISION))

# Training steps of this checkout against those of COMMIT, in turn. WEIGHTS are those of torchvision's ResNet-18.
bench-against: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/against.py "$(COMMIT)" --weights "$(WEIGHTS)"

# The same weights in kdbench and in anomalib; writes docs/equal-weights.md.
equal-weights: .venv-peers/.installed
	.venv-peers/bin/python tests/benchmarks/equal_weights.py --out docs/equal-weights.md

# What docs/results.md reads: takes over the committed rows, runs what they and results/ lack, then renders.
# DATA has the folders mvtec_ad, visa and magnetic_tile; WEIGHTS are those of torchvision's ResNet-18.
results: .venv/.installed
	$(call compared,first-comparison,--into docs/results.md)
	$(call compared,first-ablations,)
	$(call compared,second-comparison,--into README.md --into docs/longer-training.md)

# $(1) is a folder of grids, $(2) what else the report does.
define compared
	for grid in $(PUBLISHED)/$(1)/*.toml; do \
	    KDBENCH_DATA="$(DATA)" $(BIN)/kdbench run --config $$grid --weights "$(WEIGHTS)" \
	        --published $(PUBLISHED)/$(1)/rows || exit; \
	done
	KDBENCH_DATA="$(DATA)" $(BIN)/kdbench probe --results results/$(1) --weights "$(WEIGHTS)"
	$(BIN)/kdbench report --results results/$(1) --out $(PUBLISHED)/$(1) --rows $(PUBLISHED)/$(1)/rows $(2)
endef

# The searches of readings: takes over the committed trials, runs the others (hours), then renders.
searches: .venv/.extras
	for search in $(PUBLISHED)/readings/*.toml; do \
	    KDBENCH_DATA="$(DATA)" $(BIN)/kdbench sweep --config $$search --weights "$(WEIGHTS)" \
	        --published $(PUBLISHED)/readings/rows --audit || exit; \
	done
	$(BIN)/kdbench report --results results/readings --out $(PUBLISHED)/readings --rows $(PUBLISHED)/readings/rows

# After a change of tables: those of the published reports, from their committed rows, and the golden files of the tests.
# Figures and pages need all of results/: `make results` renders these.
tables: .venv/.tools
	$(call rendered,first-comparison,--into docs/results.md)
	$(call rendered,first-ablations,)
	$(call rendered,second-comparison,--into README.md --into docs/longer-training.md)
	$(call rendered,readings,)
	PYTHONPATH=tests $(BIN)/python tests/reports/test_report_tables.py

define rendered
	$(BIN)/kdbench report --results $(PUBLISHED)/$(1)/rows --out build/$(1) $(2)
	cp build/$(1)/leaderboard.* $(PUBLISHED)/$(1)/
endef

format: .venv/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-peers build dist *.egg-info

# requirements.lock only constrains: what is installed is what pyproject.toml names. uv is used when it is there.
# $(1) is the environment, $(2) what is installed into it.
define install
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv -q --allow-existing --python $(PYTHON) $(1) && \
	    uv pip install -q --python $(1)/bin/python -c requirements.lock $(2); \
	else \
	    $(PYTHON) -m venv $(1) && \
	    $(1)/bin/python -m pip install -q --disable-pip-version-check -c requirements.lock $(2); \
	fi
	@touch $@
endef

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdbench needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "installing into .venv (once; PyTorch with CUDA is about 3 GB)"
	$(call install,.venv,-e .)

.venv/.tools: .venv/.installed
	@echo "installing what the tests need"
	$(call install,.venv,-e '.[dev]' -e '.[deploy]' -e '.[serve]')

.venv/.extras: .venv/.tools
	$(call install,.venv,-e '.[browser]' -e '.[docs]' -e '.[sweep]')

.venv/.docs: .venv/.installed
	$(call install,.venv,-e '.[docs]')

.venv/.bench: .venv/.tools
	$(call install,.venv,-e '.[bench]')

.venv-peers/.installed: pyproject.toml requirements.lock
	$(call install,.venv-peers,-e . anomalib==2.7.0 adeval==1.1.0)
