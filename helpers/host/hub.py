"""Push safely to the Hugging Face Hub: repositories start private, pushes are checked, and errors are one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo, ModelInfo

from helpers.core.errors import RunError
from helpers.core.redact import register_secret
from helpers.host.here import secret


def open_hub() -> HfApi:
    """Return a Hub client with a token from a login, the environment or the host. Raises RunError without a token."""
    return HfApi(token=register_secret("HF_TOKEN", get_token() or secret("HF_TOKEN")))


def make_private(api: HfApi, hub_id: str, repo_type: str) -> DatasetInfo | ModelInfo:
    """Create a private Hub repository, or use an existing one. Raises RunError if the repository is not private."""
    try:
        if api.repo_info(hub_id, repo_type=repo_type).private is not True:
            raise RunError(
                f"{hub_id} is a public repository already: make it private in its settings on the hub, "
                "or give push_to another name"
            )
    except RepositoryNotFoundError:
        api.create_repo(hub_id, repo_type=repo_type, private=True)
    info = api.repo_info(hub_id, repo_type=repo_type)
    if info.private is not True:
        raise RunError(
            f"{hub_id} is not private though that was requested: check its settings on the hub"
        )
    return info


def release(api: HfApi, hub_id: str, repo_type: str, files: set[str], *, private: bool) -> str:
    """Check that a Hub push is complete, make the repository public if requested, and describe the result in a line.

    Raises RunError if a file is missing, or the visibility is not as requested.
    """
    info = api.repo_info(hub_id, repo_type=repo_type)
    if missing := files - {sibling.rfilename for sibling in info.siblings or ()}:
        raise RunError(f"{hub_id} lacks {sorted(missing)[0]} after the push: run the cell again")
    if not private:
        api.update_repo_settings(hub_id, private=False, repo_type=repo_type)
        info = api.repo_info(hub_id, repo_type=repo_type)
    if bool(info.private) != private:
        raise RunError(
            f"{hub_id} does not have the visibility requested: check its settings on the hub"
        )
    place = "datasets/" if repo_type == "dataset" else ""
    seen = "private" if info.private else "public"
    return f"{len(files)} files in {api.endpoint}/{place}{hub_id}, {seen}"


@contextmanager
def hub_errors(hub_id: str, done: str = "pushed") -> Iterator[None]:
    """Turn every exception inside this context into a one-line RunError: what could not be `done`, and why."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"{hub_id} could not be {done} ({what}): check the name, the token's rights and the network, and try again"
        ) from None
