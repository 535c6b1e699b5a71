"""The prompt box's part "From a picture", by the values that either ipywidgets gives it, and bad input."""

import io
from datetime import UTC, datetime

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image, ImageCms

from helpers.inference.draw.picture_form import (
    ALL,
    IN_USE,
    MASK,
    RECTANGLE,
    SKETCH,
    TITLE,
    uploaded,
)
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import Sampler
from tests.conftest import ORIENTATION
from tests.test_from_picture import painting
from tests.test_inference_draw import CONFIG


@pytest.fixture
def box(trained_run):
    return box_of(Sampler(trained_run))


def box_of(sampler):
    box = PromptBox(sampler, CONFIG, "a turtle")
    box.count.value, box.steps.value, box.compare.value = 1, 4, False
    return box


def encoded(image, format="PNG", **given):
    buffer = io.BytesIO()
    image.save(buffer, format, **given)
    return buffer.getvalue()


def in_7(name, content):
    return {name: {"metadata": {"name": name, "size": len(content)}, "content": content}}


def in_8(name, content):
    described = {"type": "image/png", "last_modified": datetime(2020, 1, 1, tzinfo=UTC)}
    return (described | {"name": name, "size": len(content), "content": memoryview(content)},)


def upload(box, image, name="picture.png", button="upload", **given):
    """What a browser's upload does, by whichever ipywidgets is installed."""
    content = image if isinstance(image, bytes) else encoded(image, **given)
    button = getattr(box.from_picture, button)
    kind = in_7 if isinstance(button.value, dict) else in_8
    button.set_trait("value", kind(name, content))


def drawn(box):
    """Press Draw; the path and settings of what was drawn."""
    box.button.click()
    assert "Kept in" in box.message.value, box.message.value
    return box.sampler.album.newest(1)[0]


def shown_fields(box):
    def walk(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    return set(walk(box.from_picture.body))


@pytest.mark.parametrize("kind", [in_7, in_8])
def test_an_upload_is_read_as_either_ipywidgets_gives_it(kind):
    assert uploaded(kind("mine.png", b"pixels")) == [("mine.png", b"pixels")]


def test_an_upload_is_taken_at_its_shape(box):
    upload(box, painting((40, 32)), "mine.png")
    assert "mine.png is taken: 40 x 32 px, drawn at 32 x 32" in box.message.value
    upload(box, painting((96, 32)), "wide.png")
    assert (box.width.value, box.height.value) == (56, 16)


def test_the_same_file_is_taken_each_time_it_is_uploaded(box):
    upload(box, b"no picture", "notes.png")
    box._show("")
    upload(box, b"no picture", "notes.png")
    assert "notes.png is no JPEG" in box.message.value
    form = box.from_picture
    for _ in range(2):
        upload(box, painting(), "mine.png")
        assert form.picture and not form.upload.value
        form.where.value = MASK
        upload(box, Image.new("L", (32, 32), 255), "mask.png", "mask_upload")
        assert form.mask and not form.mask_upload.value
        form.remove.click()
        assert form.picture is form.mask is None


def test_what_is_off_takes_no_room(box):
    form = box.from_picture
    assert form.view.selected_index is None and form.value() is None
    assert shown_fields(box) & {form.denoise, form.where, form.mask_upload, form.across} == set()
    upload(box, painting())
    assert {form.denoise, form.where} <= shown_fields(box) and form.across not in shown_fields(box)
    form.where.value = RECTANGLE
    assert {form.across, form.down} <= shown_fields(box) and form.mask_upload not in shown_fields(
        box
    )
    form.where.value = MASK
    assert form.mask_upload in shown_fields(box)
    form.remove.click()
    assert form.value() is None and form.denoise not in shown_fields(box)


def test_upload_draw_and_bring_back_to_the_same_picture(box):
    upload(box, painting((48, 32), seed=3))
    box.from_picture.denoise.value = 0.5
    path, settings = drawn(box)
    assert settings["from_picture"]["denoising_strength"] == 0.5
    kept = box.sampler.album.read_input(settings["from_picture"]["image"])
    assert (box.width.value, box.height.value) == kept.size == (40, 24)
    box.from_picture.remove.click()
    box.width.value = box.height.value = 32
    other, _ = drawn(box)
    assert other != path
    entry = next(e for e in box.history.children[1:])
    entry.children[1].click()
    assert "Settings brought back" in box.message.value and box.from_picture.value() is not None
    before = {p: p.read_bytes() for p in box.sampler.run.samples.glob("*.png")}
    box.button.click()
    assert {p: p.read_bytes() for p in box.sampler.run.samples.glob("*.png")} == before
    again = box_of(box.sampler)  # as after a restart of the kernel
    again.history.children[0].children[1].click()  # that which was drawn last
    assert again.from_picture.value() == box.from_picture.value()
    again.history.children[1].children[1].click()  # drawn from words alone
    assert again.from_picture.value() is None


def test_a_past_sample_is_drawn_from(box):
    path, _ = drawn(box)
    assert box.from_picture.past.options[1][1] == path
    box.from_picture.past.value = path
    assert f"{path.name} is taken" in box.message.value
    _, settings = drawn(box)
    kept = box.sampler.album.read_input(settings["from_picture"]["image"])
    with Image.open(path) as image:
        assert np.array_equal(kept, image)
    assert box.from_picture.past.value == path  # a new sample does not choose another


def test_a_renamed_sample_is_drawn_from(box):
    path, _ = drawn(box)
    renamed = path.rename(path.with_name("my favourite.png"))
    box = box_of(box.sampler)
    box.from_picture.past.value = box.from_picture.past.options[1][1]
    assert f"{renamed.name} is taken" in box.message.value and drawn(box)


def test_an_upload_heals_its_damaged_copy(box):
    upload(box, painting())
    kept = box.sampler.album.input_path(box.from_picture.value().image)
    kept.write_bytes(kept.read_bytes()[:-20])
    assert drawn(box)


def test_a_rectangle_is_drawn_anew_and_the_rest_is_the_uploads(box):
    image = painting()
    upload(box, image)
    form = box.from_picture
    form.where.value, form.across.value, form.down.value = RECTANGLE, (0, 50), (25, 75)
    path, _ = drawn(box)
    with Image.open(path) as saved:
        changed = (np.asarray(saved) != np.asarray(image)).any(-1)
    assert changed[8:24, :16].any() and not changed[:, 16:].any() and not changed[:8].any()
    form.across.value = (50, 50)
    assert "has no white" in box.message.value
    box.button.click()
    assert "has no white" in box.message.value and not box.button.disabled


def test_a_mask_is_uploaded_and_comes_back(box):
    image, mask = painting(), Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    upload(box, image)
    form = box.from_picture
    form.where.value = MASK
    box.button.click()
    assert box.message.value.startswith("Upload a mask first")
    upload(box, mask, "mask.png", "mask_upload")
    assert box.message.value == "mask.png is taken as the mask."
    path, settings = drawn(box)
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved)[:, :16], np.asarray(image)[:, :16])
    form.remove.click()
    box.restore(settings)
    assert form.where.value == MASK and form.value().mask == settings["from_picture"]["mask"]


def test_a_sketch_is_followed_where_a_controlnet_was_given(box, tmp_path):
    assert SKETCH not in box.from_picture.where.options
    unet = box.sampler.pipeline.unet
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)).save_pretrained(
        "scribble"
    )
    box = box_of(Sampler(box.sampler.run, controlnet="scribble"))
    upload(box, painting(), "sketch.png")
    box.from_picture.where.value = SKETCH
    assert (
        "the ControlNet scribble takes" in box.message.value and "GB of memory" in box.message.value
    )
    assert box.from_picture.control_scale in shown_fields(box)
    assert box.from_picture.denoise not in shown_fields(box)
    box.from_picture.control_scale.value = 0.5
    path, settings = drawn(box)
    assert settings["from_picture"]["controlnet"] == box.sampler.controlnet.hash
    box.from_picture.remove.click()
    box.restore(settings)
    assert (box.from_picture.where.value, box.from_picture.control_scale.value) == (SKETCH, 0.5)
    before = path.read_bytes()
    assert drawn(box)[0] == path and path.read_bytes() == before
    without = box_of(Sampler(box.sampler.run))
    without.history.children[0].children[1].click()
    assert "set controlnet in more" in without.message.value and not without.from_picture.value()


@pytest.mark.parametrize("size", [(64, 32), (10, 32)])
def test_a_mask_of_another_shape_is_told_and_not_taken(box, size):
    upload(box, painting())
    box.from_picture.where.value = MASK
    upload(box, Image.new("L", size, 255), "mask.png", "mask_upload")
    assert f"the mask is {size[0]} x {size[1]} px and the picture 32 x 32 px" in box.message.value
    upload(box, Image.new("L", (64, 64), 255), "large.png", "mask_upload")
    assert box.message.value == (
        "large.png is taken as the mask: it is white all over, so all of the picture is drawn anew."
    )
    assert drawn(box)


def test_what_is_transparent_in_a_mask_is_not_painted(box):
    image, mask = painting(), Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste("white", (16, 0, 32, 32))
    upload(box, image)
    box.from_picture.where.value = MASK
    upload(box, mask, "mask.png", "mask_upload")
    assert box.message.value == "mask.png is taken as the mask."
    path, _ = drawn(box)
    with Image.open(path) as saved:
        changed = (np.asarray(saved) != np.asarray(image)).any(-1)
    assert changed[:, 16:].any() and not changed[:, :16].any()
    upload(box, Image.new("RGBA", (32, 32), (255, 255, 255, 0)), "clear.png", "mask_upload")
    assert "the mask has no white, so nothing would be drawn" in box.message.value


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off", b"%PDF-1.7"])
def test_what_is_no_picture_is_told_by_name_and_the_box_works_on(box, content):
    upload(box, content, "<b>notes.txt")
    assert (
        "&lt;b&gt;notes.txt" in box.message.value and "upload another picture" in box.message.value
    )
    assert box.from_picture.value() is None
    assert drawn(box)
    upload(box, painting())
    upload(box, content, "notes.txt")
    assert box.from_picture.value() is not None  # the picture before


def test_a_picture_10_000_px_wide_is_taken(box):
    upload(box, Image.new("RGB", (10_000, 7_000), "#705030"), "scan.png")
    assert "10000 x 7000 px" in box.message.value
    assert drawn(box)


def test_a_picture_that_is_too_narrow_is_cropped_and_that_is_told(box):
    upload(box, painting((1000, 20)), "strip.png")
    assert "92% of it is cropped off" in box.message.value
    assert (box.width.value, box.height.value) == (64, 16)


def test_more_megapixels_than_memory_takes_are_told(box):
    upload(box, encoded(Image.new("1", (20_000, 20_000))), "huge.png")
    assert "20000 x 20000 px is more than 200 megapixels" in box.message.value


def test_profile_alpha_and_rotation_are_those_of_the_pixels_that_are_kept(box):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "a camera"
    upload(box, painting((40, 20)), "phone.jpg", format="JPEG", exif=exif)
    assert box.width.value < box.height.value
    name = box.from_picture.value().image
    assert b"camera" not in box.sampler.album.input_path(name).read_bytes()
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    upload(box, clear, "clear.png")
    assert box.from_picture.picture.getpixel((3, 3)) == (255, 255, 255)
    assert "transparent parts put on white" in box.message.value
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    upload(box, painting(), "odd.png", icc_profile=lab)
    assert "its colour profile does not fit" in box.message.value


def test_strength_0_says_that_nothing_was_drawn(box):
    upload(box, painting())
    box.from_picture.denoise.value = 0
    assert drawn(box)
    assert "With Denoise at 0 none of 4 steps is run" in box.message.value
    box.from_picture.denoise.value = 1.0
    assert drawn(box) and "none of" not in box.message.value


def test_the_folded_title_says_that_a_picture_is_in_use(box):
    def title():
        view = box.from_picture.view
        return view._titles["0"] if hasattr(view, "_titles") and view._titles else view.titles[0]

    assert title() == TITLE
    upload(box, painting())
    assert title() == IN_USE
    box.from_picture.remove.click()
    assert title() == TITLE and box.from_picture.where.value == ALL
