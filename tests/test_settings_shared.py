"""Settings that more than one notebook knows, and that one command line gives to all of them."""

import pytest

from helpers.batch import plan_parameters
from helpers.config import DatasetConfig, InferenceConfig, TrainConfig, configure, from_text
from helpers.core.errors import RunError


@pytest.mark.parametrize("given", [["a cat", "a dog"], ("a cat", "a dog"), "a cat\na dog"])
def test_prompts_as_a_list_or_as_lines_are_the_same_to_04_and_05(workplace, given):
    planned = plan_parameters("x", ["train", "inference"], {"more": repr({"prompts": given})})
    for stage, kind, kept in (
        ("train", TrainConfig, ("a cat", "a dog")),
        ("inference", InferenceConfig, "a cat\na dog"),
    ):
        assert configure(kind, planned[stage]["more"], run="x").prompts == kept


def test_a_list_of_prompts_on_a_command_line_is_a_list(workplace):
    (planned,) = plan_parameters("x", ["inference"], {"prompts": "['a cat', 'a dog']"}).values()
    assert configure(InferenceConfig, **planned).prompts == "a cat\na dog"


@pytest.mark.parametrize("words", ["[a cat]", "a cat, a dog", "12", "(wet paint)", "it's", "{[1]}"])
def test_words_that_are_no_list_stay_words(words):
    assert from_text(InferenceConfig, "prompts", words) == words
    assert from_text(InferenceConfig, "prompts", "None") is None


@pytest.mark.parametrize("given", [[1, 2], 7, {"a": "cat"}, ["a", None]])
@pytest.mark.parametrize("kind", [TrainConfig, InferenceConfig])
def test_prompts_that_are_no_texts_are_refused_by_both(kind, given):
    with pytest.raises(RunError, match="give a text in quotes, or a list of them"):
        configure(kind, {"prompts": given}, run="x")


@pytest.mark.parametrize("kind", [DatasetConfig, InferenceConfig])
def test_a_hub_name_without_an_owner_is_refused_before_anything_is_done(kind):
    with pytest.raises(RunError, match="push_to is 'lena': give your hub name and a "):
        configure(kind, run="x", push_to="lena")
    assert configure(kind, run="x", push_to="lena/mira").push_to == "lena/mira"
