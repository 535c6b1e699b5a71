import errno
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from helpers.core.errors import RunError
from helpers.core.files import append_line, find_corruption, replacing_folder
from helpers.core.run import Run
from helpers.host import colab, here, repository, setup
from helpers.host.interface import FOLDER
from helpers.mirror import sync
from helpers.mirror.drive import explain
from tests.drive import mounted
from tests.image import IMAGES, packages

ROOT = Path(__file__).parent.parent


def test_one_command_rewrites_every_badge_and_clone_line(tmp_path):
    for name in ("helpers", "notebooks", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "-m", "helpers.colab", "someone/their-fork"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("rewrote") == 8
    for path in (*tmp_path.glob("notebooks/*.ipynb"), tmp_path / "README.md"):
        text = path.read_text()
        assert (
            repository.REPOSITORY not in text
            and "github/someone/their-fork/blob/main/notebooks" in text
            and "src=https://github.com/someone/their-fork/blob/main/notebooks" in text
        )
    assert "github.com/someone/their-fork" in (tmp_path / "notebooks/01_scrape.ipynb").read_text()


def test_the_same_command_rewrites_what_is_cloned_from_wherever_it_is_given(tmp_path):
    for name in ("helpers", "notebooks", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "helpers.colab", repository.REPOSITORY, "v9.8.7"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("rewrote") == 7, done.stderr
    for path in tmp_path.glob("notebooks/*.ipynb"):
        assert " -b v9.8.7 {home} " in path.read_text()
    for name in ("helpers/host/repository.py", "tools/colab_batch.py"):
        assert 'RELEASE = "v9.8.7"' in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "name", ["only-a-name", "../..", "a/..", "a b/c", "a/b/c", "a/b.git", "-a/b"]
)
def test_a_name_that_is_no_repository_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="give OWNER/NAME"):
        repository.rewrite_repository(name, root=tmp_path)
    with pytest.raises(RunError, match="is no tag or branch"):
        repository.rewrite_repository("a/b", "-b evil", tmp_path)


def test_a_run_comes_back_from_drive_on_a_new_machine(workplace, monkeypatch):
    monkeypatch.setattr(here, "MIRROR", mounted(workplace / "drive"))
    (workplace / "drive").mkdir()
    run = Run("art")
    with replacing_folder(run.model) as beside:
        (beside / "w").write_text("weights")
    run.cache.mkdir()
    (run.cache / "latents").write_text("big")
    sync.sync(run)
    shutil.rmtree(run.folder)  # the machine is lost
    assert "2 files restored" in sync.restore(run)
    assert find_corruption(run.model) is None and not run.cache.exists()


def test_work_that_is_ahead_of_drive_is_never_replaced_by_it(workplace, monkeypatch):
    monkeypatch.setattr(here, "MIRROR", mounted(workplace / "drive"))
    (workplace / "drive").mkdir()
    run = Run("art")
    append_line(run.train_log, "one")
    sync.sync(run)
    append_line(run.train_log, "two")
    sync.restore(run)
    assert run.train_log.read_text() == "one\ntwo\n"


def with_mirror(path, code, **given):
    """What code of this project prints, where RUNS_MIRROR is `path`."""
    names = {
        "core.errors": "RunError",
        "core.files": "write_text",
        "core.run": "Run",
        "host.here": "mirror_words",
        "mirror.sync": "restore, sync",
    }
    imports = [f"from helpers.{module} import {name}" for module, name in names.items()]
    return subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, code])],
        env=os.environ | {"RUNS_MIRROR": str(path)} | given,
        capture_output=True,
        text=True,
    )


def test_a_folder_in_drives_place_is_made_and_named(workplace):
    code = "run = Run('art')\nwrite_text(run.posts, 'x')\nprint(restore(run), sync(run), mirror_words())"
    done = with_mirror("~/not/yet", code, HOME=str(workplace))
    assert f"runs/art is kept on {workplace}/not/yet, " in done.stdout, done.stderr
    assert "free, runs are mirrored to" in done.stdout and "Google" not in done.stdout
    assert (workplace / "not/yet" / FOLDER / "art").is_dir()


def test_a_place_that_cannot_be_made_is_told_in_a_line(workplace):
    (workplace / "file").write_text("in the way")
    code = "try: print(restore(Run('art')))\nexcept RunError as error: print(error)"
    on_colab = {"COLAB_RELEASE_TAG": "a", "PYTHONPATH": str(ROOT / "tests/stub")}
    for path, words in (
        (workplace / "file/x", "cannot be made (Not a directory): name a folder"),
        (colab.GOOGLES / "mine", "where nothing is mounted: mount it, or name a folder"),
        (colab.MOUNT, "where nothing is mounted"),
    ):
        done = with_mirror(path, code, **on_colab)
        assert f"RUNS_MIRROR is {path}, " in done.stdout and words in done.stdout, done.stderr
        assert done.stdout.count("\n") == 1
    assert not colab.MOUNT.exists()


def test_without_drive_the_run_stays_here(workplace):
    run = Run("art")
    assert "saved on this machine only" in sync.restore(run)
    sync.sync(run)


def test_a_key_comes_from_the_environment_or_says_how_to_set_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "value")
    assert here.secret("SOME_KEY") == "value"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(
        RunError, match="^SOME_KEY is not set: set the environment variable SOME_KEY$"
    ):
        here.secret("SOME_KEY")


def test_setup_says_what_moved_since_this_was_checked(tmp_path, monkeypatch):
    (tmp_path / "runtime.txt").write_text(
        f"# old\npython==3.2\npillow==1.0\npapermill=={version('papermill')}\n"
    )
    monkeypatch.setattr(setup, "CHECKED", tmp_path / "runtime.txt")
    words = setup.runtime_words()
    assert f"pillow {version('pillow')} (checked with 1.0)" in words and "papermill" not in words
    assert f"python {sys.version_info.major}.{sys.version_info.minor} (checked with 3.2)" in words


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_has_moved_on_an_image_that_is_as_its_list(image, monkeypatch):
    _, python, title = IMAGES[image]
    monkeypatch.setattr(setup.platform, "python_version_tuple", lambda: (*python.split("."), "9"))
    monkeypatch.setattr(setup, "package_version", lambda name: packages(image).get(name, ""))
    assert setup.runtime_words() == f"runtime    as this was checked with ({title})"


@pytest.mark.parametrize(
    "given",
    [{}, {"FORCE_COLOR": "1"}, {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_RELEASE_TAG": "a"}],
    ids=["plain", "coloured, as newer kernels set it", "Kaggle with its Internet off"],
)
def test_an_index_that_does_not_answer_is_told_as_such(tmp_path, given):
    with socket.socket() as unheard:  # bound and not listening: whoever connects is refused
        unheard.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{unheard.getsockname()[1]}/simple"
        (tmp_path / "requirements.txt").write_text("no-such-package-of-ours\n")
        command = [sys.executable, "-m", "helpers.setup"]
        given |= {"PYTHONPATH": str(ROOT), "PIP_INDEX_URL": index, "PIP_RETRIES": "1"}
        environment = os.environ | given | {"PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "the package index does not answer (" in done.stderr and "refused" in done.stderr
    assert ("switch *Internet* on" in done.stderr) == ("KAGGLE_KERNEL_RUN_TYPE" in given)


def test_pips_own_reason_is_told_where_the_network_is_not_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements.txt").write_text("no-such-package-of-ours\n")
    with pytest.raises(RunError, match="No matching distribution found for no-such-package-of-"):
        setup.installed_words(has_gpu=False)


def test_an_addition_for_the_gpu_that_is_not_to_be_had_is_told_and_stops_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements.txt").write_text("papermill\n")
    (tmp_path / "requirements-gpu.txt").write_text("# why\nno-such-kernels>=1\npillow\n")
    first, second = setup.installed_words(has_gpu=True).splitlines()
    assert first == "installed  nothing: all is there"
    assert "04 and 05 go without: pip could not install no-such-kernels>=1: " in second
    assert setup.installed_words(has_gpu=False) == first


def test_a_path_on_a_drive_that_is_not_mounted_is_told_as_such(workplace, monkeypatch):
    from helpers.config import ScrapeConfig
    from helpers.scrape import folder as folder_source
    from helpers.scrape import instagram_export
    from helpers.scrape.ingest import list_items

    for module in (folder_source, instagram_export):
        monkeypatch.setattr(module, "HOST", colab.HOST)
    for source, folder in (
        ("folder", colab.GOOGLES / "my pictures"),
        ("export", colab.GOOGLES / "a.zip"),
    ):
        config = ScrapeConfig(run="art", source=source, folder=str(folder))
        with pytest.raises(RunError, match="Google Drive is not mounted: run Setup again"):
            list_items(config, Run("art"))
    with pytest.raises(RunError, match="with your images$"):
        list_items(ScrapeConfig(run="art", source="folder", folder="elsewhere"), Run("art"))


def test_a_drive_that_may_only_be_read_is_told_as_such(monkeypatch, tmp_path):
    monkeypatch.setattr(here, "MIRROR", mounted(tmp_path))
    assert "mount it again and allow" in explain(OSError(errno.EROFS, "Read-only file system"))


def test_a_training_longer_than_a_session_says_that_it_goes_on(monkeypatch):
    from helpers.train import resources

    monkeypatch.setattr(resources, "HOST", colab.HOST)
    counted = resources.ResourceEstimate(1, 1, 1.0, 2.0, 0.1, 3, 9.0)
    short = replace(counted, steps_per_s=1.0, step_hours=9.0, hours=11.0)
    assert "session" not in str(short)
    assert "lasts 12 hours at most" in str(replace(short, hours=13.0))
