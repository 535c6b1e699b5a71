"""Colab's own versions fit together: laid over the newest by `make test`, and as its images by `make replica`."""

import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import replica
from tests.image import ROOT, canonical


def installed(path=None):
    """The distributions that an import would find: the first of each name on the path."""
    found = {}
    for one in distributions(path=path or sys.path):
        found.setdefault(canonical(one.metadata["Name"]), one)
    return found


def unmet(one, found, extra=""):
    """What a distribution wants and does not find, and what the extras that it asks for want, as pip has it."""
    for line in one.requires or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        other = found.get(canonical(wanted.name))
        if other is None or not wanted.specifier.contains(other.version, prereleases=True):
            yield f"{one.name} {one.version} wants {wanted}, has {other and other.version}"
            continue
        for name in wanted.extras:
            yield from unmet(other, found, name)


def test_what_is_installed_fits_together():
    found = installed()
    assert [problem for one in found.values() for problem in unmet(one, found)] == []


@pytest.mark.skipif(Path(sys.prefix).name != "colab", reason="these are the newest versions")
def test_here_are_colabs_versions():
    found = installed()
    lines = (ROOT / "tests/constraints-colab.txt").read_text().splitlines()
    for line in lines:
        if not line.startswith("#"):
            name, version = line.split("==")
            assert found[canonical(name)].version == version


@pytest.mark.skipif(Path(sys.prefix).parent != replica.FOLDER, reason="this is no image")
def test_here_is_what_the_image_has():
    """And what Setup adds to it."""
    pins, added = replica.pins_of(Path(sys.prefix).name), set()
    site = [sysconfig.get_path("purelib")]  # not what setuptools brings for itself
    for name, one in installed(site).items():
        if name in pins:
            assert one.version.split("+")[0] == pins[name], name
        else:
            added.add(name)
    assert {"instaloader", "anthropic", "papermill", "imagehash", "pi-heif"} <= added
    assert not {"torch", "diffusers", "transformers", "datasets", "numpy"} & added
