"""The suffix stands once, however a caption came."""

import csv

import pytest

from helpers.caption.check import find_problems
from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig, TrainConfig, configure
from helpers.core.records import Caption
from helpers.core.run import Run
from helpers.core.suffix import append_suffix, common_ending, has_suffix, strip_suffix
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.charts import suffix_note
from helpers.dataset.curate import curate
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import split
from helpers.host.device import pick_device
from helpers.inference.draw.prompts import Prompts
from helpers.scrape.ingest import ingest, list_items
from helpers.train.prepare import prepare
from tests.conftest import SMALL_TRAINING, photograph

SEEDS = " in an annalaura watercolor drawing style"
CAME = [
    "a cat on a hill{}",
    "a cat on a hill{}.",
    "a cat on a hill,{}",
    "a cat on a hill, {} ",
    "a cat on a hill.{} !",
    "a cat on a hill -{}",
    "a cat on a hill ({})",
    "a cat on a hill{0}{0}",
    "a cat on a hill{0},{0}.",
]


@pytest.mark.parametrize("change", [str, str.upper, str.title, lambda s: s.replace(" ", "\u00a0 ")])
@pytest.mark.parametrize("came", CAME)
def test_it_stands_once_whatever_its_case_comma_spaces_or_stop(came, change):
    text = came.format(change(SEEDS))
    assert append_suffix(text, SEEDS) == "a cat on a hill" + SEEDS
    assert strip_suffix(text, SEEDS) == "a cat on a hill" and has_suffix(text, SEEDS)


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "a cat in an annalaura watercolor style",
        "a catin an annalaura watercolor drawing style",
        "in an annalaura watercolor drawing style a cat sits",
        "a bear holding a sign that says wow!",
    ],
)
def test_words_that_are_no_suffix_stay(text):
    assert append_suffix(text, SEEDS) == text + SEEDS and strip_suffix(text, SEEDS) == text


@pytest.mark.parametrize(
    ("suffix", "text", "right"),
    [
        (" sks", "a sks dog sks", "a sks dog sks"),
        (" sks", "a dogsks", "a dogsks sks"),
        (", mira style", "a cat, Mira style", "a cat, mira style"),
        (", mira style", "a cat mira style.", "a cat, mira style"),
        (" <mira> (v1.2)", "a cat <MIRA> (v1.2)", "a cat <mira> (v1.2)"),
        (" 水彩風", "猫、水彩風。", "猫 水彩風"),
        (" in a c++ [x]* style", "a cat in a C++ [x]* style", "a cat in a c++ [x]* style"),
        (" in a mira style", "In a Mira style.", "in a mira style"),
        ("", "a cat.", "a cat."),
    ],
)
def test_suffixes_of_every_kind(suffix, text, right):
    DatasetConfig(suffix=suffix)
    assert append_suffix(text, suffix) == right == append_suffix(right, suffix)


def seeds_list(folder, count=40):
    """The seed's list in small: an index column, `prompt`, and the suffix at each caption's end, as pandas wrote it."""
    with_ends = [SEEDS, SEEDS + ".", "," + SEEDS, SEEDS.upper(), SEEDS + " ", ""]
    rows = []
    for i in range(count):
        name = f"C{i // 2:02d}bZxYwVu9q_{i % 2 + 1}.jpg"
        photograph(folder / name, i)
        end = with_ends[i % 6] if i % 5 == 0 else SEEDS
        rows.append((i, name, f"blue and yellow cats shopping at store {i}{end}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("", "file_name", "prompt"), *rows])
    return folder


def walked(source, suffix, name="seed", **more):
    """01 to 03, and the kept images."""
    scrape, run = ScrapeConfig(run=name, source=source, **more), Run(name)
    list(ingest(scrape, run, list_items(scrape, run)))
    caption, config = CaptionConfig(run=name), DatasetConfig(run=name, suffix=suffix)
    list(caption_images(caption, run, pending(caption, run)))
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.2, 0)), left_out)
    assert verify_dataset(run)
    return run, kept


def test_the_demos_suffix_on_pictures_of_ones_own_is_told(workplace, pictures):
    run, _ = walked("folder", DatasetConfig.suffix, folder=str(pictures))
    assert "warning: your captions end in the demo's suffix" in verify_dataset(run)
    run, _ = walked("folder", " in a kestrel gouache style", "mine", folder=str(pictures))
    assert "warning" not in verify_dataset(run)
    run, _ = walked("demo", DatasetConfig.suffix, "demo", demo_posts=8)
    assert "warning" not in verify_dataset(run)


@pytest.mark.parametrize(
    "count", [40, pytest.param(857, marks=pytest.mark.soak)], ids=["40", "857"]
)
def test_each_text_of_the_seeds_list_ends_in_its_suffix_once(workplace, monkeypatch, count):
    run, kept = walked("folder", SEEDS, folder=str(seeds_list(workplace / "seed", count)))
    texts = {record.text for record in read_records(run.dataset)}
    assert texts == {f"blue and yellow cats shopping at store {i}{SEEDS}" for i in range(count)}
    had = sum(SEEDS.strip().lower() in caption.lower() for caption in kept["caption"])
    assert suffix_note(kept["caption"], SEEDS).startswith(
        f"{had} of {count} captions ended in the suffix already: it stands once in each"
    )
    monkeypatch.setenv("HOME", str(workplace))
    again, _ = walked("hub", SEEDS, "again", dataset_id=str(run.dataset.absolute()))
    assert {record.text for record in read_records(again.dataset)} == texts


def test_another_suffix_that_nearly_all_captions_end_in_is_told(workplace):
    _, kept = walked("folder", " in a new style", folder=str(seeds_list(workplace / "seed")))
    note = suffix_note(kept["caption"], " in a new style")
    assert note.startswith("the suffix ends each of 40 captions. Nearly all end in ")
    assert "set suffix to ' in an annalaura watercolor drawing style'" in note
    assert common_ending([f"a {x} on a green hill" for x in ("cat", "dog")] + ["a bear"] * 3) == ""


def test_a_suffix_in_the_caption_is_no_style_word_and_counts_no_token_twice(workplace):
    run, config = Run("x"), CaptionConfig(run="x", suffix=SEEDS)
    rows = [Caption("a.jpg", f"a cat on a hill{SEEDS}.", "ok", "sidecar")]
    rows += [Caption("b.jpg", f"a watercolor of a dog on a hill{SEEDS}", "ok", "sidecar")]
    rows += [Caption("c.jpg", " ".join(["cat"] * 64) + SEEDS, "ok", "sidecar")]
    found = find_problems(config, run, rows)
    assert [row.file_name for row in found["style word"]] == ["b.jpg"]
    assert not next(rows for what, rows in found.items() if what.startswith("over"))


@pytest.mark.parametrize("came", CAME)
def test_a_prompt_that_has_the_suffix_is_drawn_with_it_once(came):
    prompts = Prompts(None, SEEDS, 77)
    assert prompts.styled(came.format(SEEDS)) == "a cat on a hill" + SEEDS
    assert prompts.styled("a cat on a hill") == "a cat on a hill" + SEEDS


def test_prior_preservation_asks_the_base_without_the_suffix(workplace, tiny_base):
    """Also of a dataset of an older version, which said it twice."""
    run, _ = walked("folder", SEEDS, folder=str(seeds_list(workplace / "seed", 12)))
    table = run.split_metadata("train")
    table.write_text(table.read_text().replace(SEEDS, SEEDS + "," + SEEDS.title() + "."))
    given = {"run": "seed", "base_model": str(tiny_base), **SMALL_TRAINING, "prior_share": 1.0}
    training, _ = prepare(configure(TrainConfig, given), run, pick_device())
    names = [name for name in training.data.dataset.names if name.startswith("the base's")]
    assert len(names) == len(run.split_images("train"))
    assert not [name for name in names if "style" in name.lower()]
