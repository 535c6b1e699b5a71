"""A picture is its content: sources are added to, taken from, renamed, swapped and re-ordered at random.

What must come of it is told by a model of the truth that the test holds: which pictures the source has, and the
words of each.
"""

import csv
import io
import json
import random
import zipfile
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from PIL import Image

from helpers.caption.ledger import caption_images, edit, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.records import Caption, latest, present, read_rows
from helpers.core.run import Run
from helpers.dataset.build import build, held_out
from helpers.dataset.curate import curate
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import MIN_HELD_OUT, split
from helpers.scrape.ingest import ingest, list_items, verify_images


@cache
def picture(number: int) -> bytes:
    """A JPEG that is like no other."""
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Item:
    """A picture of the source: its number, where it lies there, and the words beside it, if there are any."""

    number: int
    place: str
    words: str | None


class Folder:
    """One's own folder, with a .txt beside most pictures."""

    source, key = "folder", "folder"
    places = ("cat (1).jpg", "a/1.jpg", "b/1.jpg", "C1a2B3c4D5e_1.jpg", "C1a2B3c4D5e_2.jpg")
    has_words = True

    def __init__(self, root):
        self.root = root / "art"

    def place(self, number, rng):
        return rng.choice((*self.places, f"{'zma'[number % 3]} {number}.jpg", f"cat-{number}.jpg"))

    def write(self, items):
        self.root.mkdir(exist_ok=True)
        wanted = {}
        for item in items:
            path = self.root / item.place
            wanted[path] = picture(item.number)
            if item.words is not None:
                wanted[path.with_suffix(".txt")] = item.words.encode()
        for path in [p for p in self.root.rglob("*") if p.is_file() and p not in wanted]:
            path.unlink()
        for path, content in wanted.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        return str(self.root)


class Hub:
    """A dataset in imagefolder layout, listed in the order of its rows."""

    source, key = "hub", "dataset_id"
    has_words = True

    def __init__(self, root):
        self.root = root / "set"

    def place(self, number, rng):
        return rng.choice(("1.jpg", "cat 1.jpg", "cat (1).jpg", f"{'zma'[number % 3]}{number}.jpg"))

    def write(self, items):
        folder = self.root / "train"
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        with (folder / "metadata.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "text"])
            for item in items:
                (folder / item.place).write_bytes(picture(item.number))
                table.writerow([item.place, item.words])
        return str(self.root)


class Packed(Hub):
    """A dataset whose pictures lie in its table and have no names: a row is known by its number alone."""

    def place(self, number, rng):
        return f"row {number}"

    def write(self, items):
        import datasets

        table = {
            "image": [{"bytes": picture(item.number), "path": None} for item in items],
            "text": [item.words for item in items],
        }
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        self.root.mkdir(exist_ok=True)
        made = datasets.Dataset.from_dict(table, features=features)
        made.to_parquet(self.root / "train-00000.parquet")
        return str(self.root)


class Export:
    """Instagram's ZIP: carousels of two, whose captions are no captions to train on."""

    source, key = "export", "folder"
    has_words = False

    def __init__(self, root):
        self.path = root / "export.zip"

    def place(self, number, rng):
        return f"media/posts/{number // 2}_{rng.choice('ab')}.jpg"

    def write(self, items):
        posts = {}
        for item in items:
            post = posts.setdefault(item.place[:-6], {"media": [], "title": "x"})
            stamp = 1_700_000_000 + int(item.place.split("/")[2][:-6])
            post["media"].append({"uri": item.place, "creation_timestamp": stamp})
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("media/posts_1.json", json.dumps([*posts.values()]))
            for item in items:
                archive.writestr(item.place, picture(item.number))
        return str(self.path)


class Truth:
    """What the source has, and what has been said of its pictures so far."""

    def __init__(self, kind, rng):
        self.kind, self.rng = kind, rng
        self.items: list[Item] = []
        self.number = 0
        self.names: dict[int, str] = {}  # of pictures, from when they first came in
        self.sides: dict[int, str] = {}
        for _ in range(14):
            self.add()

    def fresh(self):
        self.number += 1
        has_words = self.kind.has_words and self.rng.random() < 0.8
        return self.number, f"picture {self.number}" if has_words else None

    def add(self):
        number, words = self.fresh()
        taken = {item.place for item in self.items}
        place = self.kind.place(number, self.rng)
        if place not in taken:
            self.items.insert(self.rng.randrange(len(self.items) + 1), Item(number, place, words))

    def remove(self):
        if len(self.items) > 10:
            self.items.remove(self.rng.choice(self.items))

    def replace(self):
        item = self.rng.choice(self.items)
        item.number, item.words = self.fresh()

    def rename(self):
        item, place = self.rng.choice(self.items), self.kind.place(self.number + 1, self.rng)
        if place not in {other.place for other in self.items}:
            self.number += 1
            item.place = place

    def swap(self):
        a, b = self.rng.sample(self.items, 2)
        a.place, b.place = b.place, a.place

    def reorder(self):
        self.rng.shuffle(self.items)

    def rerun(self):
        pass

    STEPS = (add, add, remove, replace, rename, swap, swap, reorder, rerun)


def walk(truth, folder):
    """01 and 02: and where no words lie beside a picture, a person writes some."""
    kind = truth.kind
    config = ScrapeConfig(run="mine", source=kind.source, **{kind.key: kind.write(truth.items)})
    run, caption = Run("mine"), CaptionConfig(run="mine")
    assert all(item.post for item in ingest(config, run, list_items(config, run)))
    verify_images(run)
    list(caption_images(caption, run, pending(caption, run)))
    number_of = {picture_hash(item.number): item.number for item in truth.items}
    rows = latest(read_rows(run.captions, Caption))
    for post in present(run.posts):
        if not rows[post.file_name].is_usable:
            edit(run, rows[post.file_name], f"picture {number_of[post.sha256]}")
    return run


@cache
def picture_hash(number):
    import hashlib

    return hashlib.sha256(picture(number)).hexdigest()


def check(truth, run):
    posts = present(run.posts)
    assert sorted(post.sha256 for post in posts) == sorted(
        picture_hash(i.number) for i in truth.items
    )
    by_hash = {post.sha256: post.file_name for post in posts}
    for item in truth.items:
        name = by_hash[picture_hash(item.number)]
        assert truth.names.setdefault(item.number, name) == name
    assert len(set(map(str.lower, truth.names.values()))) == len(truth.names)
    rows = latest(read_rows(run.captions, Caption))
    for number, name in truth.names.items():  # of those that are gone, too
        assert run.image(name).read_bytes() == picture(number)
        assert rows[name].caption == f"picture {number}"


def build_dataset(truth, run):
    config = DatasetConfig(run="mine", min_side_px=32, validation_share=0.25, max_hash_bits=0)
    kept, left_out = curate(config, run)
    side = split(kept, config.validation_share, config.seed, held_out(config, run))
    build(config, run, kept.assign(split=side), left_out)
    records = {record.image: record for record in read_records(run.dataset)}
    assert records.keys() == {truth.names[item.number] for item in truth.items}
    sides, post = {}, {}
    for item in truth.items:
        record = records[truth.names[item.number]]
        assert record.text == f"picture {item.number}{config.suffix}"
        sides[item.number], post[item.number] = record.split, record.shortcode
    still = {n for n, was in truth.sides.items() if n in sides and was == "validation"}
    count = sum(post[n] in {post[other] for other in still} for n in sides)  # with their posts
    if count <= len(sides) // 2:  # else all is split anew
        assert all(sides[number] == "validation" for number in still)
    if min(MIN_HELD_OUT, len(sides) // 4) <= count <= len(sides) // 2:  # else some come over
        assert all(sides[n] == was for n, was in truth.sides.items() if n in sides)
    truth.sides = sides


KINDS = (Folder, Hub, Packed, Export)


def wander(workplace, monkeypatch, kind, seed, steps):
    monkeypatch.setenv("HOME", str(workplace))
    rng = random.Random(seed)
    truth = Truth(kind(workplace), rng)
    for number in range(steps):
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            rng.choice(Truth.STEPS)(truth)
        run = walk(truth, workplace)
        check(truth, run)
        if number % 2 or number == steps - 1:
            build_dataset(truth, run)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_becomes_of_a_source_every_caption_stays_on_its_picture(
    workplace, monkeypatch, kind, seed
):
    wander(workplace, monkeypatch, kind, seed, 4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5, 55))
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_sequences_keep_every_caption_on_its_picture(
    workplace, monkeypatch, kind, seed
):
    wander(workplace, monkeypatch, kind, seed, 8)
