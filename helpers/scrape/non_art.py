"""Find masks, regularisation images and training samples in a folder laid out for kohya's sd-scripts or OneTrainer."""

import re
from collections.abc import Sequence
from pathlib import Path

from helpers.core.text import fold

MASK = re.compile(r"(.+)-(?:mask|cond)label")  # OneTrainer's, next to the image
# kohya's conditioning_data_dir: mask/10_name/a.png for img/10_name/a.png or 10_name/a.png
MASK_FOLDERS, IMAGE_FOLDERS = ("mask", "masks", "conditioning"), ("img", "image", "images", "train")
# in kohya's sample/: OUTPUT_e000001_00_20260101120000_42
SAMPLE = re.compile(r"(?:.+_)?e?\d{6}_\d\d_\d{14}(?:_\d+)?")
KOHYA = re.compile(r"[1-9]\d{0,2}_\S.*")  # a folder's repeats and class
REGULARISATION = ("reg", "regs", "regularisation", "regularization")


def find_non_art(root: Path, images: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the images that are not art, by kind: masks, regularisation images and training samples."""
    return {
        "masks": _find_masks(root, images),
        "regularisation images (reg/)": _find_regularisation(root, images),
        "samples that a training drew": [
            p for p in images if p.parent.name == "sample" and SAMPLE.fullmatch(p.stem)
        ],
    }


def _find_masks(root: Path, images: Sequence[Path]) -> list[Path]:
    """Return the masks of images: files such as a-masklabel.png (OneTrainer's) or mask/10_name/a.png (kohya's)."""
    stems = {(path.parent, path.stem) for path in images}
    image_keys, mask_keys = set(), {}
    for path in images:
        folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
        key = (*(f for f in folders if f not in (*MASK_FOLDERS, *IMAGE_FOLDERS)), fold(path.stem))
        if set(MASK_FOLDERS) & set(folders):
            mask_keys[path] = key
        else:
            image_keys.add(key)
    return [
        path
        for path in images
        if mask_keys.get(path) in image_keys
        or ((match := MASK.fullmatch(path.stem)) and (path.parent, match[1]) in stems)
    ]


def _find_regularisation(root: Path, images: Sequence[Path]) -> list[Path]:
    """Return the images in kohya's regularisation folders (reg/1_class/), or [] without training folders (10_name/)."""
    in_kohya = [path for path in images if KOHYA.fullmatch(path.parent.name)]
    found = [
        path
        for path in in_kohya
        if any(part.lower() in REGULARISATION for part in path.relative_to(root).parts[:-2])
    ]
    return found if len(found) < len(in_kohya) else []
