"""A run's folder: the only module that knows the name of a file in it."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.files import read_json, recover_folder, write_json

RUNS = Path("runs")
STAGES = ("scrape", "caption", "dataset", "train", "inference")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PREVIEW_NAME = re.compile(r"step-\d{6,}\.png")
IMAGE_SUFFIXES = ("jpg", "png", "webp", "heic", "avif", "tif", "psd", "gif")
# names are made by us, never taken
IMAGE_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,96}}\.({'|'.join(IMAGE_SUFFIXES)})")


def notebook_name(stage: str) -> str:
    """`train` to `04_train`."""
    return f"{STAGES.index(stage) + 1:02d}_{stage}"


class _In:
    """A path in the run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", _kind: type) -> Path:
        return run.folder / self.name


class Run:
    """The folder `runs/NAME` and what lies where in it. Making a Run makes no folder."""

    # 01
    images = _In("images")
    posts = _In("posts.jsonl")
    rejected = _In("rejected.jsonl")  # by 01 and 03
    cursor = _In("cursor.json")  # how far the walk on Instagram has come
    # 02
    captions = _In("captions.jsonl")
    caption_batches = _In("caption_batches.json")  # sent to be captioned, and their ids
    # 03
    dataset = _In("dataset")
    datasets_before = _In("datasets_before.jsonl")  # a line per replaced one
    taken_back = _In("taken_back.txt")  # images that a person wants in, whatever their flaws
    taken_down = _In(
        "taken_down.txt"
    )  # what must not be here: posts' shortcodes, pictures' SHA-256
    # 04
    cache = _In("cache")  # may be deleted at any time
    checkpoints = _In("checkpoints")
    train_log = _In("train_log.jsonl")
    train_lock = _In(".train.lock")
    tensorboard = _In("tensorboard")
    tracker = _In("config/tracker.json")  # by which W&B knows this training again
    previews = _In("previews")
    model = _In("model")
    verdict = _In("verdict.json")
    image_losses = _In("image_losses.json")  # of training images, the worst-fitting first
    sweep = _In("sweep")  # trials, each a run of its own
    sweep_config = _In("sweep/config.json")
    sweep_journal = _In("sweep/journal.jsonl")
    sweep_table = _In("sweep/trials.json")
    sweep_lock = _In("sweep/.lock")
    trial_folders = _In("sweep/trial-*")  # a pattern
    cache_lock = _In("sweep/.cache.lock")
    promoted = _In("sweep/promoted.json")
    # 05
    samples = _In("samples")
    export = _In("export")
    before_and_after = _In("previews/before_and_after.png")
    report_html = _In("report.html")
    report_json = _In("report.json")
    # all
    notebooks = _In("notebooks")
    seconds = _In("seconds.json")

    def __init__(self, name: str) -> None:
        """Raises RunError for a name that is not letters, digits, `-` and `_`."""
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            raise RunError(f"run is {name!r}: use 1 to 64 letters, digits, - and _, as in my-art-1")
        self.name, self.folder = name, RUNS / name
        for folder in (self.dataset, self.model, self.export):
            recover_folder(folder)

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def image(self, file_name: str) -> Path:
        """The path of an image. Raises RunError for a name that we did not make (`../x.jpg`)."""
        if not IMAGE_NAME.fullmatch(file_name):
            raise RunError(
                f"{file_name!r} is no image name of this project: mend the line of {self.posts} that has it"
            )
        return self.images / file_name

    def sidecar(self, file_name: str) -> Path:
        """The caption file beside an image, as trainers for this work conventionally name it."""
        return self.image(file_name).with_suffix(".txt")

    def split(self, name: str) -> Path:
        """The folder of a split, `train` or `validation`."""
        return self.dataset / name

    def split_metadata(self, name: str) -> Path:
        return self.split(name) / "metadata.csv"

    def split_images(self, name: str) -> list[Path]:
        """The image files of a split, in order of name."""
        return sorted(
            path for path in self.split(name).glob("*") if IMAGE_NAME.fullmatch(path.name)
        )

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def preview(self, step: int) -> Path:
        return self.previews / f"step-{step:06d}.png"

    def preview_files(self) -> list[Path]:
        """The previews that there are, in order of step."""
        named = [p for p in self.previews.glob("step-*.png") if PREVIEW_NAME.fullmatch(p.name)]
        return sorted(named, key=lambda path: int(path.stem.removeprefix("step-")))

    def config(self, stage: str) -> Path:
        return self.folder / "config" / f"{stage}.json"

    def notebook(self, stage: str) -> Path:
        return self.notebooks / f"{notebook_name(stage)}.ipynb"

    def read_taken_down(self) -> list[str]:
        """Shortcodes of posts that were taken down, in the order in which they were, and hashes of their pictures."""
        return self.taken_down.read_text().split() if self.taken_down.is_file() else []

    def trial(self, number: int) -> "TrialRun":
        """The run of a sweep's trial, counted from 0."""
        return TrialRun(self, number)

    def check_settings(self, config: Any) -> None:
        """Raises RunError if a stage's settings are another run's."""
        if config.run != self.name:
            raise RunError(
                f"the settings are of run {config.run!r}, the folder is {self.folder}: run the settings' cell again"
            )

    def write_config(self, stage: str, config: Any) -> None:
        """Keep a stage's resolved settings."""
        write_json(self.config(stage), asdict(config))

    def read_config(self, stage: str) -> dict[str, Any]:
        """A stage's settings as it was last run. Raises RunError if they are missing or damaged."""
        return self._read(self.config(stage), stage, ("run",))

    def read_verdict(self) -> dict[str, Any]:
        """What training came to. Raises RunError if that is missing or damaged."""
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
        """How long each stage has worked so far, over all its reruns; what cannot be read counts as nothing."""
        with suppress(OSError, ValueError, AttributeError):
            kept = read_json(self.seconds).items()
            return {stage: s for stage, s in kept if isinstance(s, int | float)}
        return {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count time that a stage has worked."""
        all_seconds = self.read_seconds()
        all_seconds[stage] = round(all_seconds.get(stage, 0) + seconds, 2)
        write_json(self.seconds, all_seconds)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time spent inside."""
        began = time.perf_counter()
        yield
        self.add_seconds(stage, time.perf_counter() - began)

    def require(self, path: Path, stage: str) -> Path:
        """The path, if it is there. Raises RunError naming the notebook that writes it."""
        if not path.exists():
            raise RunError(
                f"{path} is missing: run {notebook_name(stage)} with run={self.name!r} first, "
                "or set run to the name that you gave there"
            )
        return path


class TrialRun(Run):
    """A trial of a sweep: a run inside a run, whose images, dataset and cache it shares."""

    def __init__(self, whole: Run, number: int) -> None:
        self.whole, self.number = whole, number
        self.folder = whole.sweep / f"trial-{number:03d}"
        self.name = self.folder.relative_to(RUNS).as_posix()
        self.dataset, self.cache = whole.dataset, whole.cache
        recover_folder(self.model)

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    def config(self, stage: str) -> Path:
        return super().config(stage) if stage == "train" else self.whole.config(stage)
