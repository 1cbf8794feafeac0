# Two commands: `make demo` and `make test`. Both set up everything they need in .venv; `make` lists the others.
PYTHON ?= python3
EXTRA ?= cpu
MODEL ?= dinokit_vitt14
PHOTOS ?= examples/photos

BIN := .venv/bin
READY := .venv/ready-$(EXTRA)
WHEEL := build/wheel-test
PYTEST := python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

OWN := $(filter examples/photos,$(PHOTOS))
INDEX := .demo/index-$(shell echo '$(PHOTOS) $(MODEL)' | cksum | cut -d ' ' -f 1)
QUERY ?= $(if $(OWN),$(PHOTOS)/coffee_crop.jpg,$(shell find '$(PHOTOS)' -iname '*.jpg' | sort | head -n 1))
PAIR ?= $(if $(OWN),$(PHOTOS)/motorcycle_left.jpg $(PHOTOS)/motorcycle_right.jpg,$(shell find '$(PHOTOS)' -iname '*.jpg' | sort | head -n 2))
UNTRAINED := The model $(MODEL) is untrained: a seeded random network that sees colour and layout, not meaning.

.DEFAULT_GOAL := help
.PHONY: help demo which-model test check wheel-test bench clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F '|' '{ printf "make %-11s %s\n", $$1, $$2 }'

demo: export DINOKIT_HOME := $(if $(filter untrained:%,$(MODEL)),$(CURDIR)/.demo/home,$(DINOKIT_HOME))
demo: which-model $(READY) $(if $(OWN),examples/photos)  ## index, search and match photos (PHOTOS=folder, MODEL=name)
	@mkdir -p .demo
	$(BIN)/dinokit index '$(PHOTOS)' -i $(INDEX) --model $(MODEL)
	$(BIN)/dinokit search '$(QUERY)' -k 7 -i $(INDEX) --montage .demo/search.jpg --html .demo/search.html
	$(BIN)/dinokit dedup -i $(INDEX) --flips --html .demo/copies.html --overwrite
	$(BIN)/dinokit match $(PAIR) --model $(MODEL) --draw .demo/match.png --overwrite
	$(BIN)/dinokit pca $(PAIR) --model $(MODEL) --mask none --out .demo/pca.png --overwrite
	@echo
	@echo "Photos like $(notdir $(QUERY)):  .demo/search.jpg and, as a page, .demo/search.html"
	@echo "Copies of each other, nothing is removed:  .demo/copies.html"
	@echo "The same places in two photos:  .demo/match.png; the same parts in the same colours:  .demo/pca.png"

which-model:
	@echo "$(if $(filter untrained:%,$(MODEL)),$(UNTRAINED),The model is $(MODEL).)"

test: $(READY)  ## run the whole suite
	$(BIN)/$(PYTEST)

check: $(READY)  ## format, lint, types and the suite: what must pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/$(PYTEST)

wheel-test: $(READY)  ## build the wheel, install it outside the checkout, run the suite against it
	rm -rf $(WHEEL) dist
	$(BIN)/python -m build --wheel >/dev/null
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python $(PIP) "$$(ls dist/*.whl)[$(EXTRA),dev]"
	cp -r tests docs benchmarks pyproject.toml *.md $(WHEEL)/
	mkdir $(WHEEL)/examples && cp examples/*.py $(WHEEL)/examples/
	cd $(WHEEL) && venv/bin/python -c "import dinov2kit; assert 'site-packages' in dinov2kit.__file__"
	cd $(WHEEL) && venv/bin/$(PYTEST)

bench: $(READY)  ## measure what docs/results.md reports (about 25 minutes)
	for name in embedding search incremental crash "matching cost" allpairs curation "ray_index --photos examples/photos"; do set -- $$name; f=$$1; shift; $(BIN)/python benchmarks/$$f.py "$$@" || exit 1; done

clean:  ## remove what these commands made
	rm -rf .venv .demo build dist examples/photos *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "this Python cannot make environments; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python $(PIP) -e '.[$(EXTRA),dev]'
	@touch $@

examples/photos: $(READY) examples/make_photos.py
	@$(BIN)/python examples/make_photos.py $@
	@touch $@
