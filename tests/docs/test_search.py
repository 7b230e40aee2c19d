"""The search of the site finds the right page first, and names are links. `hatch run docs:test` asks it in node."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = {
    "val_loss": "migrating/keras/#history-and-names",
    "restore_best_weights": "cookbook/#how-do-i-restore-the-best-weights",
    "jupyter": "tutorials/notebook/",
    "mixed precision": "gpu/",
    "bf16": "gpu/#mixed-precision-bf16-and-fp16",
    "out of memory": "gpu/#when-memory-runs-out-oom",
    "channels_last": "gpu/#images-channels-last",
    "oom": "gpu/#when-memory-runs-out-oom",
    "progress bar": "cookbook/#how-do-i-show-a-progress-bar",
    "seed": "cookbook/#how-do-i-set-the-seed-for-a-reproducible-run",
    "reproducible": "cookbook/#how-do-i-set-the-seed-for-a-reproducible-run",
    "keyerror": "faq/#metrics-and-monitor",
    "class weight": "cookbook/#how-do-i-set-class-weights",
    "several gpus": "tutorials/several_gpus/",
    "learning rate": "cookbook/#which-learning-rate-should-i-start-with",
    "early stopping": "cookbook/#how-do-i-stop-early-on-a-metric",
    "earlystopping": "reference/callbacks/#fit_callbacks.EarlyStopping",
    "CheckpointSaver": "reference/callbacks/#fit_callbacks.CheckpointSaver",
    "resume": "resume/",
    "wandb": "loggers/#weights--biases",
}
"""A query, and the section that is the first result."""
NOT_INDEXED = ("tests/", "benchmarks/captured.py", "template/", "packages/fit-core/src/")

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="hatch run docs:test installs mkdocs"),
    pytest.mark.skipif(not shutil.which("node"), reason="the search runs in node"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", ".mkdocs.yml", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def results(site):
    (worker,) = site.glob("assets/javascripts/workers/search.*.min.js")
    script = Path(__file__).with_name("search.js")
    command = ["node", str(script), str(worker), str(site / "search" / "search_index.json"), *FIRST]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("query", FIRST)
def test_the_right_page_is_found_first(results, query):
    assert results[query][0][0] == FIRST[query], results[query][:3]


def test_tests_templates_and_sources_are_not_indexed(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert not [entry["location"] for entry in index["docs"] if entry["location"].startswith(NOT_INDEXED)]


def test_names_in_tables_are_links_and_versions_are_shown(site):
    readme = (site / "packages" / "fit-callbacks" / "index.html").read_text()
    keras = (site / "migrating" / "keras" / "index.html").read_text()
    for page in (readme, keras):
        assert 'href="../../reference/callbacks/#fit_callbacks.EarlyStopping"><code>EarlyStopping' in page
    assert "<td><code>EarlyStopping(monitor, patience)</code></td>" in keras  # that of Keras
    assert "fit-core 1." in readme
