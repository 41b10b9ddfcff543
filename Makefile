# make demo   virtual environment; boost photographs with the packaged weights; then precompute, train and sample from
#             scratch on a few photographs; images in demo/
# make test   virtual environment, lint, format, contract of layers, types, documentation, and the whole test suite
# make docs   the documentation site in site/
# make clean  remove what both made

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

# The tests start dozens of processes: they compile this package's modules once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo docs test clean
.DELETE_ON_ERROR:

.venv/%.stamp: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing fmboost_jax[$*] (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@

# Strict: a broken link or a page outside the navigation is an error. The variable hides an announcement of mkdocs.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs: .venv/docs.stamp
	$(DOCS)

test: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(DOCS)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10

demo: .venv/demo.stamp
	$(BIN)/python tools/demo_photos.py $(DEMO)/photos
	$(BIN)/python -m fmboost_jax.sample --input $(DEMO)/photos/held_out --compare --out $(DEMO)/packaged
	@echo; echo "Boosted with the packaged weights: $(DEMO)/packaged/*_comparison.png. Now from scratch, a few minutes:"; echo
	$(BIN)/python -m fmboost_jax.precompute --config configs/demo.py --images $(DEMO)/photos/train --out $(DEMO)/data/train
	$(BIN)/python -m fmboost_jax.precompute --config configs/demo.py --images $(DEMO)/photos/held_out --out $(DEMO)/data/held_out
	$(BIN)/python -m fmboost_jax.train --config configs/demo.py --workdir $(DEMO)/run \
		--config.data.dir=$(DEMO)/data/train --config.evaluate.dir=$(DEMO)/data/held_out \
		--config.train.steps=200 --config.evaluate.every=100 --config.checkpoint.every=100
	$(BIN)/python -m fmboost_jax.sample --checkpoint $(DEMO)/run --input $(DEMO)/photos/held_out --compare --out $(DEMO)/boosted
	$(BIN)/python tools/loss_curve.py $(DEMO)/run/metrics.jsonl $(DEMO)/loss.png
	@echo; echo "Images: $(DEMO)/packaged and $(DEMO)/boosted, *_comparison.png (low-res | bilinear | boosted | original); $(DEMO)/loss.png"

clean:
	rm -rf .venv $(DEMO) site
