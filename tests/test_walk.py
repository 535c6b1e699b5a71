"""The five notebooks from a person's own folder to a report, as a shell runs them."""

import json
import subprocess
import sys

import nbformat
import papermill
import pytest
from diffusers import DiffusionPipeline

from tests.conftest import lines, typed

SMALL = {
    "max_steps": 3,
    "train_batch_size": 2,
    "resolution_px": 32,
    "num_inference_steps": 2,
    "min_side_px": 32,
}
MORE = {
    "judged_samples": 8,
    "save_every_steps": 2,
    "validate_every_steps": 1,
    "validation_pairs": 16,
    "prior_share": 0.2,
}
MADE_ONCE = ("posts.jsonl", "train_log.jsonl", "report.html")


def batch(*arguments, **given):
    command = [sys.executable, "-m", "helpers.batch", *arguments, *typed(given)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_folder_of_photographs_walks_to_a_report(workplace, pictures, tiny_base):
    given = {"source": "folder", "folder": pictures, "base_model": tiny_base, "more": MORE, **SMALL}
    done = batch("mine", **given)
    assert done.returncode == 0, done.stderr
    run = workplace / "runs/mine"
    for name in (
        "config/scrape.json config/caption.json config/dataset.json config/train.json config/inference.json "
        "posts.jsonl captions.jsonl dataset/train/metadata.csv dataset/validation/metadata.csv dataset/README.md "
        "checkpoints/step-000003/manifest.json train_log.jsonl tensorboard previews/step-000000.png "
        "model/model_index.json samples report.html report.json notebooks/05_inference.ipynb"
    ).split():
        assert (run / name).exists(), name
    assert len(lines(run / "posts.jsonl")) == 12
    assert done.stdout.count("\n") >= 10 and "report.html" in done.stdout.splitlines()[-1]
    assert "captions end in the demo's suffix, “in a mira watercolor style”: set" in done.stdout
    assert DiffusionPipeline.from_pretrained(run / "model")("a cat", num_inference_steps=1).images
    assert_executed_copies_are_clean(run)
    assert_a_second_walk_does_nothing_twice(run, given)


def assert_a_second_walk_does_nothing_twice(run, given):
    before = {run / name: (run / name).stat().st_mtime_ns for name in MADE_ONCE}
    again = batch("mine", **given)
    assert again.returncode == 0, again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert_executed_copies_are_clean(run)


def assert_executed_copies_are_clean(run):
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        text = path.read_text()
        assert "Traceback" not in text and "Warning" not in text, path
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        pictures = sum("image/png" in o.get("data", {}) for o in outputs)
        assert len(outputs) < 40 and pictures >= 6, path  # four that explain, and the run's own


def test_each_notebook_runs_alone_by_plain_papermill(workplace, tmp_path):
    for name, more in (("01_scrape", {"demo_posts": 4}), ("02_caption", {}), ("03_dataset", {})):
        given = {"run": "alone", "more": more}
        target = str(tmp_path / "out.ipynb")
        papermill.execute_notebook(f"notebooks/{name}.ipynb", target, given, progress_bar=False)
    (cell,) = [c for c in nbformat.read(target, as_version=4).cells if c.id == "dataset-09"]
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    for name, needed in (("04_train", "03_dataset"), ("05_inference", "04_train")):
        with pytest.raises(papermill.PapermillExecutionError) as refused:
            given = {"run": "empty"}
            papermill.execute_notebook(f"notebooks/{name}.ipynb", target, given, progress_bar=False)
        assert refused.value.ename == "RunError" and "\n" not in refused.value.evalue
        assert f"run {needed} with run='empty' first" in refused.value.evalue
    kept = json.loads((workplace / "runs/alone/config/scrape.json").read_text())
    assert kept["demo_posts"] == 4 and (workplace / "runs/alone/dataset/README.md").is_file()
