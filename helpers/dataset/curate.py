"""Which images go into the dataset: joined to their captions by file name, judged by figures, copies set apart.

Nothing is deleted. What is left out stands in rejected.jsonl with its reason, and a line in taken_back.txt
brings it in all the same.
"""

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.files import write_text
from helpers.core.records import Rejection, rewrite
from helpers.core.run import Run
from helpers.dataset.join import candidates, without_image
from helpers.dataset.quality import Quality, measure, oddness
from helpers.dataset.resemblance import (
    Look,
    bits_apart,
    copies,
    edited_copies,
    joined,
    look,
)
from helpers.figures.pictures import open_rgb

LEAST = 4  # images
NEARLY_AS_SHARP = 0.5  # of the sharpest; JPEG's block edges look sharp as well
FIGURES = ("sharpness", "detail", "brightness", "text_share")


def curate(config: DatasetConfig, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images kept, and images left out with columns `kind` and `reason`; the latter also go to rejected.jsonl.

    Both have the figures they were judged by, and columns `cluster`, the file name of the best of their copies, and
    `series`, what they were told to share a scene with.
    Raises RunError if fewer than four are kept, or a series is empty.
    """
    images = candidates(config, run)
    images[["kind", "reason"]] = ""
    _mark_unusable(run, images)
    images, looks, palettes = _with_figures(run, images)
    judge(config, images, palettes, _lines(run.taken_back))
    _mark_copies(config, run, images, looks)
    _mark_series(config, images)
    kept, left_out = images[images["reason"] == ""], images[images["reason"] != ""]
    rejections = [
        Rejection(row.file_name, "dataset", row.reason, row.kind) for row in left_out.itertuples()
    ]
    why = f"has a caption but is not in {run.posts}: run 01_scrape again"
    rejections += [Rejection(name, "dataset", why, "no image") for name in without_image(run)]
    rewrite(run.rejected, lambda row: row.get("stage") != "dataset", rejections)
    if len(kept) < LEAST:
        why = "; ".join(f"{n} {reason}" for reason, n in left_out["reason"].value_counts().items())
        raise RunError(
            f"{len(kept)} of {len(images)} images are left, and training needs {LEAST}: add images and run 01 to 03 "
            f"again{f', or mend these ({why})' if why else ''}"
        )
    return kept.drop(columns=["kind", "reason"]), left_out


def take_back(run: Run, file_name: str) -> None:
    """Have an image in the dataset from the next run of 03 on, whatever its flaws; a copy stays beside its like."""
    run.image(file_name)  # refuses names that are not ours
    names = _lines(run.taken_back)
    if file_name not in names:
        write_text(run.taken_back, "".join(f"{name}\n" for name in (*names, file_name)))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _mark(images: pd.DataFrame, which: pd.Series, kind: str, reason: str | pd.Series) -> None:
    """Give images a reason to be left out, unless they have one already."""
    which = which & (images["reason"] == "")
    images.loc[which, "kind"] = kind
    images.loc[which, "reason"] = reason if isinstance(reason, str) else reason[which]


def _mark_unusable(run: Run, images: pd.DataFrame) -> None:
    taken_down = images["shortcode"].isin(run.read_taken_down())
    again = f"is of a post that {run.taken_down} lists: take it down again, or that line out"
    _mark(images, taken_down, "taken down", again)
    _mark(images, images["caption"] == "", "no caption", "has no caption")
    is_there = images["file_name"].map(lambda name: run.image(name).is_file())
    _mark(images, ~is_there, "no image", f"is not in {run.images}: run 01_scrape again")
    is_gone = (images["gone"] != "") & ~images["file_name"].isin(_lines(run.taken_back))
    _mark(
        images,
        is_gone,
        "gone",
        "is no longer in the source: 01 found it missing on " + images["gone"],
    )


def _with_figures(
    run: Run, images: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Look], dict[str, np.ndarray]]:
    """Measure the images that have no reason against them yet; looks and palettes are by file name."""
    figures: dict[str, Quality] = {}
    looks: dict[str, Look] = {}
    wanted = images.loc[images["reason"] == "", "file_name"]
    for i, name in tqdm(wanted.items(), "measure images", total=len(wanted), leave=False):
        try:
            image = open_rgb(run.image(name))
        except OSError as error:
            images.loc[i, ["kind", "reason"]] = ["no image", str(error)]
            continue
        figures[name], looks[name] = measure(image), look(image)
    columns = {
        figure: images["file_name"].map({name: getattr(q, figure) for name, q in figures.items()})
        for figure in FIGURES
    }
    palettes = {name: quality.palette for name, quality in figures.items()}
    return images.assign(**columns).astype(dict.fromkeys(FIGURES, float)), looks, palettes


def judge(
    config: DatasetConfig,
    images: pd.DataFrame,
    palettes: dict[str, np.ndarray],
    taken_back: list[str],
) -> None:
    """Give each image with a flaw its reason: the figure, and the setting that it misses."""
    may_go = ~images["file_name"].isin(taken_back)
    for kind, is_flawed, reason in _flaws(config, images):
        _mark(images, is_flawed & may_go, kind, reason)
    rest = images[images["reason"] == ""]
    if rest.empty:
        return
    odd = oddness(
        np.stack([palettes[n] for n in rest["file_name"]]), rest["shortcode"].to_numpy(str)
    )
    images["oddness"] = pd.Series(odd, rest.index)
    reason = (
        "its colours are " + _shown(images["oddness"]) + " spreads from the other posts' pictures"
    )
    reason += f", above max_oddness {config.max_oddness:g}"
    _mark(images, (images["oddness"] > config.max_oddness) & may_go, "odd one out", reason)


def _flaws(
    config: DatasetConfig, images: pd.DataFrame
) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Each kind of flaw, which images have it, and the words for each of them."""
    sides = images[["width_px", "height_px"]]
    side_px, aspect = sides.min(axis=1), sides.max(axis=1) / sides.min(axis=1)
    bright, text, sharp = images["brightness"], images["text_share"], images["sharpness"]
    least = config.min_sharpness * sharp.median()
    words = "its shorter side of " + side_px.astype(str) + " px is below min_side_px "
    yield "too small", side_px < config.min_side_px, words + str(config.min_side_px)
    words = "its longer side is " + _shown(aspect) + " times the shorter, above max_aspect "
    yield "extreme aspect", aspect > config.max_aspect, words + f"{config.max_aspect:g}"
    words = "its brightness of " + _shown(bright) + " is below min_brightness "
    yield "too dark", bright < config.min_brightness, words + f"{config.min_brightness:g}"
    words = "lines of text cover " + _shown(text, 2) + " of its height, above max_text_share "
    yield "mostly text", text > config.max_text_share, words + f"{config.max_text_share:g}"
    words = "its sharpness of " + _shown(sharp) + f" is below {least:.1f}, min_sharpness "
    words += f"{config.min_sharpness:g} of the set's median"
    yield "too blurry", sharp < least, words


def _shown(values: pd.Series, digits: int = 1) -> pd.Series:
    return values.map(lambda value: f"{value:.{digits}f}")


def _mark_copies(
    config: DatasetConfig, run: Run, images: pd.DataFrame, looks: dict[str, Look]
) -> None:
    """Set the column `cluster`, and leave out all but the best of each cluster."""
    taken_back = _lines(run.taken_back)
    images["cluster"] = images["file_name"]
    clusters, alike = _clusters(config, images[images["reason"] == ""], looks)
    for names in clusters:
        copy = images[images["file_name"].isin(names)]
        best = _best(run, copy)
        images.loc[copy.index, "cluster"] = best["file_name"]
        for row in copy.itertuples():
            if row.file_name == best["file_name"] or row.file_name in taken_back:
                continue
            apart = bits_apart(looks[row.file_name], looks[best["file_name"]])
            if row.sha256 == best["sha256"]:
                kind, reason = "same file", f"is the same file as {best['file_name']}"
            elif apart <= config.max_hash_bits or row.file_name not in alike:
                kind = "near copy"
                reason = f"shows the same as {best['file_name']}: their hashes differ in {apart} of 256 bits"
            else:
                kind, (value, other) = "edited copy", alike[row.file_name]
                reason = f"is {other} edited: their edges are {value:.2f} alike, "
                reason += f"min_likeness is {config.min_likeness:g}"
            images.loc[row.Index, ["kind", "reason"]] = [kind, reason]


def _clusters(
    config: DatasetConfig, images: pd.DataFrame, looks: dict[str, Look]
) -> tuple[list[list[str]], dict[str, tuple[float, str]]]:
    """The file names of each set of copies, two or more; and for edited ones how alike they are, and to which."""
    names = images["file_name"].tolist()
    seen = [looks[name] for name in names]
    edited = list(edited_copies(seen, config.min_likeness))
    alike: dict[str, tuple[float, str]] = {}
    for pair in edited:
        for one, other in ((pair.one, pair.other), (pair.other, pair.one)):
            alike[names[one]] = max(alike.get(names[one], (0.0, "")), (pair.value, names[other]))
    pairs = [*copies(seen, config.max_hash_bits), *((pair.one, pair.other) for pair in edited)]
    first = {sha256: i for i, sha256 in reversed(list(enumerate(images["sha256"])))}
    pairs += [(i, first[sha256]) for i, sha256 in enumerate(images["sha256"])]
    members = pd.Series(names).groupby(joined(len(names), pairs)).agg(list)
    return [cluster for cluster in members if len(cluster) > 1], alike


def _mark_series(config: DatasetConfig, images: pd.DataFrame) -> None:
    """Set the column `series`: the pattern that an image's name fits, else the name itself.

    Raises RunError for a pattern that no name fits.
    """
    images["series"] = images["file_name"]
    for pattern in config.series:
        fits = images["file_name"].str.fullmatch(fnmatch.translate(pattern), case=False)
        if not fits.any():
            raise RunError(
                f"series has {pattern!r}, which no image's name fits: "
                f"names are such as {images['file_name'].iloc[0]}"
            )
        images.loc[fits, "series"] = pattern


def _best(run: Run, copy: pd.DataFrame) -> pd.Series:
    """The sharpest of copies; of those nearly as sharp the one of most pixels, the largest file, the first by name."""
    sharp = copy[copy["detail"] >= NEARLY_AS_SHARP * copy["detail"].max()]
    pixels = sharp["width_px"] * sharp["height_px"]
    sizes = sharp["file_name"].map(lambda name: run.image(name).stat().st_size)
    ranked = sharp.assign(pixels=pixels, size=sizes).sort_values(
        ["pixels", "size", "file_name"], ascending=[False, False, True]
    )
    return ranked.iloc[0]
