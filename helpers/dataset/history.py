"""Record which posts each version of a run's dataset contained, to know what a model was trained on."""

from dataclasses import dataclass

from helpers.core.files import MANIFEST, folder_hash
from helpers.core.records import append_row, read_rows
from helpers.core.run import Run
from helpers.dataset.dataset_files import read_records


@dataclass(frozen=True)
class Edition:
    """The posts of one version of a dataset, and the dataset hash that checkpoints store."""

    hash: str
    train: list[str]  # shortcodes
    validation: list[str]


def record_edition(run: Run) -> None:
    """Append the present dataset's hash and posts to datasets_before.jsonl, before that dataset is replaced."""
    edition = _present(run)
    if edition and edition not in read_rows(run.datasets_before, Edition):
        append_row(run.datasets_before, edition)


def list_editions(run: Run) -> dict[str, Edition]:
    """Return {hash: Edition} of the run's past datasets and its present dataset."""
    present = _present(run)
    rows = read_rows(run.datasets_before, Edition) + ([present] if present else [])
    return {edition.hash: edition for edition in rows}


def _present(run: Run) -> Edition | None:
    if not (run.dataset / MANIFEST).is_file():
        return None
    records = read_records(run.dataset)
    posts = {
        s: sorted({r.shortcode for r in records if r.split == s}) for s in ("train", "validation")
    }
    return Edition(folder_hash(run.dataset), **posts)
