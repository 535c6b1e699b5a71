"""The model on the Hugging Face hub: private unless asked for and permitted, with its card."""

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, read_json
from helpers.core.permission import require_shareable
from helpers.core.records import Post, latest, read_rows
from helpers.core.run import Run
from helpers.host.hub import hub_errors, make_private, open_hub, release
from helpers.inference.share.model_card import card_files


def push(config: InferenceConfig, run: Run) -> str:
    """Push the model, its card and its export in one commit, and say where it is; nothing where `push_to` is empty.

    The repository is made private, and read back as such before the first file leaves. It becomes public in
    the end if `private` is off and the permission of every image allows it.
    Raises RunError if it does not, the repository is public already, or the hub does not take it.
    """
    if not config.push_to:
        return "not pushed: push_to is empty"
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    if not config.private:
        require_shareable(post.permission for post in latest(read_rows(run.posts, Post)).values())
    files = files_to_push(run)
    with hub_errors(config.push_to):
        api = open_hub()
        make_private(api, config.push_to, "model")
        additions = [CommitOperationAdd(name, files[name]) for name in sorted(files)]
        message = f"{len(files)} files by 05_inference"
        api.create_commit(config.push_to, additions, commit_message=message)
        return release(api, config.push_to, "model", set(files), private=config.private)


def files_to_push(run: Run) -> dict[str, Path | bytes]:
    """The pipeline and the export by their names in the repository; configs go without the path they came from."""
    model = {name: run.model / name for name in read_json(run.model / MANIFEST)}
    kinds = ("*.safetensors", "*.yaml")  # a LoRA for diffusers is in model/ already
    exported = {f"export/{path.name}": path for kind in kinds for path in run.export.glob(kind)}
    files: dict[str, Path | bytes] = {**model, **exported, **card_files(run)}
    for name, path in model.items():
        if name.endswith("config.json") or name == "model_index.json":
            config = {k: v for k, v in read_json(path).items() if k != "_name_or_path"}
            files[name] = json.dumps(config, indent=2).encode()
    return files
