"""Select the images of the dataset: join captions by file name, measure quality, and find copies.

Nothing is deleted: an image left out gets a row in rejected.jsonl, and a line in taken_back.txt includes it anyway.
"""

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.files import write_text
from helpers.core.records import Rejection, rewrite
from helpers.core.run import Run
from helpers.dataset.join import candidates, without_image
from helpers.dataset.quality import measure, outlier_score
from helpers.dataset.resemblance import (
    ImageHash,
    find_copies,
    find_edited_copies,
    group_labels,
    hash_distance,
    hash_image,
)
from helpers.figures.pictures import open_rgb

MIN_IMAGES = 4
SHARP_ENOUGH = 0.5  # of the sharpest copy; JPEG block edges count as sharp too
FIGURES = ("sharpness", "detail", "brightness", "text_share")


def curate(config: DatasetConfig, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select the images, and return two tables: those kept, and those left out with columns `kind` and `reason`.

    Both have the quality measures, and columns `cluster` (the best copy's name) and `series` (the matching pattern).
    The images left out are also written to rejected.jsonl. Raises RunError if fewer than four images are kept, or a
    pattern matches nothing.
    """
    images = candidates(config, run)
    images[["kind", "reason"]] = ""
    _mark_unusable(run, images)
    images, hashes, palettes = _measure_images(run, images)
    judge(config, run, images, palettes)
    _mark_copies(config, run, images, hashes)
    _mark_series(config, images)
    kept, left_out = images[images["reason"] == ""], images[images["reason"] != ""]
    rejections = [
        Rejection(row.file_name, "dataset", row.reason, row.kind) for row in left_out.itertuples()
    ]
    why = f"has a caption but is not in {run.posts}: run 01_scrape again"
    rejections += [Rejection(name, "dataset", why, "no image") for name in without_image(run)]
    rewrite(run.rejected, lambda row: row.get("stage") != "dataset", rejections)
    if len(kept) < MIN_IMAGES:
        why = "; ".join(f"{n} {reason}" for reason, n in left_out["reason"].value_counts().items())
        raise RunError(
            f"{len(kept)} of {len(images)} images are left, and training needs {MIN_IMAGES}: add images and run 01 to "
            f"03 again{f', or fix these ({why})' if why else ''}"
        )
    return kept.drop(columns=["kind", "reason"]), left_out


def take_back(run: Run, file_name: str) -> None:
    """Add an image to taken_back.txt. Later runs of 03 then include the image even if flawed or a copy."""
    run.image(file_name)  # raises RunError for an invalid name
    names = _read_lines(run.taken_back)
    if file_name not in names:
        write_text(run.taken_back, "".join(f"{name}\n" for name in (*names, file_name)))


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _mark(images: pd.DataFrame, which: pd.Series, kind: str, reason: str | pd.Series) -> None:
    """Set `kind` and `reason` of the images in the mask `which` that have no reason yet."""
    which = which & (images["reason"] == "")
    images.loc[which, "kind"] = kind
    images.loc[which, "reason"] = reason if isinstance(reason, str) else reason[which]


def _mark_unusable(run: Run, images: pd.DataFrame) -> None:
    taken_down = images["shortcode"].isin(run.read_taken_down())
    again = f"is of a post that {run.taken_down} lists: take it down again, or delete that line"
    _mark(images, taken_down, "taken down", again)
    _mark(images, images["caption"] == "", "no caption", "has no caption")
    is_there = images["file_name"].map(lambda name: run.image(name).is_file())
    _mark(images, ~is_there, "no image", f"is not in {run.images}: run 01_scrape again")
    is_gone = (images["gone"] != "") & ~images["file_name"].isin(_read_lines(run.taken_back))
    reason = "is no longer in the source: 01 found it missing on " + images["gone"]
    _mark(images, is_gone, "gone", reason)


def _measure_images(
    run: Run, images: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, ImageHash], dict[str, np.ndarray]]:
    """Measure the images that are not left out yet, and return the table, hashes and palettes."""
    figures, hashes = {}, {}
    wanted = images.loc[images["reason"] == "", "file_name"]
    for i, name in tqdm(wanted.items(), "measure images", total=len(wanted), leave=False):
        try:
            image = open_rgb(run.image(name))
        except OSError as error:
            images.loc[i, ["kind", "reason"]] = ["no image", str(error)]
            continue
        figures[name], hashes[name] = measure(image), hash_image(image)
    columns = {
        figure: images["file_name"].map({name: getattr(q, figure) for name, q in figures.items()})
        for figure in FIGURES
    }
    palettes = {name: quality.palette for name, quality in figures.items()}
    return images.assign(**columns).astype(dict.fromkeys(FIGURES, float)), hashes, palettes


def judge(
    config: DatasetConfig, run: Run, images: pd.DataFrame, palettes: dict[str, np.ndarray]
) -> None:
    """Set `kind` and `reason` of images that fail a quality threshold, except those in taken_back.txt."""
    can_exclude = ~images["file_name"].isin(_read_lines(run.taken_back))
    for kind, is_flawed, reason in _flaws(config, images):
        _mark(images, is_flawed & can_exclude, kind, reason)
    rest = images[images["reason"] == ""]
    if rest.empty:
        return
    found = np.stack([palettes[name] for name in rest["file_name"]])
    scores = pd.Series(outlier_score(found, rest["shortcode"].to_numpy(str)), rest.index)
    images["outlier_score"] = scores
    words = " spreads from the other posts' pictures, above max_oddness "
    reason = "its colours are " + _format(images["outlier_score"]) + words
    is_outlier = images["outlier_score"] > config.max_oddness
    _mark(images, is_outlier & can_exclude, "odd one out", reason + f"{config.max_oddness:g}")


def _flaws(
    config: DatasetConfig, images: pd.DataFrame
) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Yield each kind of flaw as (name, mask of the flawed images, reason for every image)."""
    sides = images[["width_px", "height_px"]]
    side_px, aspect = sides.min(axis=1), sides.max(axis=1) / sides.min(axis=1)
    bright, text, sharp = images["brightness"], images["text_share"], images["sharpness"]
    min_sharpness = config.min_sharpness * sharp.median()
    words = "its shorter side of " + side_px.astype(str) + " px is below min_side_px "
    yield "too small", side_px < config.min_side_px, words + str(config.min_side_px)
    words = "its longer side is " + _format(aspect) + " times the shorter, above max_aspect "
    yield "extreme aspect", aspect > config.max_aspect, words + f"{config.max_aspect:g}"
    words = "its brightness of " + _format(bright) + " is below min_brightness "
    yield "too dark", bright < config.min_brightness, words + f"{config.min_brightness:g}"
    words = "lines of text cover " + _format(text, 2) + " of its height, above max_text_share "
    yield "mostly text", text > config.max_text_share, words + f"{config.max_text_share:g}"
    words = "its sharpness of " + _format(sharp) + f" is below {min_sharpness:.1f}, min_sharpness "
    words += f"{config.min_sharpness:g} of the set's median"
    yield "too blurry", sharp < min_sharpness, words


def _format(values: pd.Series, digits: int = 1) -> pd.Series:
    return values.map(lambda value: f"{value:.{digits}f}")


def _mark_copies(
    config: DatasetConfig, run: Run, images: pd.DataFrame, hashes: dict[str, ImageHash]
) -> None:
    """Set the column `cluster` to the best copy's name, and mark other copies unless in taken_back.txt."""
    taken_back = _read_lines(run.taken_back)
    images["cluster"] = images["file_name"]
    clusters, likenesses = _find_clusters(config, images[images["reason"] == ""], hashes)
    for names in clusters:
        copy = images[images["file_name"].isin(names)]
        best = _best_copy(run, copy)
        images.loc[copy.index, "cluster"] = best.file_name
        for row in copy.itertuples():
            if row.file_name == best.file_name or row.file_name in taken_back:
                continue
            distance = hash_distance(hashes[row.file_name], hashes[best.file_name])
            if row.sha256 == best.sha256:
                kind, reason = "same file", f"is the same file as {best.file_name}"
            elif distance <= config.max_hash_bits or row.file_name not in likenesses:
                kind = "near copy"
                reason = f"shows the same as {best.file_name}: their hashes differ in {distance} of 256 bits"
            else:
                kind, (value, other) = "edited copy", likenesses[row.file_name]
                reason = f"is {other} edited: their edges are {value:.2f} alike, "
                reason += f"min_likeness is {config.min_likeness:g}"
            images.loc[row.Index, ["kind", "reason"]] = [kind, reason]


def _find_clusters(
    config: DatasetConfig, images: pd.DataFrame, hashes: dict[str, ImageHash]
) -> tuple[list[list[str]], dict[str, tuple[float, str]]]:
    """Return the clusters of copies, as lists of names, and each edited copy's likeness and closest image."""
    names = images["file_name"].tolist()
    ordered = [hashes[name] for name in names]
    edited = list(find_edited_copies(ordered, config.min_likeness))
    likenesses: dict[str, tuple[float, str]] = {}
    for pair in edited:
        for one, other in ((pair.one, pair.other), (pair.other, pair.one)):
            found = (pair.likeness, names[other])
            likenesses[names[one]] = max(likenesses.get(names[one], (0.0, "")), found)
    pairs = list(find_copies(ordered, config.max_hash_bits))
    pairs += [(pair.one, pair.other) for pair in edited]
    same = images.groupby("sha256").indices.values()
    pairs += [(positions[0], other) for positions in same for other in positions]
    members = pd.Series(names).groupby(group_labels(len(names), pairs)).agg(list)
    return [cluster for cluster in members if len(cluster) > 1], likenesses


def _mark_series(config: DatasetConfig, images: pd.DataFrame) -> None:
    """Set the column `series` to the matching pattern or the file name. Raises RunError if a pattern matches none."""
    images["series"] = images["file_name"]
    for pattern in config.series:
        fits = images["file_name"].str.fullmatch(fnmatch.translate(pattern), case=False)
        if not fits.any():
            raise RunError(
                f"series has {pattern!r}, which matches no image's name: "
                f"names look like {images['file_name'].iloc[0]}"
            )
        images.loc[fits, "series"] = pattern


def _best_copy(run: Run, copy: pd.DataFrame) -> Any:
    """Return the row of the best copy. Of the sharp ones most pixels win, then the largest file."""
    sharp = copy[copy["detail"] >= SHARP_ENOUGH * copy["detail"].max()].sort_values("file_name")
    return max(
        sharp.itertuples(),
        key=lambda row: (row.width_px * row.height_px, run.image(row.file_name).stat().st_size),
    )
