"""Push the model and its card to the Hugging Face Hub, private by default."""

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
from helpers.inference.share.model_card import find_card_files


def push(config: InferenceConfig, run: Run) -> str:
    """Push the model, its card and the exported files to the Hub in one commit. Return a line with URL and visibility.

    The repository is made private, and read back as private, before any file is uploaded. It is made public at the
    end if `private` is False and the permission of every image allows it. An empty `push_to` pushes nothing.
    Raises RunError if a permission does not allow it, the repository is public already, or the hub refuses.
    """
    if not config.push_to:
        return "not pushed: push_to is empty"
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    if not config.private:
        require_shareable(post.permission for post in latest(read_rows(run.posts, Post)).values())
    files = find_files_to_push(run)
    with hub_errors(config.push_to):
        api = open_hub()
        make_private(api, config.push_to, "model")
        additions = [CommitOperationAdd(name, files[name]) for name in sorted(files)]
        message = f"{len(files)} files by 05_inference"
        api.create_commit(config.push_to, additions, commit_message=message)
        return release(api, config.push_to, "model", set(files), private=config.private)


def find_files_to_push(run: Run) -> dict[str, Path | bytes]:
    """Return the files to push, as {name in the repository: path or content}. Local paths are removed from configs."""
    model = {name: run.model / name for name in read_json(run.model / MANIFEST)}
    kinds = ("*.safetensors", "*.yaml")  # a LoRA for diffusers is in model/ already
    found = [path for kind in kinds for path in run.export.glob(kind)]
    found += run.export.glob("diffusers-rank*/*.safetensors")  # a light LoRA is not
    exported = {f"export/{path.relative_to(run.export).as_posix()}": path for path in found}
    files: dict[str, Path | bytes] = {**model, **exported, **find_card_files(run)}
    for name, path in model.items():
        if name.endswith("config.json") or name == "model_index.json":
            config = {k: v for k, v in read_json(path).items() if k != "_name_or_path"}
            files[name] = json.dumps(config, indent=2).encode()
    return files
