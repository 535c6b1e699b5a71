"""Pictures below the resolution and captions beyond the text encoder's length: told with counts, the suffix kept."""

import pytest
from transformers import CLIPTokenizer

from helpers.models.tokens import count_tokens, shorten
from helpers.train.buckets import Crop
from helpers.train.inputs import dataset_warnings
from helpers.train.trainer import train
from tests.conftest import make_dataset, photograph
from tests.test_train import settings

SUFFIX = " in a mira watercolor style"


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")


@pytest.mark.parametrize(
    "caption",
    [
        "a cat " * 40,
        "a " * 500,
        "supercalifragilisticexpialidocious" * 9,
        "a,b,c;d." * 30,
        "猫 " * 50,
    ],
)
@pytest.mark.parametrize("suffix", [SUFFIX, ", mira", " x"])
def test_the_suffix_survives_the_cut_and_as_many_words_as_fit(tokenizer, caption, suffix):
    longest = tokenizer.model_max_length
    short = shorten(tokenizer, caption.strip() + suffix, suffix, longest)
    assert short.endswith(suffix) and count_tokens(tokenizer, short) <= longest
    read = short.removesuffix(suffix)
    assert read and caption.startswith(read)
    rest = caption.removeprefix(read)
    assert rest[0] in " ,;:" or " " not in read  # a word that alone is too long is cut inside
    one_more = read + rest[: rest.find(" ", 1) if " " in rest[1:] else None] + suffix
    assert count_tokens(tokenizer, one_more) > longest


def test_what_fits_stays_as_it_is(tokenizer, capfd):
    longest = tokenizer.model_max_length
    assert shorten(tokenizer, "a  cat" + SUFFIX, SUFFIX, longest) == "a  cat" + SUFFIX
    assert shorten(tokenizer, "a cat " * 40, SUFFIX, longest) == ("a cat " * 15).strip()
    assert shorten(tokenizer, "a" + SUFFIX * 20, SUFFIX * 20, longest) == SUFFIX * 20
    assert "".join(capfd.readouterr()) == ""


def told(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if "captions" in record.getMessage() or "pictures" in record.getMessage()
    ]


def test_what_does_not_fit_is_told_with_counts_before_the_start(workplace, tiny_base, caplog):
    folder = workplace / "in"
    for i in range(12):
        size = (40, 90) if i < 3 else (120, 90)
        words = "a very long caption of a place " * (8 if i < 2 else 1)
        photograph(folder / f"{i}.png", i, size).with_suffix(".txt").write_text(f"{words}{i}")
    run = make_dataset("pictures", folder)
    next(train(settings(tiny_base, resolution_px=48), run))
    assert told(caplog) == [
        "3 of 12 pictures are smaller than resolution_px=48 and are enlarged, which makes them soft: lower "
        "resolution_px, or raise min_side_px in 03_dataset",
        "2 of 12 captions are longer than the 32 tokens that this model reads: their last words are left out and the "
        "suffix stays; shorten them in 02_caption",
    ]


def test_where_all_fits_nothing_is_told(dataset, tiny_base, caplog):
    next(train(settings(tiny_base), dataset))
    assert told(caplog) == []


def test_of_pictures_on_their_side_the_upright_size_counts(tmp_path):
    side, upright = Crop(88, step_px=8), {}
    for orientation in (1, 6):
        path = photograph(tmp_path / f"{orientation}.jpg", 0, (64, 128), orientation)
        upright[orientation] = dataset_warnings([path], side, cut=0, longest=77)
    assert upright == {1: [], 6: []}
    small = photograph(tmp_path / "small.jpg", 0, (40, 128))
    assert "1 of 1 pictures are smaller" in dataset_warnings([small], side, cut=0, longest=77)[0]
