"""The GitHub address and release tag of this repository. `python -m helpers.colab OWNER/NAME [REF]` changes both."""

import argparse
import re
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import write_text
from helpers.core.process import run_command
from helpers.host import colab, kaggle

REPOSITORY = "annalaura-diffusion/annalaura-diffusion"
RELEASE = "v0.3.0"  # the tag that Setup clones
HERE = Path(__file__).parents[2]


def badges(notebook: str) -> str:
    """Return the Markdown of a notebook's badges, which open it on each host."""
    hosts = (colab.HOST, kaggle.HOST)
    return " ".join(h.badge.format(repository=REPOSITORY, notebook=notebook) for h in hosts)


def rewrite_repository(new: str, ref: str = RELEASE, root: Path = HERE) -> list[Path]:
    """Put another GitHub address and tag (or branch) into all badges and clone commands, and return the changed files.

    Raises RunError for names that GitHub does not allow.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/(?!\.\.?$|.*\.git$)[A-Za-z0-9_.-]+", new):
        raise RunError(
            f"{new!r} is no repository: give OWNER/NAME as it stands in its GitHub address"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]*", ref):
        raise RunError(f"{ref!r} is no tag or branch: give one such as {RELEASE} or main")
    names = ("helpers/host/repository.py", "README.md", "tools/*.py", "notebooks/*.ipynb")
    changed = []
    for path in (path for name in names for path in sorted(root.glob(name))):
        text = path.read_text(encoding="utf-8")
        written = text.replace(REPOSITORY, new).replace(f"-b {RELEASE} ", f"-b {ref} ")
        written = written.replace(f'RELEASE = "{RELEASE}"', f'RELEASE = "{ref}"')
        if written != text:
            write_text(path, written)
            changed.append(path)
    return changed


def main() -> None:
    words = "Write another home of the repository into every badge and clone line."
    parser = argparse.ArgumentParser(prog="python -m helpers.colab", description=words)
    parser.add_argument("repository", metavar="OWNER/NAME", help="as in its GitHub address")
    parser.add_argument("ref", nargs="?", default=RELEASE, help="a tag or branch")
    args = parser.parse_args()
    for path in rewrite_repository(args.repository, args.ref):
        print(f"rewrote {path.relative_to(HERE)}")


if __name__ == "__main__":
    run_command(main)
