"""Split images into train and validation by a hash of their posts, which is stable when posts are added."""

import hashlib
from collections.abc import Collection, Mapping

import pandas as pd

from helpers.dataset.resemblance import group_labels

MIN_HELD_OUT = 4  # images; fewer are not informative
FEW_HELD_OUT = 20  # images; below, the validation loss is noisy


def split(
    images: pd.DataFrame,
    validation_share: float,
    seed: int,
    held_out: Collection[str] | Mapping[str, str] = (),
) -> pd.Series:
    """Return `train` or `validation` for each image.

    Posts that share a cluster of copies or a series form a group, which is on one side. A group with a hash (0 to 1)
    below `validation_share` is held out, then others until there are enough; a group of over half of all images is
    trained on. If there is one post, its images are split. `held_out` names images held out before, which stay so
    unless they are most images, or maps images to sides: those trained on are held out only if too few others can be.
    """
    groups, names = _groups(images)
    rank = names.map(lambda name: _hash_to_unit(seed, name)).groupby(groups).min().sort_values()
    sizes = groups.value_counts()
    min_count, max_count = max(1, min(MIN_HELD_OUT, len(images) // 4)), len(images) // 2
    sides = held_out if isinstance(held_out, Mapping) else dict.fromkeys(held_out, "validation")
    side = images["file_name"].map(sides)
    kept = set(groups[side == "validation"])
    trained = set(groups[side == "train"]) - kept
    if sum(sizes[group] for group in kept) > max_count:
        kept, trained = set(), set()
    chosen, count = set(), 0
    for group in sorted(rank.index, key=lambda group: (group not in kept, group in trained)):
        is_new = group not in trained and rank[group] < validation_share
        is_wanted = group in kept or is_new or count < min_count
        if is_wanted and count + sizes[group] <= max_count:
            chosen.add(group)
            count += sizes[group]
    return groups.isin(chosen).map({True: "validation", False: "train"})


def _groups(images: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return each image's group, which is never divided, and the name to hash (a shortcode or cluster)."""
    clusters, series = (images.get(name, images["file_name"]) for name in ("cluster", "series"))
    pairs = [
        (positions[0], other)
        for key in (images["shortcode"], clusters, series)
        for positions in images.groupby(key.to_numpy()).indices.values()
        for other in positions
    ]
    groups = pd.Series(group_labels(len(images), pairs), index=images.index)
    if groups.nunique() > 1:
        return groups, images["shortcode"]
    return (clusters if clusters.nunique() > 1 else images["file_name"]), clusters


def _hash_to_unit(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def balance(images: pd.DataFrame) -> pd.DataFrame:
    """Return a table of the images, posts and clusters, and the share of images, in each split."""
    counted = images.groupby("split").agg(
        images=("file_name", "count"),
        posts=("shortcode", "nunique"),
        clusters=("cluster", "nunique"),
    )
    return counted.assign(share=(counted["images"] / len(images)).round(3))


def meaning(images: pd.DataFrame) -> str:
    """Return a sentence on whether the validation images are enough to detect overfitting."""
    count = int((images["split"] == "validation").sum())
    line = f"{count} of {len(images)} images are held out"
    if count >= FEW_HELD_OUT:
        return f"{line}: enough to see in 04 whether the model overfits"
    return (
        f"{line}: with fewer than {FEW_HELD_OUT} the validation loss is noisy, trust its trend more than its "
        "value; more posts or a larger validation_share help"
    )
