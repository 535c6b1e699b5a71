"""The dataset's card, from the data itself."""

import pandas as pd
from huggingface_hub import DatasetCardData

from helpers.config import DatasetConfig
from helpers.run import Run

TEXT = """---
{header}
---

# {run}: {count} images with captions

Prepared for fine-tuning a text-to-image model, by annalaura-diffusion.

| | |
|---|---|
| Accounts | {accounts} |
| Permission | {permission} |
| Published | {dates} |
| Images | {train} to train on, {validation} held out; a post is on one side as a whole |
| Captions | by {captioners}, each ending in `{suffix}` |
| Left out | {left_out} |

Images are whole; cropping is left to training. Take care: whoever trains on this learns one person's
hand. It is meant for study, with the artist's permission where the work is not one's own, and never to
pass generated images off as theirs.
"""


def card(config: DatasetConfig, run: Run, kept: pd.DataFrame, left_out: pd.DataFrame) -> str:
    """Markdown with a YAML header that the Hugging Face hub reads."""
    header = DatasetCardData(language="en", task_categories=["text-to-image"], pretty_name=run.name)
    reasons = left_out["reason"].str.replace(r"\d+|as .*", "…", regex=True).value_counts()
    counts = kept["split"].value_counts()
    return TEXT.format(
        header=header.to_yaml(),
        run=run.name,
        count=len(kept),
        accounts=_listed(kept["account"]) or "not recorded",
        permission=_listed(kept["permission"]),
        dates=_span(kept["taken_at"]) or "not recorded",
        train=counts.get("train", 0),
        validation=counts.get("validation", 0),
        captioners=_listed(kept["captioner"]),
        suffix=config.suffix,
        left_out="; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none",
    )


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted(set(values) - {""}))


def _span(dates: pd.Series) -> str:
    days = sorted(date[:10] for date in dates if date)
    return f"{days[0]} to {days[-1]}" if days else ""
