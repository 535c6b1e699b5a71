"""Record the posts in each version of a run's dataset, to know which ones a model was trained on."""

from dataclasses import dataclass

from helpers.core.files import MANIFEST, folder_hash
from helpers.core.records import append_row, read_rows
from helpers.core.run import Run
from helpers.dataset.dataset_files import SPLITS, read_records


@dataclass(frozen=True)
class Edition:
    """The posts in one version of a dataset, and the dataset's hash, which checkpoints store."""

    hash: str
    train: list[str]  # shortcodes
    validation: list[str]


def record_edition(run: Run) -> None:
    """Append the present dataset's hash and posts to datasets_before.jsonl, before the dataset is replaced."""
    edition = _present(run)
    if edition and edition not in read_rows(run.datasets_before, Edition):
        append_row(run.datasets_before, edition)


def list_editions(run: Run) -> dict[str, Edition]:
    """Return the editions of the run's past and present datasets as {hash: Edition}."""
    rows = (*read_rows(run.datasets_before, Edition), _present(run))
    return {edition.hash: edition for edition in rows if edition}


def _present(run: Run) -> Edition | None:
    if not (run.dataset / MANIFEST).is_file():
        return None
    records = read_records(run.dataset)
    sides = [sorted({r.shortcode for r in records if r.split == split}) for split in SPLITS]
    return Edition(folder_hash(run.dataset), *sides)
