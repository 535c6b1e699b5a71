"""Plot statistics of each split's captions: token counts, subjects and locations."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from helpers.core.errors import RunError
from helpers.core.suffix import append_suffix, common_ending, has_suffix, strip_suffix
from helpers.models.tokens import CLIP, token_counter, token_limit

PLACE = re.compile(
    r"\b(?:in|on|at|under|through|inside|near|by|down|over|above|below|across|among) "
    r"([^,.;]+?)(?= (?:with|and|while|in|on|at|next)\b|[,.;]|$)"
)
END_OF_SUBJECT = re.compile(
    r"\s(?:\w{2,}ing|dressed|next|with|in|on|at|under|by|near|who|that|is|are|and an?|and the|and two)\b|[,.;]"
)
NO_PLACES = {"it", "them", "him", "her", "top", "front", "back", "side"}
NO_NAMES = {"character", "characters", "a", "an", "the", "of"}
COLOURS = ("#8b6fa8", "#d1a54b")
MAX_BARS = 12  # names in a chart


def subject(caption: str) -> str:
    """Return the noun that a caption is about, such as `cats` for `blue and yellow cats shopping at ...`."""
    words = [w for w in END_OF_SUBJECT.split(caption.lower(), 1)[0].split() if w not in NO_NAMES]
    return words[-1] if words else ""


def setting(caption: str) -> str:
    """Return the last place in a caption, such as `plant store`, or "" if none."""
    found = PLACE.findall(caption.lower())
    places = [re.sub(r"^(?:an?|the) ", "", place.strip()) for place in found]
    return next((place for place in places[::-1] if place.split(" ")[0] not in NO_PLACES), "")


def suffix_note(captions: Sequence[str], suffix: str) -> str:
    """Return a note on captions that end in the suffix already, and on another ending that most captions share."""
    had = sum(has_suffix(caption, suffix) for caption in captions)
    note = f"{had} of {len(captions)} captions ended in the suffix already: it stands once in each"
    if not had:
        note = f"the suffix ends each of {len(captions)} captions"
    if ending := common_ending([strip_suffix(caption, suffix) for caption in captions]):
        note += (
            f". Nearly all end in {ending!r}: if that names the style, set suffix to ' {ending}'"
        )
    return note


def charts(images: pd.DataFrame, suffix: str) -> Image.Image:
    """Plot the images, and the tokens, subjects and places of captions, in each split. Raises RunError if not split."""
    from matplotlib.figure import Figure

    if "split" not in images:
        raise RunError("the images have no column split: run the cell 'One post, one side' first")
    figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
    counts, lengths, characters, settings = figure.subplots(2, 2).flat
    bare = images["caption"].map(lambda text: strip_suffix(text, suffix))
    sides = dict(list(bare.groupby(images["split"])))
    counts.barh(list(sides), [len(part) for part in sides.values()], color=COLOURS[: len(sides)])
    counts.set_title("images")
    base_model = images.attrs.get("base_model", CLIP)
    (count, note), limit = token_counter(base_model), token_limit(base_model)
    texts = bare.map(lambda caption: append_suffix(caption, suffix))
    tokens = [part.tolist() for _, part in texts.map(count).groupby(images["split"])]
    bins = range(0, max(limit, *map(max, tokens)) + 4, 3)
    lengths.hist(tokens, bins, stacked=True, color=COLOURS[: len(sides)], label=list(sides))
    lengths.axvline(limit, color="#d1495b", linewidth=1)
    lengths.set(title=f"tokens of a text{note}; the model reads {limit}", ylabel="images")
    _bars(characters, "characters, share of each side", sides, subject)
    _bars(settings, "settings, share of each side", sides, setting)
    figure.legend(*lengths.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def _bars(
    axes: Any, title: str, sides: dict[str, pd.Series], name_of: Callable[[str], str]
) -> None:
    """Draw a bar per split for each of the names that are most frequent in captions."""
    shares = {side: part.map(name_of).value_counts(normalize=True) for side, part in sides.items()}
    table = pd.DataFrame(shares).drop("", errors="ignore").fillna(0.0)
    table = table.loc[table.sum(axis=1).nlargest(MAX_BARS).index[::-1]]
    height = 0.8 / len(sides)
    for i, side in enumerate(table):
        where = np.arange(len(table)) + (i - (len(sides) - 1) / 2) * height
        axes.barh(where, table[side], height, color=COLOURS[i], label=side)
    axes.set_yticks(range(len(table)), [name[:28].replace("$", r"\$") for name in table.index])
    axes.set_title(title)
