"""Pictures and captions that do not fit what is trained: enlarged, or cut before the suffix, and told with counts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from transformers import CLIPTokenizer

from helpers.core.errors import RunError
from helpers.models.tokens import count_tokens, shorten
from helpers.train.buckets import Framing

Rows = Sequence[tuple[str, str]]  # file name and text


def fit_texts(texts: Iterable[str], suffix: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Texts that the text encoder reads to their end, the suffix included."""
    return [shorten(tokenizer, text, suffix, tokenizer.model_max_length) for text in texts]


def require_room(suffix: str, tokenizer: CLIPTokenizer) -> None:
    """Raise RunError where a suffix takes all the tokens that the text encoder reads: no caption would be read."""
    takes, longest = count_tokens(tokenizer, suffix), tokenizer.model_max_length
    if takes >= longest:
        raise RunError(
            f"the suffix {suffix!r} takes {takes} tokens and this model reads {longest}, so no caption would be read: "
            "set a shorter suffix in 03_dataset"
        )


def what_does_not_fit(paths: Sequence[Path], framing: Framing, cut: int, longest: int) -> list[str]:
    """What is told of a dataset before the start, a line each.

    cut      how many of its captions were too long
    longest  the text encoder's length in tokens
    """
    enlarged, told = sum(_is_enlarged(path, framing) for path in paths), []
    if enlarged:
        told.append(
            f"{enlarged} of {len(paths)} pictures are smaller than resolution_px={framing.side_px} and are enlarged, "
            "which makes them soft: lower resolution_px, or raise min_side_px in 03_dataset"
        )
    if cut:
        told.append(
            f"{cut} of {len(paths)} captions are longer than the {longest} tokens that this model reads: their last "
            "words are left out and the suffix stays; shorten them in 02_caption"
        )
    return told


def _is_enlarged(path: Path, framing: Framing) -> bool:
    """Whether a picture has fewer pixels than the shape that it is trained at, along either side."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # EXIF orientation: on its side
                width, height = height, width
    except OSError:  # refused by name where it is encoded
        return False
    wanted = framing.shape(width, height)
    return wanted[0] > width or wanted[1] > height
