"""What the requirements would do to Colab's images, by pip's own resolver."""

import re
import urllib.error
import urllib.request
from importlib.metadata import distributions

import pytest

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
