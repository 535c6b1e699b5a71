"""Held-out images: whole posts and clusters of copies, chosen by a hash, so the choice stays as the set grows."""

import hashlib
from collections.abc import Collection, Mapping

import pandas as pd

from helpers.dataset.resemblance import joined

LEAST_HELD_OUT = 4  # images; fewer say nothing
A_FEW = 20  # images; below them the validation loss is a rough guide


def split(
    images: pd.DataFrame,
    validation_share: float,
    seed: int,
    held_out: Collection[str] | Mapping[str, str] = (),
) -> pd.Series:
    """`train` or `validation` for each image.

    A carousel's pictures resemble each other, so posts that share a cluster of copies, or a series, are on one
    side as a whole. Each post has a number from 0 to 1 of its own; a group with one below `validation_share` is held
    out, and if these are too few, so are the next ones. A group of more than half of all images trains.
    held_out  file names that were held out before, and stay so unless they are most of the images; or all that
              had a side, and which: what was trained on is held out only where too few others can be
    Where a single post holds everything, its images are parted instead.
    """
    groups, names = _groups(images)
    rank = names.map(lambda name: _number(seed, name)).groupby(groups).min().sort_values()
    sizes = groups.value_counts()
    least, most = max(1, min(LEAST_HELD_OUT, len(images) // 4)), len(images) // 2
    sides = held_out if isinstance(held_out, Mapping) else dict.fromkeys(held_out, "validation")
    side = images["file_name"].map(sides)
    kept = set(groups[side == "validation"])
    trained = set(groups[side == "train"]) - kept
    if sum(sizes[group] for group in kept) > most:
        kept, trained = set(), set()
    chosen, count = set(), 0
    for group in sorted(rank.index, key=lambda group: (group not in kept, group in trained)):
        is_new = group not in trained and rank[group] < validation_share
        is_wanted = group in kept or is_new or count < least
        if is_wanted and count + sizes[group] <= most:
            chosen.add(group)
            count += sizes[group]
    return groups.isin(chosen).map({True: "validation", False: "train"})


def _groups(images: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """A group for each image, and the name by which the image gets its number."""
    clusters = images.get("cluster", images["file_name"])
    series = images.get("series", images["file_name"])
    groups = _together(images.index, (images["shortcode"], clusters, series))
    if groups.nunique() > 1:
        return groups, images["shortcode"]
    return (clusters if clusters.nunique() > 1 else images["file_name"]), clusters


def _together(index: pd.Index, keys: tuple[pd.Series, ...]) -> pd.Series:
    """Labels that are the same for images which share any of the keys, directly or through others."""
    pairs = [
        (positions[0], other)
        for key in keys
        for positions in key.reset_index(drop=True).groupby(key.to_numpy()).indices.values()
        for other in positions
    ]
    return pd.Series(joined(len(index), pairs), index=index)


def _number(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def balance(images: pd.DataFrame) -> pd.DataFrame:
    """Images, posts and clusters on each side of the column `split`."""
    counted = images.groupby("split").agg(
        images=("file_name", "count"),
        posts=("shortcode", "nunique"),
        clusters=("cluster", "nunique"),
    )
    return counted.assign(share=(counted["images"] / len(images)).round(3))


def meaning(images: pd.DataFrame) -> str:
    """What the held-out images are good for, by their number."""
    count = int((images["split"] == "validation").sum())
    line = f"{count} of {len(images)} images are held out"
    if count >= A_FEW:
        return f"{line}: enough to see in 04 whether the model learns or memorises"
    return (
        f"{line}: with fewer than {A_FEW} the validation loss is a rough guide, trust its course more than its "
        "value; more posts or a larger validation_share help"
    )
