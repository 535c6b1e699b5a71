"""Held-out images: whole posts, chosen by a hash, so that the choice stays as the set grows."""

import hashlib

import pandas as pd

LEAST_HELD_OUT = 4  # images; fewer say nothing


def split(images: pd.DataFrame, validation_share: float, seed: int) -> pd.Series:
    """`train` or `validation` for each image.

    A carousel's pictures resemble each other, so a post is on one side as a whole. Each post has a
    number from 0 to 1 of its own, and posts below `validation_share` are held out; if these are too
    few, the next ones are too. Where a single post holds everything, its images are parted instead.
    """
    groups = images["shortcode"] if images["shortcode"].nunique() > 1 else images["file_name"]
    rank = groups.map(lambda name: _number(seed, name))
    least = min(LEAST_HELD_OUT, len(images) // 4)
    share = validation_share
    for number in sorted(rank.unique()):
        if (rank < share).sum() >= max(1, least):
            break
        share = max(share, number + 1e-12)
    if (rank < share).all():
        share = rank.max()
    return (rank < share).map({True: "validation", False: "train"})


def _number(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
