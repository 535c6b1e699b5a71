"""Captions longer than what the base model reads: told where they are typed, and by the base's own length."""

import logging

import pytest
import torch

from helpers.caption.review import EVERY, TO_READ, ReviewTable
from helpers.config import CaptionConfig
from helpers.core.files import write_json
from helpers.core.records import Caption, append_row
from helpers.models.pipeline import load_pipeline
from helpers.models.tokens import CLIP_TOKENS, base_model_of, token_limit
from tests.test_claude import make_run, name_of

CONFIG = CaptionConfig(run="art")
LONG = " ".join(f"word{i}" for i in range(90))
OVER = "over 77 CLIP tokens with the suffix (estimated)"


@pytest.fixture
def run(workplace):
    run = make_run(10)
    for number in range(10):
        words = f"a cat with {number} red hats"
        append_row(run.captions, Caption(name_of(number), words, "ok", "claude"))
    return run


def type_into(table, number, words):
    table.table.children[number].children[1].children[1].value = words


def test_a_caption_of_ninety_words_is_kept_and_told_in_the_table(run):
    table = ReviewTable(CONFIG, run)
    assert table.filter.options == (EVERY,)
    type_into(table, 3, LONG)
    assert table.message.value == f"{name_of(3)}: kept, but {OVER}: its end is not read"
    assert OVER in table.table.children[3].children[1].children[0].value
    assert table.filter.options == (TO_READ, OVER, EVERY) and table.filter.value == EVERY
    assert len(table.table.children) == 8  # the page stays where it was
    table.filter.value = OVER
    assert table.where.value == "1 captions, page 1 of 1" and table.names(OVER) == [name_of(3)]
    again = ReviewTable(CONFIG, run)
    assert again.filter.value == TO_READ and again.names(TO_READ) == [name_of(3)]
    again.table.children[0].children[1].children[2].children[
        0
    ].click()  # a yes does not make it shorter
    assert again.names(TO_READ) == [name_of(3)]


def test_a_caption_that_was_shortened_leaves_the_filter_and_the_counter(run):
    append_row(run.captions, Caption(name_of(2), LONG, "ok", "claude"))
    table = ReviewTable(CONFIG, run)
    assert table.where.value.startswith("1 captions")
    type_into(table, 0, "a cat with two red hats")
    assert table.where.value.startswith("0 captions")
    assert table.message.value == f"{name_of(2)}: kept"


def test_the_demos_model_reads_32_tokens_and_its_run_says_so(run):
    write_json(run.config("scrape"), {"run": "art", "source": "demo"})
    assert base_model_of(run) == "assets/tiny-sd"
    table = ReviewTable(CONFIG, run)
    type_into(table, 0, " ".join(["a red cat"] * 10))
    assert "over 32 CLIP tokens with the suffix:" in table.message.value


def test_the_length_is_that_of_the_base_that_04_was_set_to(run, tmp_path):
    assert token_limit(base_model_of(run)) == CLIP_TOKENS
    base = tmp_path / "base"
    write_json(base / "tokenizer/tokenizer_config.json", {"model_max_length": 10**30})
    write_json(base / "text_encoder/config.json", {"max_position_embeddings": 48})
    write_json(run.config("train"), {"run": "art", "base_model": str(base)})
    assert token_limit(base_model_of(run)) == 48


@pytest.mark.parametrize("content", ["[]", "{", '{"model_max_length": "many"}', '"x"', "null"])
def test_a_base_whose_files_do_not_tell_reads_77(tmp_path, content):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(content)
    assert token_limit(str(tmp_path)) == token_limit("nobody/nothing") == CLIP_TOKENS
    (tmp_path / "one-file.safetensors").write_bytes(b"")
    assert token_limit(str(tmp_path / "one-file.safetensors")) == CLIP_TOKENS


def test_no_library_prints_a_page_of_padding(tiny_base, caplog, monkeypatch):
    pipeline = load_pipeline(str(tiny_base), torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for name in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with caplog.at_level(logging.WARNING):
        pipeline([LONG, "a cat"], num_inference_steps=1, height=16, width=16)
    assert "endoftext" not in caplog.text and "longer than" not in caplog.text
