import pytest
import torch

from helpers.caption.ledger import ask_again, caption_images, pending, problems, verify_captions
from helpers.config import CaptionConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, append_row, caption_costs, latest, read_rows
from helpers.core.run import Run
from helpers.scrape.ingest import find, take
from tests.conftest import lines, photograph

CONFIG = CaptionConfig(run="mine")


@pytest.fixture
def run(workplace, pictures):
    return rescrape(pictures)


def rescrape(pictures):
    config, run = ScrapeConfig(run="mine", source="folder", folder=str(pictures)), Run("mine")
    list(take(config, run, find(config, run)))
    return run


def caption(run, config=CONFIG):
    return list(caption_images(config, run, pending(config, run)))


def test_every_image_gets_the_words_beside_it(run):
    caption(run)
    rows = latest(read_rows(run.captions, Caption))
    assert rows["Holiday-07_1.jpg"].caption == "a picture of place number 7"
    assert "12 captions" in verify_captions(run)


def test_a_rerun_captions_only_what_is_missing_or_changed(run, pictures):
    caption(run)
    assert caption(run) == []
    (pictures / "Holiday 04.txt").write_text("a cat")
    photograph(pictures / "new.jpg", 50).with_suffix(".txt").write_text("a dog")
    rescrape(pictures)
    assert [row.caption for row in caption(run)] == ["a cat", "a dog"]


def test_an_edit_by_a_person_stands(run):
    caption(run)
    append_row(run.captions, Caption("Holiday-01_1.jpg", "my words", "edited", "person"))
    assert caption(run) == []
    assert latest(read_rows(run.captions, Caption))["Holiday-01_1.jpg"].caption == "my words"


def test_a_missing_or_empty_text_is_a_row_that_says_so(run, pictures):
    run.sidecar("Holiday-01_1.jpg").unlink()
    run.sidecar("Holiday-02_1.jpg").write_text("  ")
    caption(run)
    statuses = {row["file_name"]: row["status"] for row in lines(run.captions)}
    assert statuses["Holiday-01_1.jpg"] == "failed: no caption came with it"
    assert statuses["Holiday-02_1.jpg"] == "failed: Holiday-02_1.txt is empty"
    assert "10 captions" in verify_captions(run) and "2 images without one" in verify_captions(run)


def test_banned_and_repeated_words_are_pointed_out(run):
    run.sidecar("Holiday-01_1.jpg").write_text("a watercolor of a cat")
    run.sidecar("Holiday-02_1.jpg").write_text("a picture of place number 3")
    config = CaptionConfig(run="mine", banned_words="Watercolor, ink")
    caption(run, config)
    found = problems(config, run)
    assert [row.file_name for row in found["banned word"]] == ["Holiday-01_1.jpg"]
    assert len(found["same words as another"]) == 2


def test_no_caption_at_all_says_where_to_put_them(workplace, tmp_path):
    photograph(tmp_path / "bare/a.jpg", 1)
    run = rescrape(tmp_path / "bare")
    caption(run)
    with pytest.raises(
        RunError,
        match=r"none of the 1 images has a caption: put a .txt beside each image in .*bare",
    ):
        verify_captions(run)


def test_captioning_before_scraping_names_the_notebook(workplace):
    with pytest.raises(
        RunError, match="runs/mine/posts.jsonl is missing: run 01_scrape with run='mine' first"
    ):
        pending(CONFIG, Run("mine"))


def found(run, config, *captions):
    """The problems of captions, as sets of their numbers."""
    for number, words in enumerate(captions):
        append_row(run.captions, Caption(f"Holiday-{number:02d}_1.jpg", words, "ok", "claude"))
    return {
        what: {int(row.file_name[8:10]) for row in rows}
        for what, rows in problems(config, run).items()
    }


def test_each_problem_is_found_and_a_good_caption_has_none(run):
    config = CaptionConfig(run="mine", banned_words="cartoon, line art")
    of = found(
        run,
        config,
        "two blue elephants touching trunks on green hills",
        "a cartoon cat on a red sofa",
        "two cats in line art on a hill",
        "a fox by mira in a forest",
        "a watercolor of three foxes at night",
        "a cat sitting on a",
        "a bear holding a sign that says happy birthday",
        "a cat",
        "Two Blue Elephants touching trunks  on green hills.",
        "a partial starting point for an artful marinated cart",
    )
    assert of["banned word"] == {1, 2}
    assert of["style word"] == {3, 4}
    assert of["incomplete"] == {5, 7}
    assert of["lettering"] == {6}
    assert of["same words as another"] == {0, 8}
    assert not any(9 in numbers for numbers in of.values())


def test_too_many_tokens_are_counted_with_the_suffix(run):
    words = " ".join(["cat"] * 69)
    config = CaptionConfig(run="mine", suffix=" in a soft watercolor style")
    longer = CaptionConfig(run="mine", suffix=" in a soft watercolor style with thin ink lines")
    name = "over 77 CLIP tokens with the suffix (estimated)"
    assert found(run, config, words)[name] == set()
    assert found(run, longer, words)[name] == {0}


def test_tokens_are_counted_faithfully_where_the_tokenizer_is_to_be_had(workplace):
    from transformers import CLIPTokenizer

    from helpers.models.tokens import estimate_tokens, token_counter

    folder = "assets/tiny-sd/tokenizer"
    count, note = token_counter(folder)
    text = "a red cat next to a blue house, in the snow"
    assert note == "" and count(text) == len(CLIPTokenizer.from_pretrained(folder)(text).input_ids)
    assert token_counter("nobody/nothing")[0] is estimate_tokens
    assert estimate_tokens("a red cat in the snow") == 8  # as CLIP counts it


def test_captions_by_claude_are_not_thrown_away_when_sidecar_is_chosen(run):
    append_row(run.captions, Caption("Holiday-01_1.jpg", "a fox", "ok", "claude"))
    caption(run)
    assert latest(read_rows(run.captions, Caption))["Holiday-01_1.jpg"].caption == "a fox"


def test_old_lines_of_the_ledger_are_read(run):
    run.captions.write_text(
        '{"file_name": "Holiday-01_1.jpg", "caption": "a fox", "status": "ok", "captioner": "sidecar",'
        ' "model": "", "input_tokens": 0, "output_tokens": 0}\n'
    )
    assert read_rows(run.captions, Caption)[0].cost_usd == 0.0


def test_costs_are_those_of_all_answers_not_of_the_last_alone(run):
    for cost in (0.25, 0.5):
        row = Caption("Holiday-01_1.jpg", "a fox", "ok", "claude", "m", 10, 5, cost_usd=cost)
        append_row(run.captions, row)
    assert caption_costs(run.captions) == (0.75, 30)


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory):
    """A random BLIP of a few thousand weights, as a folder that the hub could hold."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "cat", "dog", "on", "red"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 80}
    text |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(
        vision_config=sizes | {"image_size": 32, "patch_size": 8}, text_config=sizes | text
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = BlipProcessor(
        BlipImageProcessor(size=size), BertTokenizer(vocab_file=str(folder / "vocab.txt"))
    )
    processor.save_pretrained(folder)
    return folder


def test_blip_captions_without_a_key_and_the_same_image_alike(run, tiny_blip):
    config = CaptionConfig(run="mine", captioner="blip", blip_model=str(tiny_blip))
    run.image("Holiday-03_1.jpg").write_bytes(b"no picture")
    caption(run, config)
    rows = latest(read_rows(run.captions, Caption))
    assert len(rows) == 12 and {row.captioner for row in rows.values()} == {"blip"}
    assert rows["Holiday-03_1.jpg"].status.startswith("failed: cannot be read")
    first = rows["Holiday-01_1.jpg"]
    assert (first.status, bool(first.caption)) in (
        ("ok", True),
        ("failed: the model said nothing", False),
    )
    assert ask_again(config, run, read_rows(run.posts, Post)[1]).caption == first.caption


def test_a_blip_model_that_is_not_there_says_what_to_give(run):
    config = CaptionConfig(run="mine", captioner="blip", blip_model="nobody/nothing")
    with pytest.raises(
        RunError,
        match="blip_model 'nobody/nothing' could not be loaded .*was not reached.*give the hub id",
    ):
        caption(run, config)
