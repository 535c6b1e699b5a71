import pytest

from helpers.config import (
    PRESETS,
    DatasetConfig,
    InferenceConfig,
    ScrapeConfig,
    TrainConfig,
    configure,
    from_text,
)
from helpers.core.errors import RunError


def test_none_takes_the_presets_value_and_anything_else_overrides_it():
    config = configure(TrainConfig, run="x", preset="seed", max_steps=None, learning_rate=2e-5)
    assert (config.max_steps, config.learning_rate, config.train_batch_size) == (5000, 2e-5, 1)


def test_more_reaches_every_field():
    assert configure(TrainConfig, {"save_every_steps": 5}, run="x").save_every_steps == 5


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TrainConfig, {"max_steps": 0}, "max_steps is 0: give a number from 1"),
        (TrainConfig, {"max_steps": "many"}, "max_steps is 'many': give a whole number"),
        (TrainConfig, {"learning_rate": -1.0}, "learning_rate is -1.0"),
        (TrainConfig, {"method": "dreambooth"}, "method is 'dreambooth': choose one of full, lora"),
        (TrainConfig, {"preset": "h9000"}, "preset is 'h9000': choose one of demo"),
        (TrainConfig, {"resolution_px": 100}, "resolution_px is 100: use a multiple of 8"),
        (TrainConfig, {"more": {"save_evry_steps": 5}}, "did you mean save_every_steps or"),
        (TrainConfig, {"more": {"zzz": 5}}, "TrainConfig does not know: there are allow_slow, "),
        (TrainConfig, {"more": "save_every_steps"}, "more is no dict: write it as in more = {"),
        (ScrapeConfig, {"source": "folder"}, "set folder to the path"),
        (ScrapeConfig, {"run": "../x"}, "run is '../x'"),
        (DatasetConfig, {"suffix": "style"}, "begin it with a space"),
        (DatasetConfig, {"validation_share": float("nan")}, "validation_share is nan"),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_them(kind, values, words):
    more = values.pop("more", None)
    with pytest.raises(RunError) as caught:
        configure(kind, more, **values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_text_from_a_shell_gets_the_fields_type():
    assert from_text(TrainConfig, "max_steps", "20") == 20
    assert from_text(TrainConfig, "allow_slow", "true") is True
    assert from_text(ScrapeConfig, "account", "2024") == "2024"
    with pytest.raises(RunError, match="max_steps is 'soon'"):
        from_text(TrainConfig, "max_steps", "soon")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset):
    assert configure(TrainConfig, run="x", preset=preset).preset == preset


def test_a_notebook_shows_the_settings_that_differ_alone(capsys):
    configure(TrainConfig, {"use_ema": True}, run="x", preset="t4")._ipython_display_()
    said = "run = 'x'\npreset = 't4'\nuse_ema = True\nAll other settings are those of the preset.\n"
    assert capsys.readouterr().out == said
    ScrapeConfig(run="x")._ipython_display_()
    assert capsys.readouterr().out == "run = 'x'\nAll other settings are the defaults.\n"


@pytest.mark.parametrize("typed", ["a cat\na dog", r"a cat\na dog", ["a cat", "a dog"]])
def test_a_typed_backslash_n_separates_prompts_as_a_line_break_does(typed):
    assert configure(InferenceConfig, prompts=typed).prompts == "a cat\na dog"
    assert configure(TrainConfig, {"prompts": typed}).prompts == ("a cat", "a dog")
