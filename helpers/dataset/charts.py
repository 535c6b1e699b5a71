"""Plot statistics of each split's captions: token counts, subjects and locations."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

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


def subject(caption: str) -> str:
    """Return the noun that a caption is about: `cats` for `blue and yellow cats shopping at ...`."""
    words = [w for w in END_OF_SUBJECT.split(caption.lower(), 1)[0].split() if w not in NO_NAMES]
    return words[-1] if words else ""


def setting(caption: str) -> str:
    """Return the last location in a caption (`plant store` in `cats shopping at plant store`), or "" if none."""
    places = [
        re.sub(r"^(?:an?|the) ", "", place.strip()) for place in PLACE.findall(caption.lower())
    ]
    places = [place for place in places if place.split(" ")[0] not in NO_PLACES]
    return places[-1] if places else ""


def suffix_note(captions: Sequence[str], suffix: str) -> str:
    """Return sentences on the captions that already end in the suffix, and on another ending that nearly all share."""
    had = sum(has_suffix(caption, suffix) for caption in captions)
    note = f"{had} of {len(captions)} captions ended in the suffix already: it stands once in each"
    if not had:
        note = f"the suffix ends each of {len(captions)} captions"
    ending = common_ending([strip_suffix(caption, suffix) for caption in captions])
    if ending:
        note += (
            f". Nearly all end in {ending!r}: if that names the style, set suffix to ' {ending}'"
        )
    return note


def charts(images: pd.DataFrame, suffix: str) -> Image.Image:
    """Plot the number of images, and the captions' token counts, subjects and locations, for each split.

    Raises RunError if `images` has no column `split` yet.
    """
    from matplotlib.figure import Figure

    if "split" not in images:
        raise RunError("the images have no column split: run the cell 'One post, one side' first")
    figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
    counts, lengths, characters, settings = figure.subplots(2, 2).flat
    bare = images.assign(caption=[strip_suffix(text, suffix) for text in images["caption"]])
    sides = {name: part["caption"] for name, part in bare.groupby("split")}
    counts.barh(list(sides), [len(part) for part in sides.values()], color=COLOURS[: len(sides)])
    counts.set_title("images")
    base_model = images.attrs.get("base_model", CLIP)
    (count, note), limit = token_counter(base_model), token_limit(base_model)
    tokens = [
        [count(append_suffix(caption, suffix)) for caption in part] for part in sides.values()
    ]
    bins = range(0, max(limit, *map(max, tokens)) + 4, 3)
    lengths.hist(tokens, bins, stacked=True, color=COLOURS[: len(sides)], label=list(sides))
    lengths.axvline(limit, color="#d1495b", linewidth=1)
    lengths.set(title=f"tokens of a text{note}; the model reads {limit}", ylabel="images")
    _bars(characters, "characters, share of each side", _shares(sides, subject))
    _bars(settings, "settings, share of each side", _shares(sides, setting))
    figure.legend(*lengths.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def _shares(sides: dict[str, Iterable[str]], name_of: object) -> dict[str, dict[str, float]]:
    counted = {side: Counter(map(name_of, captions)) for side, captions in sides.items()}
    return {
        side: {n: c / counts.total() for n, c in counts.items()} for side, counts in counted.items()
    }


def _bars(axes: object, title: str, sides: dict[str, dict[str, float]], count: int = 12) -> None:
    """Draw a bar per split for each of the `count` names most frequent overall; `sides` is {split: {name: share}}."""
    total = Counter()
    for values in sides.values():
        total.update({name: value for name, value in values.items() if name})
    names = [name for name, _ in total.most_common(count)][::-1]
    height = 0.8 / len(sides)
    for i, (side, values) in enumerate(sides.items()):
        where = [row + (i - (len(sides) - 1) / 2) * height for row in range(len(names))]
        axes.barh(where, [values.get(n, 0) for n in names], height, color=COLOURS[i], label=side)
    axes.set_yticks(range(len(names)), [name[:28].replace("$", r"\$") for name in names])
    axes.set_title(title)
