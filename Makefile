# make setup   everything a job needs, into .venv           (ARGS=--system lets it use apt-get,
#              ARGS=--gpu builds Horovod with NCCL)
# make demo    a WGAN-GP on NP ranks, compressed and not    (make demo NP=2 STEPS=20)
# make test    linters, then every test                     (TESTS=tests/unit, PYTEST_ARGS="-k name")
# make lint    linters alone
# make clean   removes what was built; distclean also .venv

PYTHON ?= python3
NP ?= 4
STEPS ?= 1000
TESTS ?= tests/unit tests/parallel tests/integration
BIN := .venv/bin

.PHONY: setup demo test lint check clean distclean

setup:
	$(PYTHON) -m launch.setup $(ARGS)

demo: setup
	$(BIN)/python examples/demo.py --np $(NP) --steps $(STEPS) $(DEMO_ARGS)

test: setup check
	$(BIN)/python -m pytest $(TESTS) $(PYTEST_ARGS)

lint: setup check

check:
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f horovod_qoda/native/*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
