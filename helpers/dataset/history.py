"""Which posts each dataset of a run held, so that one can tell what a model has seen."""

from dataclasses import dataclass

from helpers.core.files import MANIFEST, folder_hash
from helpers.core.records import append_row, read_rows
from helpers.core.run import Run
from helpers.dataset.dataset_files import read_records


@dataclass(frozen=True)
class Edition:
    """A line of datasets_before.jsonl: a dataset that was replaced, by the hash that checkpoints name it by."""

    hash: str
    train: list[str]  # shortcodes
    validation: list[str]


def remember(run: Run) -> None:
    """Keep which posts the present dataset holds, before another takes its place."""
    edition = _present(run)
    if edition and edition not in read_rows(run.datasets_before, Edition):
        append_row(run.datasets_before, edition)


def editions(run: Run) -> dict[str, Edition]:
    """All datasets that this run has had, the present one among them, by hash."""
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
