"""What a run's model was trained with: from what 04 left beside it, whatever 03 or another training did since."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.core.files import MANIFEST, folder_hash, read_json
from helpers.core.records import read_log, read_metadata
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix

SUFFIX_IN_CARD = re.compile(r"^.*End a prompt with `(.*)` for the style\.$", re.MULTILINE)
Picture = tuple[Path, str]  # an image of the dataset, and its caption without the suffix


@dataclass(frozen=True)
class Trained:
    """The training that a model is of.

    verdict   what it came to, as 04 left it: `dataset` is the hash of its dataset, `steps` its last step
    settings  of 04
    suffix    that ended its captions
    images    that were trained on, by name without extension; empty where an older 04 did not tell
    curve     validation loss, [step, loss]; empty where an older 04 did not tell
    """

    run: Run
    verdict: dict[str, Any]
    settings: dict[str, Any]
    suffix: str
    images: frozenset[str]
    curve: list[list[float]]

    def pictures(self, split: str) -> list[Picture]:
        """What of dataset/ was trained on (`train`) or held out (`validation`), in order of file name.

        Where dataset/ has changed since, a picture counts as held out if training saw none of its post.
        """
        if not (self.images and self.dataset_has_changed):
            return self._listed(split)
        every = sorted(self._listed("train") + self._listed("validation"))
        if split == "train":
            return [picture for picture in every if picture[0].stem in self.images]
        posts = {_post(name) for name in self.images}
        return [picture for picture in every if _post(picture[0].stem) not in posts]

    @property
    def dataset_has_changed(self) -> bool:
        """Whether dataset/ is there, and another than was trained on."""
        there = (self.run.dataset / MANIFEST).is_file()
        return there and folder_hash(self.run.dataset) != self.verdict["dataset"]

    def _listed(self, split: str) -> list[Picture]:
        rows = read_metadata(self.run.require(self.run.split_metadata(split), "dataset"))
        suffix, folder = self._suffix_now, self.run.split(split)
        return sorted((folder / name, strip_suffix(text, suffix)) for name, text in rows)

    @property
    def _suffix_now(self) -> str:
        return self.run.read_config("dataset")["suffix"]

    @property
    def log(self) -> list[dict[str, float]]:
        """The rows of train_log.jsonl up to the last step; of the curve alone if another training wrote over it."""
        if self._has_its_log:
            return [
                row for row in read_log(self.run.train_log) if row["step"] <= self.verdict["steps"]
            ]
        return [{"step": step, "held_out_loss": loss} for step, loss in self.curve]

    @property
    def _has_its_log(self) -> bool:
        rows = read_log(self.run.train_log)
        found = [[row["step"], row["held_out_loss"]] for row in rows if "held_out_loss" in row]
        return not self.curve or found[: len(self.curve)] == self.curve

    def previews(self) -> list[Path]:
        """Its previews, in order of step; none where another training has drawn over them."""
        files = self.run.preview_files() if self._has_its_log else []
        return [
            path for path in files if int(path.stem.removeprefix("step-")) <= self.verdict["steps"]
        ]

    def remarks(self) -> list[str]:
        """What has changed in the run since, a sentence each."""
        said = []
        if self.dataset_has_changed:
            unseen, suffix = len(self.pictures("validation")), self._suffix_now
            words = (
                "dataset/ has changed since this model was trained: "
                f"{unseen} of its pictures are new to the model, and it is judged by those"
            )
            if suffix != self.suffix:
                words += f"; captions end in {suffix!r} now, and the model knows {self.suffix!r}"
            said.append(f"{words}. 04_train trains on it as it is now.")
        if not self._has_its_log and read_log(self.run.train_log):
            said.append(
                "Another training has begun in this run since: its previews and losses are left out. "
                "04_train goes on with it."
            )
        return said


def read_trained(run: Run) -> Trained:
    """The training of the model in a run. Raises RunError if 04 has not ended, or what it left is damaged."""
    verdict = run.read_verdict()
    kept = verdict.get("trained_with")  # not in what older versions left
    kept = kept if isinstance(kept, dict) else {}
    return Trained(
        run,
        verdict,
        kept.get("settings") or run.read_config("train"),
        kept["suffix"] if "suffix" in kept else _suffix_before(run),
        _images_of(run),
        kept.get("curve", []),
    )


def _images_of(run: Run) -> frozenset[str]:
    with suppress(OSError, ValueError, LookupError, TypeError):  # it is missing or damaged
        return frozenset(Path(row["file_name"]).stem for row in read_json(run.image_losses))
    return frozenset()


def _suffix_before(run: Run) -> str:
    """The suffix as older versions told it, in the model's card; else that of the dataset as it is now."""
    card = run.model / "README.md"
    found = SUFFIX_IN_CARD.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else run.read_config("dataset")["suffix"]


def _post(name: str) -> str:
    """The post of an image's name, SHORTCODE_INDEX."""
    return name.rpartition("_")[0]
