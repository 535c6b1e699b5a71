"""Push the dataset to the Hugging Face Hub, private by default, and fetch a pushed dataset into another run.

`python -m helpers.dataset.publish RUN HUB_ID` fetches it, so that 04 can start.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.hf_api import DatasetInfo

from helpers.config import DatasetConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, read_json, replacing_folder
from helpers.core.permission import require_shareable
from helpers.core.process import run_command
from helpers.core.records import Post, latest, read_rows
from helpers.core.run import Run
from helpers.dataset.build import verify_dataset
from helpers.dataset.dataset_files import made_with, read_records
from helpers.dataset.history import record_edition
from helpers.host.hub import hub_errors, make_private, open_hub, release

OUR_FILES = re.compile(  # all file names that 03 writes
    r"(README\.md|about\.json|provenance\.jsonl|contact_sheet\.jpg|manifest\.json"
    r"|(train|validation)/(metadata\.csv|[A-Za-z0-9_-]{1,97}\.(jpg|png|webp)))"
)
HUB_FILE = ".gitattributes"


def publish(config: DatasetConfig, run: Run) -> str:
    """If `push_to` is set, push dataset/ to the Hub in one commit. Return a line with URL and visibility.

    The repository is private until the end, and becomes public if `private` is off. Raises RunError if an image's
    permission does not allow that, the repository is public already, or the Hub refuses.
    """
    if not config.push_to:
        return "not published: push_to is empty"
    verify_dataset(run)
    if not config.private:
        posts, records = latest(read_rows(run.posts, Post)), read_records(run.dataset)
        require_shareable(record.permission for record in records)
        if posts:  # 01 may have corrected a permission since 03
            require_shareable(posts[r.image].permission for r in records if r.image in posts)
    with hub_errors(config.push_to):
        api = open_hub()
        files = _push(api, make_private(api, config.push_to, "dataset"), run.dataset)
        return release(api, config.push_to, "dataset", files, private=config.private)


def _push(api: HfApi, info: DatasetInfo, folder: Path) -> set[str]:
    files = {*read_json(folder / MANIFEST), MANIFEST}
    stale = {s.rfilename for s in info.siblings or ()} - files - {HUB_FILE}
    operations = [CommitOperationAdd(name, folder / name) for name in sorted(files)]
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    message = f"{len(files)} files by 03_dataset"
    api.create_commit(info.id, operations, commit_message=message, repo_type="dataset")
    return files


def fetch(run: Run, hub_id: str) -> str:
    """Download a pushed dataset into a run, and check it against its manifest. Return a line with counts and hash.

    Raises RunError if the run has another dataset, or the repository was not pushed by 03 or does not verify.
    """
    with hub_errors(hub_id, "fetched"), tempfile.TemporaryDirectory() as temporary:
        folder = _download(hub_id, Path(temporary))
        if what := find_corruption(folder):
            raise RunError(f"{hub_id}: {what}: push it again")
        present = run.dataset / MANIFEST
        is_same = present.is_file() and read_json(present) == read_json(folder / MANIFEST)
        if run.dataset.exists() and not is_same:
            raise RunError(
                f"{run.dataset} is another dataset already: fetch into a run of another name"
            )
        config = configure(DatasetConfig, made_with(folder), run=run.name)
        record_edition(run)
        with replacing_folder(run.dataset) as tmp_path:
            for name in read_json(folder / MANIFEST):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, tmp_path / name)
    run.write_config("dataset", config)
    return verify_dataset(run)


def _download(hub_id: str, folder: Path) -> Path:
    api = HfApi(token=get_token() or False)
    info = api.dataset_info(hub_id)
    names = [s.rfilename for s in info.siblings or () if OUR_FILES.fullmatch(s.rfilename)]
    if MANIFEST not in names:
        raise RunError(f"{hub_id} was not pushed by 03: use 01_scrape with source='hub' instead")
    api.snapshot_download(
        hub_id, repo_type="dataset", revision=info.sha, local_dir=folder, allow_patterns=names
    )
    for name in read_json(folder / MANIFEST):
        if not OUR_FILES.fullmatch(name):
            raise RunError(
                f"{hub_id}: {MANIFEST} names {name!r}, which 03 never writes: push it again"
            )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m helpers.dataset.publish", description=__doc__)
    parser.add_argument("run", help="the run's name; its folder is runs/RUN")
    parser.add_argument("hub_id", help="as in you/your-dataset")
    args = parser.parse_args()
    print(fetch(Run(args.run), args.hub_id))


if __name__ == "__main__":
    run_command(main)
