"""The dataset on the Hugging Face hub: private unless asked for and permitted, and back again on a fresh runtime.

`python -m helpers.dataset.publish RUN HUB_ID` brings a pushed dataset into a run, from where 04 can start.
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
from helpers.dataset.dataset_files import NOT_IN_IT, read_about, read_records
from helpers.dataset.history import remember
from helpers.host.hub import hub_errors, make_private, open_hub, release

OURS = re.compile(  # every name that 03 gives to a file of a dataset
    r"(README\.md|about\.json|provenance\.jsonl|contact_sheet\.jpg|manifest\.json"
    r"|(train|validation)/(metadata\.csv|[A-Za-z0-9_-]{1,97}\.(jpg|png|webp)))"
)
KEPT_BY_THE_HUB = ".gitattributes"


def publish(config: DatasetConfig, run: Run) -> str:
    """Push dataset/ to the hub in one commit, and say where it is; does nothing where `push_to` is empty.

    The repository is made private, and read back as such before the first image leaves. It becomes public in
    the end if `private` is off and every image's permission allows it.
    Raises RunError if it does not, the repository is public already, or the hub does not take it.
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
    """Commit the files that the manifest lists, and take away what is there beside them; return their names."""
    files = {*read_json(folder / MANIFEST), MANIFEST}
    stale = {s.rfilename for s in info.siblings or ()} - files - {KEPT_BY_THE_HUB}
    operations = [CommitOperationAdd(name, folder / name) for name in sorted(files)]
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    message = f"{len(files)} files by 03_dataset"
    api.create_commit(info.id, operations, commit_message=message, repo_type="dataset")
    return files


def fetch(run: Run, hub_id: str) -> str:
    """Bring a dataset that 03 pushed into the run, verified by its manifest; 04 can start from it.

    Raises RunError if the run has another dataset, the repository holds none of 03's, or a file is not what
    the manifest says.
    """
    with hub_errors(hub_id), tempfile.TemporaryDirectory() as temporary:
        folder = _download(hub_id, Path(temporary))
        if what := find_corruption(folder):
            raise RunError(f"{hub_id}: {what}: push it again")
        _refuse_to_replace(run, folder)
        settings = {k: v for k, v in read_about(folder)["settings"].items() if k not in NOT_IN_IT}
        config = configure(DatasetConfig, settings, run=run.name)
        remember(run)
        with replacing_folder(run.dataset) as beside:
            for name in read_json(folder / MANIFEST):
                (beside / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, beside / name)
    run.write_config("dataset", config)
    return verify_dataset(run)


def _download(hub_id: str, folder: Path) -> Path:
    """The files of a pushed dataset whose names are ours, and no others."""
    api = HfApi(token=get_token() or False)
    info = api.dataset_info(hub_id)
    names = [s.rfilename for s in info.siblings or () if OURS.fullmatch(s.rfilename)]
    if MANIFEST not in names:
        raise RunError(
            f"{hub_id} is no dataset that 03 pushed: bring its images in by 01_scrape instead"
        )
    api.snapshot_download(
        hub_id, repo_type="dataset", revision=info.sha, local_dir=folder, allow_patterns=names
    )
    for name in read_json(folder / MANIFEST):
        if not OURS.fullmatch(name):
            raise RunError(
                f"{hub_id}: {MANIFEST} names {name!r}, which 03 would not: push it again"
            )
    return folder


def _refuse_to_replace(run: Run, folder: Path) -> None:
    same = (run.dataset / MANIFEST).is_file() and read_json(run.dataset / MANIFEST) == read_json(
        folder / MANIFEST
    )
    if run.dataset.exists() and not same:
        raise RunError(
            f"{run.dataset} is there already and is another: fetch into a run of another name"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m helpers.dataset.publish", description=__doc__)
    parser.add_argument("run", help="the run's name; its folder is runs/RUN")
    parser.add_argument("hub_id", help="as in you/your-dataset")
    args = parser.parse_args()
    print(fetch(Run(args.run), args.hub_id))


if __name__ == "__main__":
    run_command(main)
