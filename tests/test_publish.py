import hashlib
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, folder_hash, read_json
from helpers.core.records import rewrite
from helpers.core.run import Run
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.split import split
from tests.conftest import make_dataset
from tests.loopback_hub import TOKEN, Repo, loopback_hub

PERMISSIONS = ("private study", "own work", "permission of the artist")
CALLS = """
import json, sys
from helpers.config import DatasetConfig
from helpers.dataset.push_dataset import fetch, publish
from helpers.core.errors import RunError
from helpers.core.run import Run
said = []
for what, run, *rest in json.loads(sys.argv[1]):
    config = DatasetConfig(run=run, min_side_px=32, **rest[0]) if what == "publish" else None
    try:
        said.append(publish(config, Run(run)) if config else fetch(Run(run), *rest))
    except RunError as error:
        said.append(f"RunError: {error}")
print(json.dumps(said))
"""


@pytest.fixture
def hub():
    with loopback_hub() as hub:
        yield hub


def ask(hub, *calls, token=TOKEN):
    """What the real client, in a process of its own, says to each call."""
    home = {"HF_HOME": str(Path.cwd() / "hf"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_ENDPOINT")}
    env |= home | ({"HF_TOKEN": token} if token else {}) | {"HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def push(name, run="pictures", **settings):
    return ("publish", run, {"push_to": name, **settings})


def permit(run, permission):
    """The same run, as if 01 had been told another permission."""
    text = run.posts.read_text().replace('"private study"', f'"{permission}"')
    run.posts.write_text(text)
    config = DatasetConfig(run=run.name, min_side_px=32)
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.25, 0)), left_out)


def test_every_push_is_private_unless_asked_for_and_permitted(workplace, pictures, hub):
    for permission in PERMISSIONS:
        permit(make_dataset(permission.replace(" ", "-"), pictures), permission)
    asked = {}
    for permission, private, there in product(
        PERMISSIONS, (True, False), ("", "private", "public")
    ):
        name = f"me/{permission}-{private}-{there}".replace(" ", "-").strip("-")
        asked[name] = (permission, private, there)
        if there:
            hub.repos[name] = Repo(private=there == "private", files={"old.txt": b"old"})
    calls = [push(n, p.replace(" ", "-"), private=private) for n, (p, private, _) in asked.items()]
    for (name, (permission, private, there)), said in zip(
        asked.items(), ask(hub, *calls), strict=True
    ):
        repo = hub.repos.get(name)
        if not private and permission == "private study":
            assert "only 'own work' or 'permission of the artist' may be made public" in said
            assert repo is None or set(repo.files) == {"old.txt"}
        elif there == "public":
            assert "is a public repository already" in said and set(repo.files) == {"old.txt"}
        else:
            assert repo.private == private and said.endswith("private" if private else "public")
            assert repo.seen_public is not private
            assert "old.txt" not in repo.files and "train/metadata.csv" in repo.files


def test_an_empty_push_to_asks_nobody(dataset, hub):
    assert ask(hub, push("")) == ["not published: push_to is empty"]
    assert hub.requests == []


def test_what_is_pushed_is_the_dataset_and_nothing_else(dataset, hub):
    (dataset.dataset / ".secret").write_text("not listed")
    (dataset.dataset / "notes.txt").write_text("not listed")
    (said,) = ask(hub, push("me/pictures"))
    files = hub.repos["me/pictures"].files
    assert said == f"{len(files)} files in {hub.url}/datasets/me/pictures, private"
    assert set(files) == {*read_json(dataset.dataset / MANIFEST), MANIFEST}
    for name, content in files.items():
        assert (dataset.dataset / name).read_bytes() == content


def test_a_hub_that_makes_it_public_gets_no_image(dataset, hub):
    hub.deaf_to_privacy = True
    (said,) = ask(hub, push("me/pictures"))
    assert "me/pictures is not private though that was requested" in said
    assert hub.repos["me/pictures"].files == {}


def test_a_push_that_lost_a_file_is_told(dataset, hub):
    hub.drops = "train/metadata.csv"
    (said,) = ask(hub, push("me/pictures"))
    assert "me/pictures lacks train/metadata.csv after the push" in said


@pytest.mark.parametrize(
    ("fails", "token", "words"),
    [
        ({"/commit/": 403}, TOKEN, "403"),
        ({"/api/repos/create": 401}, TOKEN, "401"),
        ({}, "", "HF_TOKEN is not set: set the environment variable HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_one_line(dataset, hub, fails, token, words):
    hub.fails = fails
    (said,) = ask(hub, push("me/pictures"), token=token)
    assert said.startswith("RunError: ") and words in said and "\n" not in said


def test_no_hub_at_all_is_one_line(dataset, hub):
    hub.url = "http://127.0.0.1:9"
    (said,) = ask(hub, push("me/pictures"))
    assert said.startswith("RunError: me/pictures could not be pushed (") and "\n" not in said


def test_a_fresh_runtime_takes_the_dataset_up_from_the_hub(dataset, hub):
    ask(hub, push("me/pictures"))
    said = ask(hub, ("fetch", "fresh", "me/pictures"), ("fetch", "fresh", "me/pictures"))
    fresh = Run("fresh")
    assert said == [verify_dataset(fresh)] * 2
    assert folder_hash(fresh.dataset) == folder_hash(dataset.dataset)  # checkpoints still fit
    assert fresh.read_config("dataset")["suffix"] == dataset.read_config("dataset")["suffix"]
    assert fresh.read_config("dataset")["run"] == "fresh"


def test_a_file_that_changed_on_the_hub_is_refused(dataset, hub):
    ask(hub, push("me/pictures"))
    name = next(n for n in hub.repos["me/pictures"].files if n.endswith(".jpg"))
    hub.repos["me/pictures"].files[name] += b"x"
    (said,) = ask(hub, ("fetch", "fresh", "me/pictures"))
    assert f"{name.split('/')[1]} is not what manifest.json says: push it again" in said
    assert not Run("fresh").dataset.exists()


def test_names_that_are_not_ours_are_never_written(dataset, hub):
    ask(hub, push("me/pictures"))
    evil = (
        "../evil.jpg",
        "train/../../evil.jpg",
        "train/evil.py",
        "/evil.jpg",
        "train/\u202eevil.jpg",
    )
    whole = hub.repos["me/pictures"].files
    for i, name in enumerate(evil):
        listed = json.loads(whole[MANIFEST]) | {name: {"size": 4, "sha256": "0"}}
        files = whole | {name: b"evil"}
        hub.repos[f"me/beside-{i}"] = Repo(True, files)
        hub.repos[f"me/listed-{i}"] = Repo(True, files | {MANIFEST: json.dumps(listed).encode()})
    calls = [
        ("fetch", f"{how}-{i}", f"me/{how}-{i}") for how in ("beside", "listed") for i in range(5)
    ]
    said = ask(hub, *calls)
    assert all("images in runs/beside" in words for words in said[:5])  # the rest is whole
    assert all("which 03 never writes" in words for words in said[5:])
    assert not list(dataset.folder.parent.parent.rglob("*evil*"))


def test_settings_of_a_stranger_are_checked(dataset, hub):
    ask(hub, push("me/pictures"))
    whole = hub.repos["me/pictures"].files
    for i, settings in enumerate(({"seed": "x"}, {"evil": 1}, {"run": "../x", "private": False})):
        about = json.dumps(json.loads(whole["about.json"]) | {"settings": settings}).encode()
        entry = {"size": len(about), "sha256": hashlib.sha256(about).hexdigest()}
        manifest = json.dumps(json.loads(whole[MANIFEST]) | {"about.json": entry}).encode()
        hub.repos[f"me/s{i}"] = Repo(True, whole | {"about.json": about, MANIFEST: manifest})
    said = ask(hub, *(("fetch", f"s{i}", f"me/s{i}") for i in range(3)))
    assert "seed is 'x': give a whole number" in said[0] and "more has 'evil'" in said[1]
    assert not Run("s0").dataset.exists() and not Run("s1").dataset.exists()
    assert Run("s2").read_config("dataset")["private"] is True


def test_metadata_that_leads_out_of_the_folder_is_refused_before_it_is_read(dataset, hub):
    from helpers.core.files import write_manifest

    path = dataset.split_metadata("train")
    path.write_text(path.read_text() + "../../../secret.png,words\n")
    write_manifest(dataset.dataset)
    with pytest.raises(RunError, match="which is not in its folder"):
        verify_dataset(dataset)


def test_another_dataset_in_the_run_is_not_replaced(workplace, pictures, hub):
    first, second = make_dataset("first", pictures), make_dataset("second", pictures)
    ask(hub, push("me/first", "first"))
    before = folder_hash(second.dataset)
    (said,) = ask(hub, ("fetch", "second", "me/first"))
    assert "is another dataset already" in said and folder_hash(second.dataset) == before
    assert first.dataset.is_dir()


def test_a_repository_that_is_not_of_03_says_where_to_go(workplace, hub):
    hub.repos["me/images"] = Repo(private=True, files={"data/train.parquet": b"x"})
    said = ask(hub, ("fetch", "fresh", "me/images"), ("fetch", "fresh", "me/nothing"))
    assert "was not pushed by 03: use 01_scrape with source='hub'" in said[0]
    assert said[1].startswith("RunError: me/nothing could not be fetched (") and "\n" not in said[1]


@pytest.mark.parametrize(
    "name", ["me", "me/", "/x", "me/x/y", "me/x y", "https://hub/me/x", "../x"]
)
def test_a_hub_id_that_is_none_is_refused_when_the_config_is_made(name):
    with pytest.raises(RunError, match="push_to is"):
        DatasetConfig(push_to=name)


def test_publishing_checks_the_dataset_first(dataset, hub):
    image = dataset.split_images("train")[0]
    image.write_bytes(image.read_bytes() + b"x")
    (said,) = ask(hub, push("me/pictures"))
    assert "is not what manifest.json says" in said and hub.requests == []


def test_publishing_again_takes_away_what_was_left_out_since(dataset, hub):
    ask(hub, push("me/pictures"))
    rewrite(dataset.captions, lambda row: row["file_name"] != "Holiday-01_1.jpg")
    permit(dataset, "private study")
    ask(hub, push("me/pictures"))
    files = hub.repos["me/pictures"].files
    assert not [name for name in files if "Holiday-01" in name]
    assert b"Holiday-01" not in b"".join(files.values())
