# `make run` and `make test` are all that a fresh machine with Python, pip and make needs.
PYTHON ?= python3
BIN := .venv/bin
# The longest first: nothing is known of what they take before the first run.
METHODS := dskd,stfpm,dcam,snl

.PHONY: run test test-all check format clean

run: .venv/.installed
	$(BIN)/kdbench run --methods $(METHODS) --setting multiclass
	$(BIN)/kdbench report

test: .venv/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# Also what starts Ray, trains on real images or takes more than a few seconds.
test-all: test
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network"

format: .venv/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info

# requirements.lock only constrains: what is installed is what pyproject.toml names. uv is used when it is there.
# Python compiles what it imports when it does: all of PyTorch beforehand would take longer than the first run.
define install
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv -q --allow-existing --python $(PYTHON) .venv && \
	    uv pip install -q --python $(BIN)/python -c requirements.lock -e '$(1)'; \
	else \
	    $(PYTHON) -m venv .venv && \
	    $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c requirements.lock -e '$(1)'; \
	fi
	@touch $@
endef

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdbench needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "installing into .venv (once; PyTorch with CUDA is about 3 GB)"
	$(call install,.)

.venv/.tools: .venv/.installed
	@echo "installing what the tests need"
	$(call install,.[dev])
