"""Read notebook 04's record of the training that made a run's model: settings, images and losses."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.files import MANIFEST, folder_hash, read_json
from helpers.core.records import Post, latest, read_log, read_metadata, read_rows
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix

SUFFIX_IN_CARD = re.compile(r"^.*End a prompt with `(.*)` for the style\.$", re.MULTILINE)
Picture = tuple[Path, str]  # an image of the dataset, and its caption without the suffix


@dataclass(frozen=True)
class Trained:
    """The settings, images and validation losses of the training that produced a run's model.

    verdict   verdict.json of 04: `dataset` is the hash of its dataset, `steps` its last step
    settings  of 04
    suffix    of its captions
    images    names, without extension, of the training images; empty for models of older versions
    curve     validation loss as [step, loss]; empty for models of older versions
    """

    run: Run
    verdict: dict[str, Any]
    settings: dict[str, Any]
    suffix: str
    images: frozenset[str]
    curve: list[list[float]]

    def pictures(self, split: str) -> list[Picture]:
        """Return the pictures of dataset/ that training used (`train`) or held out (`validation`), sorted by name.

        If dataset/ has changed since, a picture counts as held out if training saw no image of its post.
        """
        if not (self.images and self.dataset_has_changed):
            return self._read_split(split)
        every = sorted(self._read_split("train") + self._read_split("validation"))
        if split == "train":
            return [picture for picture in every if picture[0].stem in self.images]
        posts = {name.rpartition("_")[0] for name in self.images}  # SHORTCODE_INDEX
        return [picture for picture in every if picture[0].stem.rpartition("_")[0] not in posts]

    def held_out_captions(self) -> list[str]:
        """Return the captions of the held-out images, or of the training images if none are held out."""
        pictures = self.pictures("validation") or self.pictures("train")
        return [caption for _, caption in pictures]

    @property
    def exported_step(self) -> int:
        """The step whose weights are the model's."""
        return self.verdict.get("exported_step", self.verdict["steps"])

    @property
    def dataset_has_changed(self) -> bool:
        """True if dataset/ exists and differs from the dataset that the model was trained on."""
        dataset = self.run.dataset
        return (dataset / MANIFEST).is_file() and folder_hash(dataset) != self.verdict["dataset"]

    def _read_split(self, split: str) -> list[Picture]:
        rows = read_metadata(self.run.require(self.run.split_metadata(split), "dataset"))
        suffix, folder = self.run.read_config("dataset")["suffix"], self.run.split(split)
        return sorted((folder / name, strip_suffix(text, suffix)) for name, text in rows)

    @property
    def log(self) -> list[dict[str, float]]:
        """The log rows of this training, with validation losses alone if another training has replaced the file."""
        if self._owns_log:
            rows = read_log(self.run.train_log)
            return [row for row in rows if row["step"] <= self.verdict["steps"]]
        return [{"step": step, "held_out_loss": loss} for step, loss in self.curve]

    @property
    def _owns_log(self) -> bool:
        rows = read_log(self.run.train_log)
        found = [[row["step"], row["held_out_loss"]] for row in rows if "held_out_loss" in row]
        return not self.curve or found[: len(self.curve)] == self.curve

    def previews(self) -> list[Path]:
        """Return this training's preview files in order of step, or [] if another training replaced them."""
        files = self.run.preview_files() if self._owns_log else []
        last = self.verdict["steps"]
        return [path for path in files if int(path.stem.removeprefix("step-")) <= last]

    def remarks(self) -> list[str]:
        """Return sentences on what has changed in the run since the model was trained."""
        remarks = []
        if self.dataset_has_changed:
            suffix = self.run.read_config("dataset")["suffix"]
            words = (
                f"dataset/ has changed since this model was trained: {len(self.pictures('validation'))} of its "
                "pictures are new to the model, and it is judged by those"
            )
            if suffix != self.suffix:
                words += f"; captions end in {suffix!r} now, and the model knows {self.suffix!r}"
            remarks.append(f"{words}. 04_train trains on it as it is now.")
        if not self._owns_log and read_log(self.run.train_log):
            remarks.append(
                "Another training has begun in this run since: its previews and losses are left out. "
                "04_train goes on with it."
            )
        return remarks


def read_trained(run: Run) -> Trained:
    """Read the record of a model's training. Raises RunError if training has not ended, or verdict.json is corrupt."""
    verdict = run.read_verdict()
    trained_with = verdict.get("trained_with")  # not in older versions' verdict.json
    trained_with = trained_with if isinstance(trained_with, dict) else {}
    images = frozenset()
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or corrupt
        images = frozenset(Path(row["file_name"]).stem for row in read_json(run.image_losses))
    return Trained(
        run,
        verdict,
        trained_with.get("settings") or run.read_config("train"),
        trained_with["suffix"] if "suffix" in trained_with else _read_card_suffix(run),
        images,
        trained_with.get("curve", []),
    )


def summarize_posts(run: Run) -> dict[str, Any]:
    """Count a run's images and posts, and list the run's accounts and permissions as text."""
    posts = list(latest(read_rows(run.posts, Post)).values())
    return {
        "images": len(posts),
        "posts": len({post.shortcode for post in posts}),
        "accounts": ", ".join(sorted({post.account for post in posts} - {""})) or "not recorded",
        "permissions": ", ".join(sorted({post.permission for post in posts})),
    }


def _read_card_suffix(run: Run) -> str:
    card = run.model / "README.md"  # an older version's card states it
    found = SUFFIX_IN_CARD.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else run.read_config("dataset")["suffix"]
