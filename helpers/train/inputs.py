"""Truncate captions that are too long for the model, and warn about truncated captions and enlarged images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from transformers import CLIPTokenizer

from helpers.core.decode import ORIENTATION
from helpers.core.errors import RunError
from helpers.models.tokens import count_tokens, shorten
from helpers.train.buckets import Crop


def truncate_captions(texts: Iterable[str], suffix: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Truncate captions to the text encoder's length (77 tokens for CLIP), keeping the suffix."""
    return [shorten(tokenizer, text, suffix, tokenizer.model_max_length) for text in texts]


def check_suffix_length(suffix: str, tokenizer: CLIPTokenizer) -> None:
    """Raise RunError if the suffix alone reaches the text encoder's token limit."""
    takes, longest = count_tokens(tokenizer, suffix), tokenizer.model_max_length
    if takes >= longest:
        raise RunError(
            f"the suffix {suffix!r} takes {takes} tokens and this model reads {longest}, so no caption would be read: "
            "set a shorter suffix in 03_dataset"
        )


def dataset_warnings(paths: Sequence[Path], crop: Crop, cut: int, longest: int) -> list[str]:
    """Return warnings about enlarged images, and about `cut` captions with more than `longest` tokens."""
    enlarged, warnings = sum(_is_enlarged(path, crop) for path in paths), []
    if enlarged:
        warnings.append(
            f"{enlarged} of {len(paths)} pictures are smaller than resolution_px={crop.side_px} and are enlarged, "
            "which makes them soft: lower resolution_px, or raise min_side_px in 03_dataset"
        )
    if cut:
        warnings.append(
            f"{cut} of {len(paths)} captions are longer than the {longest} tokens that this model reads: their last "
            "words are left out and the suffix stays; shorten them in 02_caption"
        )
    return warnings


def _is_enlarged(path: Path, crop: Crop) -> bool:
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION, 1) >= 5:  # EXIF: rotated by 90 degrees
                width, height = height, width
    except OSError:  # encoding raises an error that names the file
        return False
    target_width, target_height = crop.shape(width, height)
    return target_width > width or target_height > height
