"""The settings of the five notebooks, and the training presets."""

from helpers.config.fields import UNSET, from_text, refuse_secrets
from helpers.config.presets import PRESETS
from helpers.config.stages import (
    CONFIGS,
    CaptionConfig,
    DatasetConfig,
    InferenceConfig,
    ScrapeConfig,
    TrainConfig,
    configure,
    read_settings,
)
