# Two commands: `make demo` and `make test`. Both set up everything they need in .venv; `make` lists the others.
PYTHON ?= python3
PHOTOS ?= examples/photos
MODEL ?= untrained:vitt14
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
QUERY ?= $(firstword $(wildcard $(PHOTOS)/coffee_crop.jpg) $(wildcard $(PHOTOS)/*.jpg) $(wildcard $(PHOTOS)/*.png))
PAIR ?= $(or $(wildcard $(PHOTOS)/motorcycle_left.jpg $(PHOTOS)/motorcycle_right.jpg),$(wordlist 1,2,$(wildcard $(PHOTOS)/*.jpg)))

.DEFAULT_GOAL := help
.PHONY: help demo test check wheel-test bench clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dinov2kit needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	@touch $@

examples/photos: $(VENV)/ready examples/make_photos.py
	@$(BIN)/python examples/make_photos.py $@
	@touch $@

demo: export DINOKIT_HOME := $(abspath $(DEMO)/home)
demo: $(VENV)/ready $(if $(filter examples/photos,$(PHOTOS)),examples/photos)  ## index, search and match real photos (PHOTOS=dir, MODEL=name)
	@$(if $(filter untrained:%,$(MODEL)),echo "The model $(MODEL) is untrained: a seeded random network. It sees colour and layout, not meaning.")
	@mkdir -p $(DEMO)
	$(BIN)/dinokit index $(PHOTOS) -i $(DEMO)/index --model $(MODEL)
	$(MAKE) --no-print-directory demo-pictures PHOTOS=$(PHOTOS)

.PHONY: demo-pictures
demo-pictures: export DINOKIT_HOME := $(abspath $(DEMO)/home)
demo-pictures:
	$(BIN)/dinokit search $(QUERY) -k 7 -i $(DEMO)/index --montage $(DEMO)/search.jpg --html $(DEMO)/search.html
	$(BIN)/dinokit match $(PAIR) --model $(MODEL) --draw $(DEMO)/match.png --overwrite
	@echo
	@echo "Photos like $(notdir $(QUERY)):  $(DEMO)/search.jpg  and as a page  $(DEMO)/search.html"
	@echo "The same places in two photos:  $(DEMO)/match.png"

test: $(VENV)/ready  ## run the whole suite
	$(BIN)/python -m pytest -q

check: $(VENV)/ready  ## format, lint, types, suite: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

wheel-test: $(VENV)/ready  ## build a wheel, install it outside the checkout, run the suite against it
	rm -rf build/wheel-test dist
	$(BIN)/python -m build --quiet --wheel
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "$$(ls dist/*.whl)[cpu,dev]"
	cp -r tests examples docs README.md build/wheel-test/
	cp pyproject.toml build/wheel-test/pytest-settings.toml
	cd build/wheel-test && venv/bin/python -c "import dinov2kit; assert 'site-packages' in dinov2kit.__file__"
	cd build/wheel-test && venv/bin/python -m pytest -q -c pytest-settings.toml --rootdir . tests

bench: $(VENV)/ready  ## measure what docs/results.md reports (about 15 minutes)
	$(BIN)/python benchmarks/embedding.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/incremental.py
	$(BIN)/python benchmarks/crash.py

clean:  ## remove what these commands made
	rm -rf $(VENV) $(DEMO) build dist examples/photos *.egg-info
