import io
import re
import subprocess
import sys
from functools import cache

import ipywidgets
import numpy as np
import pandas as pd
import papermill
import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from helpers.config import DatasetConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.files import write_json
from helpers.core.records import Rejection, read_rows
from helpers.core.run import Run
from helpers.dataset.charts import charts, setting, subject
from helpers.dataset.curate import curate, take_back
from helpers.dataset.gallery import CELL_PX, cluster_sheet, gallery, left_out_sheet, reasons
from helpers.dataset.quality import oddness, text_share
from helpers.dataset.resemblance import copies, joined, look
from helpers.demo.flaws import FLAWS as DEMO_FLAWS
from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import random_scene
from helpers.figures.pictures import GAP_PX
from helpers.scrape.ingest import find, take
from helpers.scrape.ingest import left_out as refused
from tests.conftest import ROOT, lines, make_dataset, photograph

CONFIG = DatasetConfig(run="art")


def saved(image, kind="JPEG", quality=95):
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image, factor, method=Image.Resampling.LANCZOS):
    return image.resize((round(image.width * factor), round(image.height * factor)), method)


COPIES = {
    "half": lambda image: scaled(image, 0.5),
    "third, by neighbours": lambda image: scaled(image, 0.35, Image.Resampling.NEAREST),
    "double": lambda image: scaled(image, 2, Image.Resampling.BICUBIC),
    "JPEG 30": lambda image: saved(image, quality=30),
    "JPEG 60": lambda image: saved(image, quality=60),
    "WEBP 50": lambda image: saved(image, "WEBP", 50),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored, half, JPEG 40": lambda image: saved(scaled(ImageOps.mirror(image), 0.5), quality=40),
}


@pytest.mark.parametrize("paint", [paint_watercolour, paint_flat])
@pytest.mark.parametrize("count", [100, pytest.param(857, marks=pytest.mark.soak)])
def test_copies_are_clustered_and_unrelated_drawings_are_not(paint, count):
    drawings = [paint(random_scene(seed)) for seed in range(count)]
    looks = [look(drawing) for drawing in drawings]
    labels = joined(count, list(copies(looks, CONFIG.max_hash_bits)))
    assert (np.bincount(labels)[labels] > 1).mean() <= 0.01
    found = {
        name: [
            bool(list(copies([looks[i], look(make(drawings[i]))], CONFIG.max_hash_bits)))
            for i in range(0, count, 10)
        ]
        for name, make in COPIES.items()
    }
    assert min(np.mean(hits) for hits in found.values()) >= 0.95, found


def test_pictures_without_a_layout_or_of_another_colour_are_no_copies():
    plain = [look(Image.new("RGB", (64, 64), (20 * i, 90, 90))) for i in range(6)]
    assert not list(copies(plain, CONFIG.max_hash_bits))
    drawing = paint_flat(random_scene(1))
    red, green, blue = drawing.split()
    other = Image.merge("RGB", (blue, red, green))
    assert not list(copies([look(drawing), look(other)], CONFIG.max_hash_bits))


def text_card(seed=0, size=(540, 540)):
    image = Image.new("RGB", size, (238, 230, 220))
    font, draw = ImageFont.load_default(size=size[0] // 18), ImageDraw.Draw(image)
    words = "commissions are open again this week please write me a message".split()
    for line in range(11):
        text = " ".join(words[(seed + line * 3 + i) % len(words)] for i in range(5))
        draw.text((size[0] // 18, size[0] * (line + 1) // 13), text, (40, 30, 60), font)
    return image


def photo(seed=0):
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(20, 110, (12, 12, 3), np.uint8)).resize((160, 160))
    noisy = np.asarray(soft, float) + rng.normal(0, 14, (160, 160, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@cache
def watercolour(seed):
    return paint_watercolour(random_scene(seed))


@pytest.fixture
def art(tmp_path):
    """A folder of thirty captioned watercolours."""
    folder = tmp_path / "art"
    for i in range(30):
        put(folder, f"w{i:02d}", watercolour(i))
    return folder


def put(folder, name, image, caption="a picture", kind="png"):
    folder.mkdir(exist_ok=True)
    image.save(folder / f"{name}.{kind}")
    (folder / f"{name}.txt").write_text(caption)


def curated(folder, **settings):
    run = make_dataset("art", folder)
    kept, left_out = curate(DatasetConfig(run="art", **settings), run)
    return run, kept, dict(zip(left_out["file_name"], left_out["reason"], strict=True))


FLAWS = {
    "too small": (lambda w: scaled(w, 0.4), "its shorter side of 51 px is below min_side_px 64"),
    "extreme aspect": (lambda w: w.resize((512, 100)), "5.1 times the shorter, above max_aspect 3"),
    "too dark": (lambda w: w.point(lambda v: v // 12), "is below min_brightness 24"),
    "mostly text": (lambda w: text_card(), "of its height, above max_text_share 0.25"),
    "too blurry": (
        lambda w: scaled(w, 2).filter(ImageFilter.GaussianBlur(8)),
        "min_sharpness 0.02 of the set's median",
    ),
    "odd one out": (
        lambda w: photo(),
        "spreads from the other posts' pictures, above max_oddness 10",
    ),
}


def test_each_flaw_is_a_reason_with_its_figure_and_its_setting(workplace, art):
    for i, (kind, (spoil, _)) in enumerate(FLAWS.items()):
        put(art, kind.replace(" ", "-"), spoil(watercolour(100 + i)))
    run, kept, reasons = curated(art)
    assert set(reasons) == {f"{kind.replace(' ', '-')}_1.png" for kind in FLAWS} and len(kept) == 30
    for kind, (_, words) in FLAWS.items():
        reason = reasons[f"{kind.replace(' ', '-')}_1.png"]
        assert words in reason and re.search(r"\d", reason), reason
    assert {row.file_name: row.reason for row in read_rows(run.rejected, Rejection)} == reasons
    assert all(run.image(name).is_file() for name in reasons)  # nothing is deleted


def test_every_threshold_can_be_set(workplace, art):
    for i, (kind, (spoil, _)) in enumerate(FLAWS.items()):
        put(art, kind.replace(" ", "-"), spoil(watercolour(100 + i)))
    _, kept, reasons = curated(
        art,
        min_side_px=16,
        max_aspect=100.0,
        min_brightness=0.0,
        min_sharpness=0.0,
        max_text_share=1.0,
        max_oddness=1e6,
    )
    assert not reasons and len(kept) == 36


def test_the_demos_flaws_are_left_out_each_for_its_reason_and_all_else_stays(workplace):
    from helpers.caption.ledger import caption_images, pending
    from helpers.config import CaptionConfig

    config, run = ScrapeConfig(run="demo"), Run("demo")
    list(take(config, run, find(config, run)))
    assert [row.reason for row in refused(run)] == ["is a video"]
    caption = CaptionConfig(run="demo")
    list(caption_images(caption, run, pending(caption, run)))
    kept, left_out = curate(DatasetConfig(run="demo"), run)
    planted = {f"{kind} of scene {flaw.seed}": kind for kind, flaw in DEMO_FLAWS.items()}
    assert dict(zip(left_out["source_id"], left_out["kind"], strict=True)) == planted
    assert len(kept) == 169 and kept["source_id"].str.fullmatch(r"scene 4000\d{3}").all()
    assert (kept["cluster"] == kept["file_name"]).all()  # a copy moves no original to another side
    for row in left_out.itertuples():
        sheet = left_out_sheet(run, left_out[left_out["kind"] == row.kind])
        planted = ImageOps.pad(DEMO_FLAWS[row.kind].paint(), (CELL_PX, CELL_PX), color="white")
        assert apart(sheet.crop((GAP_PX, 3, GAP_PX + CELL_PX, 3 + CELL_PX)), planted) < 3, row.kind


def apart(one, other):
    """The mean difference of two pictures at 32 px, of 255."""
    small = [
        np.asarray(image.resize((32, 32), Image.Resampling.BOX), int) for image in (one, other)
    ]
    return np.abs(small[0] - small[1]).mean()


def test_the_sharpest_of_a_cluster_stays(workplace, art):
    original = watercolour(7)  # w07
    put(art, "a-half", scaled(original, 0.6))
    put(art, "b-mirror", saved(ImageOps.mirror(original), quality=50), kind="jpg")
    put(art, "c-soft", original.filter(ImageFilter.GaussianBlur(1.2)))
    (art / "d-same.png").write_bytes((art / "w07.png").read_bytes())
    (art / "d-same.txt").write_text("the same file")
    _, kept, reasons = curated(art)
    assert set(reasons) == {"a-half_1.png", "b-mirror_1.jpg", "c-soft_1.png", "w07_1.png"}
    assert reasons["w07_1.png"] == "is the same file as d-same_1.png"
    for name in ("a-half_1.png", "b-mirror_1.jpg", "c-soft_1.png"):
        assert re.match(
            r"shows the same as d-same_1.png: their hashes differ in \d+ of 256", reasons[name]
        )
    assert (kept["cluster"] == kept["file_name"]).all()


def test_what_a_person_takes_back_stays_in_over_reruns(workplace, art):
    put(art, "dark", watercolour(100).point(lambda v: v // 12))
    put(art, "copy", scaled(watercolour(3), 0.6))
    run, kept, reasons = curated(art)
    assert set(reasons) == {"dark_1.png", "copy_1.png"}
    for name in reasons:
        take_back(run, name)
        take_back(run, name)
    for _ in range(2):
        kept, left_out = curate(DatasetConfig(run="art"), run)
        assert len(left_out) == 0 and len(kept) == 32 and not lines(run.rejected)
    clusters = kept.set_index("file_name")["cluster"]
    assert clusters["copy_1.png"] == clusters["w03_1.png"]  # so that both go to one side
    assert run.taken_back.read_text() == "copy_1.png\ndark_1.png\n"
    with pytest.raises(RunError, match="no image name of this project"):
        take_back(run, "../x.jpg")


def test_a_reason_that_holds_no_more_is_taken_from_the_list(workplace, art):
    put(art, "small", scaled(watercolour(100), 0.4))
    (art / "notes.bmp").write_bytes(b"no image")
    run, _, reasons = curated(art)
    assert set(reasons) == {"small_1.png"} and len(lines(run.rejected)) == 2
    curate(DatasetConfig(run="art", min_side_px=32), run)
    assert [row["file_name"] for row in lines(run.rejected)] == ["notes.bmp"]  # what 01 said stays


def test_a_broken_image_is_left_out_and_the_rest_goes_on(workplace, art):
    run = make_dataset("art", art)
    image = run.image("w05_1.png")
    image.write_bytes(image.read_bytes()[:900])
    kept, left_out = curate(CONFIG, run)
    assert len(kept) == 29 and left_out["reason"].item().startswith("does not decode")


def test_the_gallery_shows_pictures_without_widgets_and_takes_one_back_by_a_click(workplace, art):
    put(art, "dark", watercolour(100).point(lambda v: v // 12))
    photograph(art / "wordless.jpg", 3)
    run = make_dataset("art", art)
    _, left_out = curate(CONFIG, run)
    shown = gallery(run, left_out)
    buttons = [w for w in descendants(shown) if isinstance(w, ipywidgets.Button)]
    words = [w.value for w in descendants(shown) if isinstance(w, ipywidgets.Label)]
    assert words == ["too dark: dark_1.png"] and len(buttons) == 1  # no click captions an image
    assert "no caption: 1, first wordless_1.jpg: has no caption" in reasons(left_out)
    assert any(line.startswith("too dark: 1, first dark_1.png: its ") for line in reasons(left_out))
    sheet = left_out_sheet(run, left_out)
    assert sheet.width > 5 * CELL_PX and CELL_PX < sheet.height < 2 * CELL_PX
    run.image("dark_1.png").unlink()
    assert left_out_sheet(run, left_out).size == sheet.size  # a blank stands for what is not there
    assert left_out_sheet(run, left_out.iloc[:0]) == "nothing was left out"
    buttons[0].click()
    assert buttons[0].disabled and run.taken_back.read_text() == "dark_1.png\n"


def descendants(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from descendants(child)


def test_the_gallery_shows_words_of_others_as_words(workplace, art):
    run = make_dataset("art", art)
    _, left_out = curate(CONFIG, run)
    evil = {"file_name": ["w00_1.png"], "kind": ["<b>x</b>"], "reason": ["<script>"]}
    left_out = pd.DataFrame(evil)
    kinds = {type(widget).__name__ for widget in descendants(gallery(run, left_out))}
    assert kinds <= {"VBox", "HBox", "Label", "Button"}  # none of which renders markup
    assert len(list(descendants(gallery(run, left_out.iloc[:0])))) == 1


def test_clusters_are_shown_with_the_kept_one_first(workplace, art):
    put(art, "copy", scaled(watercolour(3), 0.6))
    run = make_dataset("art", art)
    kept, left_out = curate(CONFIG, run)
    sheet = cluster_sheet(run, kept, left_out)
    assert sheet.width > 5 * 120 and sheet.height < 2 * 160
    assert cluster_sheet(run, kept, left_out.iloc[:0]) == "no two images are copies of one another"


def test_the_room_loads_without_torch():
    names = (
        "build charts curate dataset_card dataset_files gallery history join push_dataset quality "
        "resemblance split takedown"
    )
    code = f"import sys; [__import__('helpers.dataset.' + n) for n in {names.split()}]; "
    code += "print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_text_is_told_from_drawings():
    cards = [text_card(i, size) for i in range(5) for size in ((540, 540), (1080, 1350))]
    assert min(text_share(card.convert("L")) for card in cards) > CONFIG.max_text_share
    drawn = [paint_flat(random_scene(i), 256) for i in range(40)] + [photo(i) for i in range(5)]
    assert max(text_share(image.convert("L")) for image in drawn) < 0.1


@pytest.mark.parametrize("size", [(720, 1480), (1080, 2340), (1290, 2796)])
def test_a_phones_screenshot_of_a_post_is_mostly_text_and_a_tall_drawing_is_not(size):
    font = ImageFont.load_default(size=size[0] // 32)
    words = "commissions are open again this week please write me a message".split()
    shares = []
    for seed in range(4):
        screen = Image.new("RGB", size, "white")
        screen.paste(paint_flat(random_scene(seed), size[0] * 4 // 5), (size[0] // 10, 90))
        draw, step = ImageDraw.Draw(screen), size[0] // 20
        for top in range(size[0], size[1] - step, step):
            text = " ".join(words[(seed + top + i) % len(words)] for i in range(9))
            draw.text((size[0] // 18, top), text, (30, 30, 34), font)
        shares.append(text_share(screen.convert("L")))
    assert min(shares) > CONFIG.max_text_share
    drawn = [paint_flat(random_scene(i), 512).crop((128, 0, 384, 512)) for i in range(30)]
    assert max(text_share(image.convert("L")) for image in drawn) < 0.1


def test_a_whole_post_of_photos_is_odd_and_a_second_style_is_not():
    rng = np.random.default_rng(0)
    style, second, selfies = (
        rng.normal(centre, 0.05, (count, 72)) for centre, count in ((0.1, 60), (0.4, 15), (0.8, 4))
    )
    palettes = np.concatenate([style, second, selfies])
    posts = np.array([f"p{i}" for i in range(75)] + ["selfies"] * 4)
    odd = oddness(palettes, posts) > CONFIG.max_oddness
    assert odd[75:].all() and not odd[:75].any()
    assert not oddness(palettes[:10], posts[:10]).any()  # too few to tell
    assert np.isfinite(oddness(palettes[:30], np.array(["one"] * 30))).all()


@pytest.mark.parametrize(
    ("caption", "who", "where"),
    [
        ("blue and yellow cats shopping at plant store", "cats", "plant store"),
        ("a turtle character dressed as teacher standing next to a chalkboard", "turtle", ""),
        ("a blue cat next to a red car on a green hill", "cat", "green hill"),
        ("", "", ""),
    ],
)
def test_characters_and_settings_are_read_off_a_caption(caption, who, where):
    assert (subject(caption), setting(caption)) == (who, where)


def noted(monkeypatch, method, of):
    """What `of` gives for each call of a method of matplotlib's Axes, which does as ever."""
    found, really = [], getattr(Axes, method)

    def call_and_note(axes, *values, **given):
        found.append(of(*values, **given))
        return really(axes, *values, **given)

    monkeypatch.setattr(Axes, method, call_and_note)
    return found


def test_a_suffix_that_stands_in_a_caption_is_no_setting_of_the_charts(workplace, art, monkeypatch):
    kept, _ = curate(CONFIG, make_dataset("art", art))
    words = f"a cat at night{CONFIG.suffix}"
    ticks = noted(monkeypatch, "set_yticks", lambda places, names: names)
    charts(kept.assign(split="train", caption=words), CONFIG.suffix)
    assert ticks == [["cat"], ["night"]]


def test_the_chart_of_lengths_ends_where_the_base_model_stops_reading(workplace, art, monkeypatch):
    run = make_dataset("art", art)
    kept, _ = curate(CONFIG, run)
    kept = kept.assign(split="train")
    titles = noted(monkeypatch, "set", lambda **given: given.get("title"))
    charts(kept, CONFIG.suffix)
    write_json(run.config("train"), {"run": "art", "base_model": "assets/tiny-sd"})
    kept, _ = curate(CONFIG, run)
    charts(kept.assign(split="train"), CONFIG.suffix)
    told = [title for title in titles if title and "the model reads" in title]
    assert [title.rpartition(" ")[2] for title in told] == ["77", "32"]


def test_charts_stand_any_words(workplace, art):
    _, kept, _ = curated(art)
    kept = kept.assign(split=["train"] * 25 + ["validation"] * 5)
    kept.loc[kept.index[:3], "caption"] = ["$x_{$ at $$", "日本 in 東京", "word " * 200]
    assert charts(kept, " in a style").size[0] > 800


def test_the_notebook_runs_headlessly_with_everything_planted(workplace, art):
    put(art, "copy", scaled(watercolour(3), 0.6))
    photograph(art / "wordless.jpg", 3)
    run = make_dataset("art", art)
    done = papermill.execute_notebook(
        "notebooks/03_dataset.ipynb",
        "out.ipynb",
        {"run": "art", "more": {"max_aspect": 2.5}},
        progress_bar=False,
    )
    said = str(done)
    for words in (
        "30 kept, 2 left out",
        "near copy",
        "images are held out",
        "not published: push_to",
    ):
        assert words in said, words
    assert run.read_config("dataset")["max_aspect"] == 2.5
