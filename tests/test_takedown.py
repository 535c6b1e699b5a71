import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from helpers.caption.ledger import verify_captions
from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, write_json
from helpers.core.records import Rejection, read_rows
from helpers.core.run import Run
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.curate import curate, take_back
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import split
from helpers.dataset.takedown import remove
from helpers.host import here
from helpers.mirror import sync
from helpers.scrape.ingest import verify_images
from tests.conftest import make_dataset, photograph
from tests.drive import mounted
from tests.kills import kills_at_every_operation

GONE = "C1a2B3c4D5e"
MAY_NAME_IT = {"taken_down.txt", "datasets_before.jsonl"}


@pytest.fixture
def run(workplace, tmp_path):
    """A run of eight images, two of them of the post GONE."""
    folder = tmp_path / "art"
    for i, name in enumerate((f"{GONE}_1", f"{GONE}_2", *(f"other {n}" for n in range(6)))):
        photograph(folder / f"{name}.jpg", i).with_suffix(".txt").write_text(f"picture {i}")
    return make_dataset("art", folder)


def traces(run):
    """The files of the run that still have or name the post."""
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    found = {p for p in files if GONE in str(p) or GONE.encode() in p.read_bytes()}
    return {path.relative_to(run.folder).as_posix() for path in found} - MAY_NAME_IT


def trained(run, step=100):
    """What a checkpoint and a model leave that say which dataset they are of."""
    hash = folder_hash(run.dataset)
    for path in (run.checkpoint(step) / "state.json", run.verdict, run.model / "model_index.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"step": step, **({"dataset": hash} if path != run.model else {})})


def test_a_post_is_gone_from_everywhere(run):
    (run.cache / "latents").mkdir(parents=True)
    take_back(run, f"{GONE}_1.jpg")
    take_back(run, "other-0_1.jpg")
    assert len(traces(run)) > 6
    removal = remove(run, GONE)
    assert traces(run) == set() and not run.cache.exists()
    assert run.taken_back.read_text() == "other-0_1.jpg\n"
    assert removal.files == (f"{GONE}_1.jpg", f"{GONE}_2.jpg") and removal.seen == ()
    assert "no checkpoint or model was trained on it" in str(removal)
    assert "6 images of 6 posts" in verify_images(run) and "6 captions" in verify_captions(run)
    assert (
        len(read_records(run.dataset)) == 6
        and "6 images" in (run.dataset / "README.md").read_text()
    )
    verify_dataset(run)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(run.dataset), cache_dir="cache")
    assert sum(map(len, loaded.values())) == 6


def test_it_says_what_has_seen_the_post(run):
    in_train = {r.shortcode for r in read_records(run.dataset) if r.split == "train"}
    trained(run)
    config = DatasetConfig(run="art", min_side_px=32, suffix=" in another style")
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.25, 0)), left_out)  # another dataset since
    unknown = run.checkpoint(200) / "state.json"
    unknown.parent.mkdir()
    write_json(unknown, {"dataset": "of another run"})
    said = str(remove(run, GONE))
    verb = "was trained on it" if GONE in in_train else "was measured on it, not trained"
    assert f"{run.checkpoint(100)} {verb}" in said and f"{run.model} {verb}" in said
    assert f"{run.checkpoint(200)} may have been trained on it" in said
    assert remove(run, GONE).seen  # asked again, it still knows


def test_a_model_of_the_dataset_without_the_post_has_not_seen_it(run):
    remove(run, GONE)
    trained(run)
    assert remove(run, GONE).seen == ()


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_each_file_operation_leaves_the_old_dataset_or_the_new_and_a_rerun_ends_it(
    run, step
):
    old, kills = folder_hash(run.dataset), 0
    hashes = set()
    for number in kills_at_every_operation(run.folder, lambda: remove(Run("art"), GONE), step):
        here = Run("art")  # which puts back what a kill left aside
        assert find_corruption(here.dataset) is None
        hashes.add(folder_hash(here.dataset))
        verify_images(here)
        verify_captions(here)
        kills += 1
        if number:
            remove(here, GONE)
        assert traces(here) == set(), number
        new = folder_hash(here.dataset)
    assert hashes == {old, new} and kills > 20 / step


def test_01_does_not_take_it_in_again(run, tmp_path):
    remove(run, GONE)
    make_dataset("art", tmp_path / "art")
    assert not list(run.images.glob(f"{GONE}_*"))
    assert GONE not in {record.shortcode for record in read_records(run.dataset)}


def test_where_an_old_copy_brings_it_back_03_leaves_it_out(run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run.folder, old)
    remove(run, GONE)
    shutil.copytree(old, run.folder, dirs_exist_ok=True)
    run.posts.write_bytes((old / run.posts.name).read_bytes())
    make_dataset("art", tmp_path / "art")
    assert GONE not in {record.shortcode for record in read_records(run.dataset)}
    reasons = {row.file_name: row.reason for row in read_rows(run.rejected, Rejection)}
    assert "is of a post that runs/art/taken_down.txt lists" in reasons[f"{GONE}_1.jpg"]
    assert remove(run, GONE).files and traces(run) == set()


def test_the_mirror_on_drive_loses_it_too(run, tmp_path, monkeypatch):
    drive = tmp_path / "drive"
    drive.mkdir()
    monkeypatch.setattr(here, "MIRROR", mounted(drive))
    sync.restore(run)
    assert "is kept" in sync.sync(run)
    pictures = [path.read_bytes() for path in run.images.glob(f"{GONE}_*.jpg")]
    assert len(pictures) == 2 and any(found_in(drive, picture) for picture in pictures)
    remove(run, GONE)
    assert not any(found_in(drive, picture) for picture in pictures)
    shutil.rmtree(run.folder)
    sync.restore(run)
    assert traces(run) == set() and find_corruption(run.dataset) is None
    assert len(list(run.images.glob("*.jpg"))) == 6


def found_in(folder, content):
    return any(content in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_is_on_drive_alone_is_taken_down_too(run, tmp_path, monkeypatch):
    drive = tmp_path / "drive"
    drive.mkdir()
    monkeypatch.setattr(here, "MIRROR", mounted(drive))
    sync.sync(run)
    pictures = [path.read_bytes() for path in run.images.glob(f"{GONE}_*.jpg")]
    shutil.rmtree(run.folder)
    remove(run, GONE)
    assert traces(run) == set() and not any(found_in(drive, picture) for picture in pictures)


def test_a_dataset_left_with_nothing_sends_to_03(workplace, tmp_path):
    folder = tmp_path / "one"
    for i in range(5):
        photograph(folder / f"{GONE}_{i}.jpg", i).with_suffix(".txt").write_text(f"picture {i}")
    run = make_dataset("one", folder)
    remove(run, GONE)
    assert traces(run) == set()
    with pytest.raises(RunError, match="metadata.csv is missing: run 03_dataset"):
        verify_dataset(run)


@pytest.mark.parametrize("shortcode", ["nothere", "other", "../x", "", "a/b", "*"])
def test_what_is_no_post_of_the_run_touches_nothing(run, shortcode):
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="has no post|is no post of"):
        remove(run, shortcode)
    assert before == {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [f"{GONE}_2.jpg", "other 3.jpg"])
def test_a_post_may_be_named_by_an_image(run, name):
    post = GONE if GONE in name else "other-3"
    assert str(remove(run, name)).startswith(f"{post} is taken down: {post}")


def test_a_shortcode_that_begins_like_another_spares_it(run):
    images = run.images / f"{GONE}_9_1.jpg"
    images.write_bytes(run.image("other-0_1.jpg").read_bytes())
    remove(run, GONE)
    assert images.is_file()


def test_the_command_says_it_in_lines(run):
    def command(*words):
        args = [sys.executable, "-m", "helpers.dataset.takedown", *words]
        return subprocess.run(args, capture_output=True, text=True, env=dict(os.environ))

    done = command("art", GONE)
    assert done.returncode == 0 and done.stdout.startswith(f"{GONE} is taken down: {GONE}_1.jpg")
    done = command("art", "nothere")
    assert done.returncode == 1
    assert done.stderr == (
        "error: runs/art has no post nothere: look it up in runs/art/posts.jsonl\n"
    )


def test_no_row_of_the_metadata_is_left_behind(run):
    remove(run, GONE)
    for side in ("train", "validation"):
        path = Path(run.split_metadata(side))
        if path.is_file():
            with path.open(newline="") as file:
                names = {row["file_name"] for row in csv.DictReader(file)}
            assert names == {image.name for image in run.split_images(side)}
