"""What the requirements would do to Colab's images, by pip's own resolver."""

import ast
import re
import sys
import tomllib
import urllib.error
import urllib.request
from importlib.metadata import distributions, packages_distributions

import nbformat
import pytest
from packaging.requirements import Requirement

from tests.image import (
    IMAGES,
    REQUIREMENTS,
    ROOT,
    RUNTIME,
    TORCHS,
    canonical,
    pack_wheels,
    packages,
    read_requires,
    resolve,
    runtime_text,
)

NEW = {
    "anthropic",
    "instaloader",
    "papermill",
    "jedi",
    "imagehash",
    "pi-heif",
    "xformers",
    "bitsandbytes",
}
OF_THE_MACHINE = {"google", "kaggle_secrets", "triton"}  # Colab's, Kaggle's, and torch's on a GPU


def imported_packages():
    """The modules that helpers/, notebooks/ and tools/ import from elsewhere, by their first name."""
    sources = [p.read_text() for room in ("helpers", "tools") for p in (ROOT / room).rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        sources.append(re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.M))
    names = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - OF_THE_MACHINE - {"helpers", "tools", "tests"}


def required(*files):
    text = "\n".join((ROOT / file).read_text() for file in files)
    return {canonical(name) for name in re.findall(r"^[\w.-]+", text, re.M)}


def test_every_package_that_is_imported_is_required():
    files = ("requirements.txt", "requirements-gpu.txt", "tests/requirements-browser.txt")
    packages_of = packages_distributions()
    found = {
        name: {canonical(p) for p in packages_of.get(name, [name])} for name in imported_packages()
    }
    assert len(found) > 30
    missing = {name for name, any_of in found.items() if not any_of & required(*files)}
    assert not missing


def test_each_bound_is_met_by_what_colab_has():
    lines = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"
    ]
    bounds = [Requirement(line) for line in lines]
    assert all(bound.specifier for bound in bounds)
    for image in IMAGES:
        had = packages(image)
        there = [bound for bound in bounds if canonical(bound.name) in had]
        assert len(there) > 20
        unmet = [b for b in there if not b.specifier.contains(had[canonical(b.name)].split("+")[0])]
        assert not unmet, image


def test_the_project_depends_on_what_the_requirements_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["dependencies"]
    read = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    assert read == ["requirements.txt"]


@pytest.fixture
def offline(tmp_path):
    """Options of pip that show it the index as it was when requires.json was written."""
    pack_wheels(tmp_path / "shelf", read_requires())
    return "--isolated", "--no-index", "--find-links", str(tmp_path / "shelf")


def added(image, files, folder, *options):
    """What would be installed; fails if that replaces a package of the image."""
    try:
        installs, said = resolve(image, files, folder, *options)
    except LookupError as error:
        pytest.skip(f"{error}: what a package requires depends on it")
    replaced = {name: version for name, version in installs.items() if name in packages(image)}
    assert not replaced, f"these would replace packages that Colab has: {replaced}"
    return set(installs), said


@pytest.mark.parametrize("image", IMAGES)
def test_the_requirements_leave_every_package_of_colab_alone(image, offline, tmp_path):
    new, said = added(image, REQUIREMENTS, tmp_path, *offline)
    assert new >= NEW and "torch" not in new
    met = {
        canonical(n) for n in re.findall("^Requirement already satisfied: ([\\w.-]+)", said, re.M)
    }
    assert {"torch", "diffusers", "datasets", "numpy"} <= met
    known = {key.split("==")[0] for key in read_requires()}
    unknown = {name for name in met - known if not TORCHS.match(name)}
    assert not unknown, f"run python -m tests.image: it is not known what {unknown} require"


@pytest.mark.parametrize("asked", ["transformers>=5.20", "torch>=2.12"])
def test_a_requirement_that_would_replace_one_is_found(asked, offline, tmp_path):
    name, version = asked.split(">=")
    requires = read_requires()[f"{name}=={packages('current')[name]}"]
    pack_wheels(tmp_path / "shelf", {f"{name}=={version}.1": requires})
    (tmp_path / "asked.txt").write_text(asked)
    with pytest.raises(AssertionError, match=f"would replace.*{name}"):
        added("current", [*REQUIREMENTS, tmp_path / "asked.txt"], tmp_path, *offline)


@pytest.mark.soak
@pytest.mark.parametrize("image", IMAGES)
def test_todays_index_changes_nothing_that_colab_has(image, tmp_path):
    try:
        urllib.request.urlopen("https://pypi.org/simple/papermill/", timeout=20).close()
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"the package index does not answer: {error}")
    new, _ = added(image, REQUIREMENTS, tmp_path)
    assert new >= NEW


def test_no_cuda_package_came_with_the_install():
    names = {canonical(found.metadata["Name"]) for found in distributions()}
    cuda = [name for name in names if re.match("nvidia|cuda|triton", name)]
    assert "torch" in names and not cuda, "torch's CUDA build: see CONTRIBUTING.md for the CPU's"


def test_what_the_setup_compares_with_are_the_images_lists():
    """`python -m tests.image` writes it."""
    assert RUNTIME.read_text() == runtime_text()
    system = (ROOT / "tests/colab/os-info-gpu.txt").read_text()
    assert f"\nPython {IMAGES['current'][1]}." in system


def test_the_replica_has_colabs_own_versions():
    lines = (ROOT / "tests/constraints-colab.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    image = packages("current")
    assert {name: image[canonical(name)] for name in pins} == pins
    wanted = "diffusers transformers accelerate datasets pandas peft huggingface_hub ipywidgets ipykernel nbclient"
    assert set(wanted.split()) <= set(pins)
