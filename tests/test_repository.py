"""What a visitor finds: links that lead somewhere, a licence, a changelog, and nothing that must not be there."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from helpers.host.repository import REPOSITORY
from tools.check_files import faults

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "assets/README.md"),
    "docs/colab-cli.md",
    "docs/kaggle-cli.md",
    ".github/ISSUE_TEMPLATE/bug.md",
    *(f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))),
)
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
OURS = {  # addresses under which a file of the repository is to be had, whoever owns it
    f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/",
    f"https://kaggle.com/kernels/welcome?src=https://github.com/{REPOSITORY}/blob/main/",
    f"https://raw.githubusercontent.com/{REPOSITORY}/main/",
    f"https://github.com/{REPOSITORY}/blob/main/",
}
ELSEWHERE = (  # what a reader may be sent to
    "https://colab.research.google.com/assets/colab-badge.svg",
    "https://kaggle.com/static/images/open-in-kaggle.svg",
    f"https://github.com/{REPOSITORY}",
    "https://github.com/instaloader/instaloader/issues/",
    "https://keepachangelog.com/",
    "https://pre-commit.com",
    "https://pypi.org/project/google-colab-cli/",
    "https://semver.org/",
)


def files() -> list[Path]:
    """What git tracks; in a copy without .git, what it would."""
    git = ["git", "-c", "core.quotepath=off"]
    done = subprocess.run([*git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        places = [p for p in ROOT.iterdir() if p.name not in (".git", ".venv", "runs", "build")]
        found = [f for p in places for f in ([p] if p.is_file() else p.rglob("*"))]
        return [f for f in found if f.is_file() and not re.search(r"__pycache__|_cache/", str(f))]
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def words_of(page: str) -> str:
    if not page.endswith(".ipynb"):
        return (ROOT / page).read_text(encoding="utf-8")
    cells = nbformat.read(ROOT / page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`|^ {4}[^\n]*$", "", text, flags=re.S | re.M)


def anchors(page: str) -> set[str]:
    """The headings of a page as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", words_of(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def leads_nowhere(page: str, target: str) -> bool:
    if target.startswith("https://"):
        for address in OURS:
            if target.startswith(address):
                return not (ROOT / target.removeprefix(address)).is_file()
        return not target.startswith(ELSEWHERE)
    if ":" in target:  # http: and whatever else there is
        return True
    name, _, anchor = target.partition("#")
    path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
    if not path.is_relative_to(ROOT) or not path.exists():
        return True
    return bool(anchor) and anchor not in anchors(path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_badge_and_picture_leads_to_a_file_that_is_there(page):
    text = without_code(words_of(page))
    targets = set(re.findall(r"\]\(([^)\s]+)\)", text)) | set(
        re.findall(r"https?://[^\s)>\]]+", text)
    )
    assert not [target for target in targets if leads_nowhere(page, target)]


def test_a_link_that_leads_nowhere_would_be_found():
    for target in ("nothing.md", "#no-such-heading", "http://github.com", "../outside.md"):
        assert leads_nowhere("README.md", target)
    gone = f"https://raw.githubusercontent.com/{REPOSITORY}/main/assets/gone.png"
    assert leads_nowhere("README.md", gone) and leads_nowhere("README.md", "https://example.org/")
    assert not leads_nowhere("README.md", "CONTRIBUTING.md#the-laws")


def test_nothing_is_tracked_that_must_not_be_committed():
    found = [f"{path.relative_to(ROOT)} {fault}" for path in files() for fault in faults(path)]
    assert not found


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.py", "KEY = 'sk-ant-" + "api03-" + "x" * 40 + "'", "holds an Anthropic key"),
        ("a.env", "HF_TOKEN=hf_" + "aB3" * 12, "holds a Hugging Face token"),
        ("a.md", "git push https://ghp_" + "a1" * 18 + "@github.com", "holds a GitHub token"),
        ("a.json", '{"key": "AIza' + "Sy0-_" * 7 + '"}', "holds a Google or AWS key"),
        ("a.pem", "-----BEGIN " + "OPENSSH PRIVATE KEY-----", "holds a private key"),
        ("a.txt", "sessionid=1234" + "5678%3AaBcDeFgHiJ%3A12; csrftoken=x", "an Instagram session"),
        (
            "a.json",
            '[{"name": "sessionid", "path": "/", "value": "' + "Abc" * 9 + '"}]',
            "an Instagram session",
        ),
        (
            "b.json",
            json.dumps([{"value": "Abc" * 9, "name": "sessionid"}], indent=4),
            "an Instagram session",
        ),
        ("a.csv", "1234" + "5678%3A" + "aBcDeFgHiJkLmN" + "%3A12%3AAYx", "an Instagram session"),
        (
            "b.env",
            "OPTUNA_STORAGE=postgresql://me:" + "hushhush@db.example.org/x",
            "a database's password",
        ),
        ("c.env", "WANDB_API_KEY=" + "0123abcd" * 5, "holds a W&B key"),
        ("a.jpg", "x" * 2_000_000, "has 2.0 MB"),
        ("empty.ipynb", "", "is no notebook of format 4"),
        (
            "v3.ipynb",
            json.dumps({"worksheets": [{"cells": []}], "nbformat": 3}),
            "is no notebook of",
        ),
        ("list.ipynb", "[1]", "is no notebook of format 4"),
        (
            "a.ipynb",
            json.dumps({"cells": [{"outputs": [{"output_type": "stream"}]}]}),
            "holds outputs: run make strip",
        ),
    ],
)
def test_what_must_not_be_committed_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    command = [sys.executable, "-m", "tools.check_files", tmp_path / name, ROOT / "README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1


def test_pre_commit_strips_as_make_strip_does_and_needs_no_network():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = {hook["id"]: hook for hook in repositories[0]["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    recipe = re.search(r"nbstripout (.*) notebooks/", (ROOT / "Makefile").read_text())
    assert hooks["strip"]["entry"] == f".venv/bin/nbstripout {recipe[1]}"


def test_the_licence_is_apache_2_to_the_letter():
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2
    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
    )


def test_the_changelog_has_this_version_and_the_newest_first():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    numbers = [tuple(map(int, h.split("."))) for h in headings if h != "Unreleased"]
    assert version in headings and numbers == sorted(numbers, reverse=True)


def test_the_tree_in_contributing_is_the_tree_there_is():
    block = words_of("CONTRIBUTING.md").split("## The tree", 1)[1].split("```")[1]
    named, folder = set(), {0: ""}
    for line in block.strip("\n").splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = folder[depth] + name
        if name.endswith("/"):
            folder[depth + 1] = path
        named.add(path)
        assert (ROOT / path).exists(), f"{path} is in the tree and not there"
        assert len(line.split()[1:]) <= 10, f"{path}: a job of eight words or so"
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "helpers").rglob("*.py")}
    missing = {m for m in modules if not m.endswith("__init__.py")} - named
    assert not missing, f"add to the tree in CONTRIBUTING.md: {sorted(missing)}"


def test_a_file_that_cannot_be_read_is_a_line(tmp_path):
    assert [*faults(tmp_path / "gone.py")] == ["cannot be read: No such file or directory"]


def test_the_ten_minutes_of_contributing_work_as_written(tmp_path):
    """Its new files and its line, put where its text says, and the commands that it gives, on the demo's report."""
    for name in ("helpers", "tests", "assets", "pyproject.toml", "requirements.txt"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    text = words_of("CONTRIBUTING.md").split("## Ten minutes")[1].split("## How one step")[0]
    blocks = re.findall(r"\n\n((?: {7}.*\n|\n(?=\n* {7}))+)", text)
    metric, line, test, commands = (textwrap.dedent(block).strip("\n") + "\n" for block in blocks)
    (tmp_path / "helpers/inference/judge/brightness.py").write_text(metric)
    (tmp_path / "tests/test_brightness.py").write_text(test)
    metrics = tmp_path / "helpers/inference/judge/metrics.py"
    put(metrics, r"(METRICS = \{.*?\n)", lambda m: f"{m[1]}    {line}")
    command = commands.splitlines()[0].replace(".venv/bin/python", sys.executable).split()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    for words in (["check"], ["format", "--check"]):
        changed = ["helpers/inference/judge", "tests/test_brightness.py"]
        ruff = [sys.executable, "-m", "ruff", *words, *changed]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    code = (
        "from helpers.inference.judge.metrics import load_metrics; from helpers.inference import page\n"
        "found = {'kid': {'left_out': 'x'}, 'brightness': {'tuned': 9.0, 'held_out': 8.0}}\n"
        "print(list(page._describe_metrics(found)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "('brightness', '9', 'mean grey; held-out art has 8')" in done.stdout, done.stderr


def put(path, pattern, replacement):
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.S)
    assert count == 1, f"{path.name} has no {pattern!r}"
    path.write_text(text)
