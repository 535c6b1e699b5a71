"""The paths of all files in a run's folder, runs/NAME. No other module spells out these paths."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.files import read_json, recover_folder, write_json

RUNS = Path("runs")
STAGES = ("scrape", "caption", "dataset", "train", "inference")
METADATA = "metadata.csv"  # a split's file names and texts
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PREVIEW_NAME = re.compile(r"step-\d{6,}\.png")
IMAGE_SUFFIXES = ("jpg", "png", "webp", "heic", "avif", "tif", "psd", "gif")
# names are made by us, never taken
IMAGE_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,96}}\.({'|'.join(IMAGE_SUFFIXES)})")


def notebook_name(stage: str) -> str:
    """Return the name of a stage's notebook, such as `04_train` for `train`."""
    return f"{STAGES.index(stage) + 1:02d}_{stage}"


def check_run_name(name: object) -> None:
    """Raise RunError unless a run's name consists of 1 to 64 letters, digits, `-` or `_`."""
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
        raise RunError(f"run is {name!r}: use 1 to 64 letters, digits, - and _, as in my-art-1")


class _RunPath:
    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", _kind: type) -> Path:
        return run.folder / self.name


class Run:
    """A run's folder, `runs/NAME`, and the paths of its files. Creating a Run object creates no folder."""

    # 01
    images = _RunPath("images")
    posts = _RunPath("posts.jsonl")
    rejected = _RunPath("rejected.jsonl")  # by 01 and 03
    cursor = _RunPath("cursor.json")  # how far a walk through Instagram's posts has come
    # 02
    captions = _RunPath("captions.jsonl")
    caption_batches = _RunPath("caption_batches.json")  # the message batches that were sent, by id
    # 03
    dataset = _RunPath("dataset")
    datasets_before = _RunPath("datasets_before.jsonl")  # a line for each replaced dataset
    taken_back = _RunPath("taken_back.txt")  # images that a person wants in despite flaws
    taken_down = _RunPath("taken_down.txt")  # what must not be here: shortcodes, SHA-256 of images
    # 04
    cache = _RunPath("cache")  # may be deleted at any time
    checkpoints = _RunPath("checkpoints")
    train_log = _RunPath("train_log.jsonl")
    train_lock = _RunPath(".train.lock")
    tensorboard = _RunPath("tensorboard")
    tracker = _RunPath("config/tracker.json")  # the id by which W&B resumes this training
    previews = _RunPath("previews")
    model = _RunPath("model")
    verdict = _RunPath("verdict.json")
    image_losses = _RunPath("image_losses.json")  # of training images, the highest first
    sweep = _RunPath("sweep")  # trials, each a run of its own
    sweep_config = _RunPath("sweep/config.json")
    sweep_journal = _RunPath("sweep/journal.jsonl")
    sweep_table = _RunPath("sweep/trials.json")
    sweep_lock = _RunPath("sweep/.lock")
    trial_folders = _RunPath("sweep/trial-*")  # a pattern
    cache_lock = _RunPath("sweep/.cache.lock")
    promoted = _RunPath("sweep/promoted.json")
    # 05
    samples = _RunPath("samples")
    sample_inputs = _RunPath("samples/inputs")  # pictures that others were drawn from
    grids = _RunPath("grids")
    blind = _RunPath("blind.jsonl")  # what a person picked, who did not know which was which
    export = _RunPath("export")
    before_and_after = _RunPath("previews/before_and_after.png")
    report_html = _RunPath("report.html")
    report_json = _RunPath("report.json")
    # all
    notebooks = _RunPath("notebooks")
    seconds = _RunPath("seconds.json")

    def __init__(self, name: str) -> None:
        check_run_name(name)
        self.name, self.folder = name, RUNS / name
        # a kill may have left one half replaced
        for folder in (self.dataset, self.model, self.export):
            recover_folder(folder)

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def image(self, file_name: str) -> Path:
        """Return the path of an image. Raises RunError for an invalid file name, such as `../x.jpg`."""
        if not IMAGE_NAME.fullmatch(file_name):
            raise RunError(
                f"{file_name!r} is no image name of this project: fix the line of {self.posts} that has it"
            )
        return self.images / file_name

    def sidecar(self, file_name: str) -> Path:
        """Return the path of the .txt file that holds an image's caption."""
        return self.image(file_name).with_suffix(".txt")

    def split(self, name: str) -> Path:
        """Return the folder of a dataset split, which is `train` or `validation`."""
        return self.dataset / name

    def split_metadata(self, name: str) -> Path:
        return self.split(name) / METADATA

    def split_images(self, name: str) -> list[Path]:
        """Return the image files of a split, sorted by name."""
        return sorted(p for p in self.split(name).glob("*") if IMAGE_NAME.fullmatch(p.name))

    def earlier_training(self) -> Path:
        """Return a folder that is not there yet, sweep/before-N, for a training that another one replaces."""
        return next(p for n in count() if not (p := self.sweep / f"before-{n}").exists())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def preview(self, step: int) -> Path:
        return self.previews / f"step-{step:06d}.png"

    def preview_files(self) -> list[Path]:
        """Return the preview image files, sorted by training step."""
        named = [p for p in self.previews.glob("step-*.png") if PREVIEW_NAME.fullmatch(p.name)]
        return sorted(named, key=lambda path: int(path.stem.removeprefix("step-")))

    def config(self, stage: str) -> Path:
        return self.folder / "config" / f"{stage}.json"

    def notebook(self, stage: str) -> Path:
        return self.notebooks / f"{notebook_name(stage)}.ipynb"

    def read_taken_down(self) -> list[str]:
        """Read taken_down.txt: the shortcodes and image hashes (SHA-256) of posts that must not be in this run."""
        return self.taken_down.read_text().split() if self.taken_down.is_file() else []

    def trial(self, number: int) -> "TrialRun":
        """Return a trial of this run's sweep, as a run of its own. Trials are numbered from 0."""
        return TrialRun(self, number)

    def check_settings(self, config: Any) -> None:
        """Raise RunError if a stage's settings belong to another run."""
        if config.run != self.name:
            raise RunError(
                f"the settings are of run {config.run!r}, the folder is {self.folder}: run the settings' cell again"
            )

    def write_config(self, stage: str, config: Any) -> None:
        """Write a stage's settings to config/STAGE.json in the run's folder."""
        write_json(self.config(stage), asdict(config))

    def read_config(self, stage: str) -> dict[str, Any]:
        """Read the settings with which a stage last ran. Raises RunError if the file is missing or damaged."""
        return self._read(self.config(stage), stage, ("run",))

    def read_verdict(self) -> dict[str, Any]:
        """Read verdict.json, the result of a training. Raises RunError if the file is missing or damaged."""
        return self._read(self.verdict, "train", ("base", "last", "words", "steps", "dataset"))

    def _read(self, path: Path, stage: str, names: tuple[str, ...]) -> dict[str, Any]:
        with suppress(ValueError):
            values = read_json(self.require(path, stage))
            if isinstance(values, dict) and all(name in values for name in names):
                return values
        raise RunError(
            f"{path} is damaged: move it away and run {notebook_name(stage)} with run={self.name!r} again"
        )

    def read_seconds(self) -> dict[str, float]:
        """Return each stage's total running time in seconds, without unreadable values."""
        with suppress(OSError, ValueError, AttributeError):
            kept = read_json(self.seconds).items()
            return {stage: s for stage, s in kept if isinstance(s, int | float)}
        return {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage's total running time."""
        all_seconds = self.read_seconds()
        all_seconds[stage] = round(all_seconds.get(stage, 0) + seconds, 2)
        write_json(self.seconds, all_seconds)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside this context to a stage's total running time, unless an error is raised."""
        began = time.perf_counter()
        yield
        self.add_seconds(stage, time.perf_counter() - began)

    def require(self, path: Path, stage: str) -> Path:
        """Return `path` if it exists. Otherwise, raise a RunError that names the notebook to run first."""
        if not path.exists():
            raise RunError(
                f"{path} is missing: run {notebook_name(stage)} with run={self.name!r} first, "
                "or set run to the name that you gave there"
            )
        return path


class TrialRun(Run):
    """A trial of a run's sweep. It is a run with its own folder, but shares the outer run's dataset and cache."""

    lock = _RunPath(".lock")

    def __init__(self, outer: Run, number: int) -> None:
        self.outer, self.number = outer, number
        self.folder = outer.sweep / f"trial-{number:03d}"
        self.name = self.folder.relative_to(RUNS).as_posix()
        self.dataset, self.cache = outer.dataset, outer.cache
        recover_folder(self.model)

    def config(self, stage: str) -> Path:
        return super().config(stage) if stage == "train" else self.outer.config(stage)
