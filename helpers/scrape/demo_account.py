"""The image source "demo": an invented painter's account of procedurally painted watercolours with captions.

The last posts are one image for each flaw that 03 detects, and a video, which 01 rejects.
"""

import hashlib
import io
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

from PIL import Image

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.demo.flaws import FLAWS
from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import DEMO_SCENES_FROM, random_scene
from helpers.scrape.items import Listing, PermanentRefusal, SourceItem

FIRST_DAY = datetime(2025, 1, 1, 9, tzinfo=UTC)


def list_items(config: ScrapeConfig, _run: Run) -> Listing:
    """Return the demo's posts of one to three images, an image for each flaw that 03 detects, and a video."""
    rng = Random(0)
    found: list[SourceItem] = []
    for number in range(config.demo_posts):
        pictures = rng.choice((1, 1, 2, 3))
        day = FIRST_DAY + timedelta(days=3 * number, minutes=rng.randrange(600))
        shortcode = _shortcode("D", f"mira {number}")
        for index in range(1, pictures + 1):
            scene = random_scene(DEMO_SCENES_FROM + len(found))
            paint = partial(paint_watercolour, scene)
            source_id = f"scene {scene.seed}"
            found.append(_make_item(shortcode, index, day, source_id, paint, scene.caption))
    # the rest sorts last, so that of two equal files the one posted first stays in the dataset
    last = FIRST_DAY + timedelta(days=3 * config.demo_posts)
    for kind, flaw in FLAWS.items():
        source_id = f"{kind} of scene {flaw.seed}"
        shortcode = _shortcode("E", kind)
        found.append(_make_item(shortcode, 1, last, source_id, flaw.paint, flaw.caption))
    return Listing([*found, _make_item(_shortcode("E", "video"), 1, last, "video", _video)])


def _make_item(
    shortcode: str,
    index: int,
    day: datetime,
    source_id: str,
    paint: Callable[[], Image.Image],
    caption: str | None = None,
) -> SourceItem:
    return SourceItem(
        name=f"{shortcode}_{index}",
        shortcode=shortcode,
        index=index,
        load=partial(_jpeg, paint),
        caption=caption,
        account="mira_paints (drawn by this project)",
        taken_at=day.isoformat(),
        source_id=source_id,
    )


def _shortcode(first: str, post: str) -> str:
    return first + urlsafe_b64encode(hashlib.sha256(post.encode()).digest())[:10].decode()


def _jpeg(paint: Callable[[], Image.Image]) -> bytes:
    buffer = io.BytesIO()
    paint().save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _video() -> Image.Image:
    raise PermanentRefusal("is a video")
