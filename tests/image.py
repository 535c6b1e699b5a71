"""Colab's GPU images as pip sees them: every package of Google's lists is there, as its metadata alone.

`tests/colab/` holds the lists (github.com/googlecolab/backend-info) and `requires.json`: what the packages that this
project reaches require, as their releases say. `python -m tests.image` asks the index for it anew, and writes
`helpers/host/runtime.txt`.
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests/colab"
REQUIRES = FOLDER / "requires.json"  # {"name==version": [Requires-Dist, ...]}
RUNTIME = (
    ROOT / "helpers/host/runtime.txt"
)  # what each image has of this project's direct requirements
IMAGES = {  # the list, the image's Python, and what it is called; the newest last
    "2026.07": ("pip-freeze.2026.07.txt", "3.12", "2026.07"),
    "current": ("pip-freeze.gpu.txt", "3.13", "the newest of August 2026"),
}
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "requirements-gpu.txt")
# came with torch, which Google builds for CUDA 12.8; the index has it for CUDA 13
TORCHS = re.compile(r"^(torch|nvidia|cuda|triton|setuptools)\b")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(image: str) -> dict[str, str]:
    """The versions of an image's list; one without a version (from an address) counts as 1.0."""
    found = {}
    for line in (FOLDER / IMAGES[image][0]).read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.match(r"([\w.-]+)(?:==(.+)| @ .*)", line).groups()
            found[canonical(name)] = version or "1.0"
    return found


def direct_requirements() -> list[str]:
    text = (ROOT / "requirements.txt").read_text()
    return [canonical(name) for name in re.findall(r"^[\w.-]+", text, re.M)]


def python_of(image: str) -> str:
    """The image's Python, by pyenv or on the path. Raises LookupError where it is not to be had."""
    version = IMAGES[image][1]
    homes = (Path.home(), Path(pwd.getpwuid(os.getuid()).pw_dir))
    found = [p for home in homes for p in home.glob(f".pyenv/versions/{version}.*/bin/python")]
    for path in (*map(str, found), shutil.which(f"python{version}")):
        if path and subprocess.run([path, "-m", "pip", "-V"], capture_output=True).returncode == 0:
            return path
    raise LookupError(f"no Python {version} here, which the image {image!r} has")


def metadata(name: str, version: str, requires: list[str]) -> str:
    lines = [f"Requires-Dist: {line}" for line in requires]
    return "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])


def install_stubs(image: str, folder: Path) -> None:
    """Lay the image's packages into `folder`, a path entry of Python's, as metadata without code."""
    requires = read_requires()
    for name, version in packages(image).items():
        place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir(parents=True)
        needs = requires.get(f"{name}=={version}", [])
        (place / "METADATA").write_text(metadata(name, version, needs))
        (place / "INSTALLER").write_text("pip\n")


def read_requires() -> dict[str, list[str]]:
    return json.loads(REQUIRES.read_text())


def pack_wheels(folder: Path, packed: dict[str, list[str]]) -> None:
    """Packages such as those of requires.json as wheels without code, for pip to choose from."""
    folder.mkdir(exist_ok=True)
    for key, requires in packed.items():
        name, version = key.split("==")
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", metadata(name, version, requires))
            tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{stem}.dist-info/WHEEL", tag)


def resolve(image: str, files: list[Path], folder: Path, *more: str) -> tuple[dict, str]:
    """What `pip install -r files` would install on the image, and what pip said of the rest.

    Raises AssertionError, with pip's words, where there is no solution.
    """
    install_stubs(image, folder / "image")
    words = [word for file in files for word in ("-r", str(file))]
    report = folder / "report.json"
    subprocess.run([python_of(image), "-m", "venv", folder / "bare"], check=True)
    done = subprocess.run(
        [
            folder / "bare/bin/python",
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--report",
            report,
            *more,
            *words,
        ],
        env=os.environ | {"PYTHONPATH": str(folder / "image")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {canonical(item["name"]): item["version"] for item in found}, done.stdout


def ask_index(image: str, files: list[Path], folder: Path) -> dict[str, list[str]]:
    """What each package that the requirements reach requires, at the image's versions, from the index."""
    pins = [f"{name}=={v}" for name, v in packages(image).items() if not TORCHS.match(name)]
    torch = packages(image)["torch"].split("+")[0]
    (folder / "pins.txt").write_text("\n".join([*pins, f"torch=={torch}"]))
    words = [word for file in files for word in ("-r", str(file))]
    options = ["--dry-run", "--ignore-installed", "-q", "--report", folder / "report.json"]
    command = [python_of(image), "-m", "pip", "install", *options, "-c", folder / "pins.txt"]
    subprocess.run([*command, *words], check=True)
    installs = json.loads((folder / "report.json").read_text())["install"]
    extras = {e for item in installs for e in item.get("requested_extras", [])}
    found = {}
    for item in (item["metadata"] for item in installs):
        name, requires = canonical(item["name"]), item.get("requires_dist", [])
        if TORCHS.match(name) and name != "torch":
            continue
        version = packages(image)["torch"] if name == "torch" else item["version"]
        found[f"{name}=={version}"] = [
            line
            for line in requires
            if set(re.findall(r"""extra == ["']([^"']+)""", line)) <= extras
            and not (name == "torch" and TORCHS.match(line))
        ]
    return found


def runtime_text() -> str:
    """A block an image: what it is called, its Python, and its versions of what requirements.txt names."""
    blocks = []
    for image, (_, python, title) in IMAGES.items():
        found = packages(image)
        names = sorted({*direct_requirements()} & set(found))
        pins = [f"{name}=={found[name].split('+')[0]}" for name in names]
        blocks.append("\n".join([f"# {title}", f"python=={python}", *pins]))
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    requires = {}
    for image in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            requires |= ask_index(image, list(REQUIREMENTS), Path(folder))
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(requires.items())]
    REQUIRES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    RUNTIME.write_text(runtime_text())
    print(f"{len(requires)} packages in {REQUIRES.name}")


if __name__ == "__main__":
    main()
