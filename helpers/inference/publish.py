"""The model on the Hugging Face hub: private unless asked for and permitted, with its card."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from helpers.colab import secret
from helpers.config import InferenceConfig
from helpers.errors import RunError
from helpers.inference.card import card_files
from helpers.permission import require_shareable
from helpers.records import Post, latest, read_rows
from helpers.run import Run
from helpers.store import MANIFEST, damage, read_json


def push(config: InferenceConfig, run: Run) -> str:
    """Push the model, its card and its export in one commit, and say where it is; nothing where `push_to` is empty.

    The repository is made private, and read back as such before the first file leaves. It becomes public in
    the end if `private` is off and the permission of every image allows it.
    Raises RunError if it does not, the repository is public already, or the hub does not take it.
    """
    if not config.push_to:
        return "not pushed: push_to is empty"
    if what := damage(run.model):
        raise RunError(f"{what}: run 04_train again")
    if not config.private:
        require_shareable(post.permission for post in latest(read_rows(run.posts, Post)).values())
    files = files_to_push(run)
    with _told(config.push_to):
        api = HfApi(token=get_token() or secret("HF_TOKEN"))
        _make_private(api, config.push_to)
        additions = [CommitOperationAdd(name, files[name]) for name in sorted(files)]
        message = f"{len(files)} files by 05_inference"
        api.create_commit(config.push_to, additions, commit_message=message)
        if not config.private:
            api.update_repo_settings(config.push_to, private=False)
        return _read_back(api, config, set(files))


def files_to_push(run: Run) -> dict[str, Path | bytes]:
    """The pipeline and the export by their names in the repository; configs go without the path they came from."""
    model = {name: run.model / name for name in read_json(run.model / MANIFEST)}
    exported = {f"export/{path.name}": path for path in run.export.glob("*.safetensors")}
    files: dict[str, Path | bytes] = {**model, **exported, **card_files(run)}
    for name, path in model.items():
        if name.endswith("config.json") or name == "model_index.json":
            config = {k: v for k, v in read_json(path).items() if k != "_name_or_path"}
            files[name] = json.dumps(config, indent=2).encode()
    return files


def _make_private(api: HfApi, hub_id: str) -> None:
    """See to it that the repository is there and private."""
    known = _look(api, hub_id)
    if known and known.private is not True:
        raise RunError(
            f"{hub_id} is a public repository already: make it private in its settings on the hub, "
            "or give push_to another name"
        )
    api.create_repo(hub_id, private=True, exist_ok=True)
    if api.model_info(hub_id).private is not True:
        raise RunError(
            f"{hub_id} is not private though it was asked to be: look at its settings on the hub"
        )


def _look(api: HfApi, hub_id: str) -> ModelInfo | None:
    try:
        return api.model_info(hub_id)
    except RepositoryNotFoundError:
        return None


def _read_back(api: HfApi, config: InferenceConfig, files: set[str]) -> str:
    info = api.model_info(config.push_to)
    missing = files - {sibling.rfilename for sibling in info.siblings or ()}
    if missing or bool(info.private) != config.private:
        what = f"lacks {sorted(missing)[0]}" if missing else "is not as private as asked"
        raise RunError(f"{config.push_to} {what} after the push: run the cell again")
    seen = "private" if info.private else "public"
    return f"{len(files)} files in {api.endpoint}/{config.push_to}, {seen}"


@contextmanager
def _told(hub_id: str) -> Iterator[None]:
    """Whatever the hub or the way to it says, in one line."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"the hub and {hub_id}: {what}; look at the name, the token's rights and the network, and try again"
        ) from None
