# Two commands: `make run` finds the faces of a video, `make test` proves that this checkout works. Both set up all they need.

PYTHON ?= python3
VENV   ?= .venv
VIDEO  ?= tests/media/sample_4k.mp4
OUTPUT ?= faces
MODEL  ?=
ARGS   ?=

# A checkpoint has to be exported first, which takes torch and onnx; an .onnx file or a name of the zoo does not.
RUN_EXTRA := $(if $(filter %.pth %.pt,$(MODEL)),export,base)

.PHONY: run test slow lint clean

run: $(VENV)/installed-$(RUN_EXTRA)
	$(VENV)/bin/retinastream detect $(VIDEO) $(if $(MODEL),--model $(MODEL)) --output $(OUTPUT) --overwrite $(ARGS)

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest

slow: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-$(RUN_EXTRA): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.$(if $(filter export,$(RUN_EXTRA)),[export])'
	@touch '$@'

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch '$@'

clean:
	rm -rf $(VENV) build dist *.egg-info
