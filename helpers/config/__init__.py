"""The settings of the five notebooks: their fields, the stages that have them, and the presets."""

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
