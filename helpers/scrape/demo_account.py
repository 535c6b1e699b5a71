"""Source: the embedded demo, a painter who does not exist. Watercolours of drawn scenes, with their captions."""

import hashlib
import io
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import DEMO_SCENES_FROM, random_scene
from helpers.scrape.items import Found, Listing

FIRST_DAY = datetime(2025, 1, 1, 9, tzinfo=UTC)


def find(config: ScrapeConfig, _run: Run) -> Listing:
    """The painter's posts: single pictures and carousels of two or three."""
    rng = Random(0)
    found: list[Found] = []
    for number in range(config.demo_posts):
        pictures = rng.choice((1, 1, 2, 3))
        day = FIRST_DAY + timedelta(days=3 * number, minutes=rng.randrange(600))
        found += [
            _found(number, index, len(found) + index, day) for index in range(1, pictures + 1)
        ]
    return Listing(found)


def _found(post: int, index: int, picture: int, day: datetime) -> Found:
    scene = random_scene(DEMO_SCENES_FROM + picture)
    shortcode = "D" + urlsafe_b64encode(hashlib.sha256(b"mira %d" % post).digest())[:10].decode()
    return Found(
        name=f"{shortcode}_{index}",
        shortcode=shortcode,
        index=index,
        load=partial(_paint, scene.seed),
        caption=scene.caption,
        account="mira_paints (drawn by this project)",
        taken_at=day.isoformat(),
        source_id=f"scene {scene.seed}",
    )


def _paint(seed: int) -> bytes:
    buffer = io.BytesIO()
    paint_watercolour(random_scene(seed)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
