"""What must never be committed: `python -m tools.check_files FILE...` names each file that has it, and exits 1.

pre-commit calls it on what is staged, the tests on all that the repository tracks. Secrets by the forms that
their makers publish: longer than those that helpers/core/redact.py takes out, which may hit a harmless word,
since here a hit stops a commit. Large files and notebooks' outputs because git keeps them for ever.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 1_000_000
WEIGHTS = "assets/tiny-sd/"  # the demo's base model, whose hashes a test checks
SECRETS = {
    "an Anthropic key": re.compile(rb"sk-ant-[\w-]{20,}"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{34,}"),
    "a GitHub token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,})"),
    "a Google or AWS key": re.compile(rb"\b(AIza[\w-]{35}|AKIA[A-Z0-9]{16})\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an Instagram session": re.compile(
        rb"sessionid\W{1,6}\d{4,}(%3A|:)[\w%:-]{10,}"
        rb"|\b\d{5,}(%3A|:)\w{12,}(%3A|:)\d+"  # its value, wherever it stands
        rb"|\"sessionid\"[^{}]*\"value\"\s*:\s*\"[^\"]{8,}"  # as browsers export it
        rb"|\"value\"\s*:\s*\"[^\"]{8,}\"[^{}]*\"sessionid\"",
        re.I,
    ),
    "a W&B key": re.compile(rb"WANDB_API_KEY\W{1,6}[0-9a-f]{40}\b"),
    "a database's password": re.compile(  # `host` and this machine stand in examples
        rb"\b(postgres|mysql|mariadb|mongodb|redis)[\w+]*://[^\s:@/\"']*:[^\s@\"'{]{4,}@"
        rb"(?!host\b|localhost\b|127\.0\.0\.1)"
    ),
}


def faults(path: Path) -> Iterator[str]:
    """Why a file must not be committed, a line each."""
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    if len(content) > MOST_BYTES and WEIGHTS not in path.as_posix():
        yield f"has {len(content) / 1e6:.1f} MB: more than {MOST_BYTES / 1e6:.0f} stay out of git"
    for what, pattern in SECRETS.items():
        if pattern.search(content):
            yield f"holds {what}: take it out, and have a new one made by whoever gave it"
    if path.suffix == ".ipynb":
        yield from _faults_of_notebook(content)


def _faults_of_notebook(content: bytes) -> Iterator[str]:
    try:
        cells = json.loads(content)["cells"]
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            yield "holds outputs: run make strip"
    except (ValueError, LookupError, TypeError, AttributeError):
        yield "is no notebook of format 4, so nobody knows whether it holds outputs: save it in Jupyter anew"


def main() -> None:
    found = [f"{path} {fault}" for path in sys.argv[1:] for fault in faults(Path(path))]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
