"""Read from 04's records what a run's model was trained with, since the run may have changed after training."""

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
        posts = {_post_of(name) for name in self.images}
        return [picture for picture in every if _post_of(picture[0].stem) not in posts]

    @property
    def dataset_has_changed(self) -> bool:
        """Whether dataset/ exists and differs from the dataset that the model was trained on."""
        there = (self.run.dataset / MANIFEST).is_file()
        return there and folder_hash(self.run.dataset) != self.verdict["dataset"]

    def _read_split(self, split: str) -> list[Picture]:
        rows = read_metadata(self.run.require(self.run.split_metadata(split), "dataset"))
        suffix, folder = self._dataset_suffix, self.run.split(split)
        return sorted((folder / name, strip_suffix(text, suffix)) for name, text in rows)

    @property
    def _dataset_suffix(self) -> str:
        return self.run.read_config("dataset")["suffix"]

    @property
    def log(self) -> list[dict[str, float]]:
        """This training's rows in train_log.jsonl, or validation losses only if another training overwrote the file."""
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
        """Return this training's preview files in order of step; empty if another training overwrote the files."""
        files = self.run.preview_files() if self._owns_log else []
        return [
            path for path in files if int(path.stem.removeprefix("step-")) <= self.verdict["steps"]
        ]

    def remarks(self) -> list[str]:
        """Return sentences on what has changed in the run since the model was trained."""
        remarks = []
        if self.dataset_has_changed:
            unseen, suffix = len(self.pictures("validation")), self._dataset_suffix
            words = (
                "dataset/ has changed since this model was trained: "
                f"{unseen} of its pictures are new to the model, and it is judged by those"
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
    """Read the training settings, images and losses of a run's model.

    Raises RunError if 04 has not ended, or verdict.json is corrupt.
    """
    verdict = run.read_verdict()
    trained_with = verdict.get("trained_with")  # not in older versions' verdict.json
    trained_with = trained_with if isinstance(trained_with, dict) else {}
    return Trained(
        run,
        verdict,
        trained_with.get("settings") or run.read_config("train"),
        trained_with["suffix"] if "suffix" in trained_with else _read_card_suffix(run),
        _read_image_names(run),
        trained_with.get("curve", []),
    )


def summarize_posts(run: Run) -> dict[str, Any]:
    """Return the numbers of images and posts in a run, and the posts' accounts and permissions as text."""
    posts = list(latest(read_rows(run.posts, Post)).values())
    return {
        "images": len(posts),
        "posts": len({post.shortcode for post in posts}),
        "accounts": ", ".join(sorted({post.account for post in posts} - {""})) or "not recorded",
        "permissions": ", ".join(sorted({post.permission for post in posts})),
    }


def _read_image_names(run: Run) -> frozenset[str]:
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or corrupt
        return frozenset(Path(row["file_name"]).stem for row in read_json(run.image_losses))
    return frozenset()


def _read_card_suffix(run: Run) -> str:
    """Return the suffix in the model card, where older versions wrote it, or else the dataset's suffix."""
    card = run.model / "README.md"
    found = SUFFIX_IN_CARD.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else run.read_config("dataset")["suffix"]


def _post_of(name: str) -> str:
    """Return the shortcode in an image's name, which has the form SHORTCODE_INDEX."""
    return name.rpartition("_")[0]
