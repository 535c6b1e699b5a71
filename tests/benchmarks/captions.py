"""What the seed's own job costs our way and the seed's, at the same prices: `python -m tests.benchmarks.captions`.

857 images of 1080 px and three examples. The seed sent ten images a request as they were published, with
the examples at full size each time; ours are sent for real, by the SDK in a batch to the loopback API, whose
bill this prints. The seed's requests are counted by the same server's rules, since present models refuse them.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

from helpers.caption.claude.estimate import estimate
from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig
from helpers.core.run import Run
from tests.loopback_claude import PRICES, LoopbackClaude, caption_of, numbered_picture
from tests.test_claude import make_run, name_of

IMAGES, EXAMPLES, IMAGES_A_REQUEST = 857, 3, 10
MODEL = "claude-haiku-5-5"
MOST_SHARE = 0.35
SEED_TEXT = 1_150  # characters of its system prompt, instructions, example captions and tool
SEED_NAME = "This drawing's filename is: C0KkPzbRpdR_0.jpg"


def seeds_way_usd(size: tuple[int, int]) -> float:
    """Ten images a request at full size, the examples again in each, answers that echo file names."""
    patches = math.ceil(size[0] / 28) * math.ceil(size[1] / 28)
    requests = math.ceil(IMAGES / IMAGES_A_REQUEST)
    text = requests * SEED_TEXT + IMAGES * len(SEED_NAME)
    tokens_in = patches * (IMAGES + requests * EXAMPLES) + text / 4
    answers = [{"file_name": "C0KkPzbRpdR_0.jpg", "prompt": caption_of(i)} for i in range(IMAGES)]
    price_in, price_out = PRICES[MODEL]
    return (tokens_in * price_in + len(json.dumps(answers)) / 4 * price_out) / 1e6


def our_way_usd(size: tuple[int, int]) -> tuple[float, float]:
    """(what the loopback server bills, what it would come to if the prompt were never cached)."""
    claude = LoopbackClaude()
    os.environ |= {"ANTHROPIC_BASE_URL": claude.url, "ANTHROPIC_API_KEY": "test-key"}
    run = make_run(IMAGES, size)
    folder = Path("examples")
    for number in range(EXAMPLES):
        picture = numbered_picture(folder / name_of(number), number, size)
        picture.with_suffix(".txt").write_text(caption_of(number))
    config = CaptionConfig(
        run=run.name,
        captioner="claude",
        model=MODEL,
        mode="batch",
        examples=(str(folder),),
        poll_s=0.0,
    )
    told = estimate(config, Run(run.name), pending(config, run))
    rows = list(caption_images(config, run, pending(config, run)))
    assert all(row.is_usable for row in rows) and len(rows) == IMAGES
    print(told)
    claude.close()
    return claude.billed_usd, told.uncached_usd


def main() -> None:
    for size in ((1080, 1080), (1080, 1350)):
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            ours, uncached = our_way_usd(size)
            os.chdir("/")
        seeds = seeds_way_usd(size)
        print(
            f"{IMAGES} images of {size[0]} x {size[1]}: the seed's way ${seeds:.4f}, ours in a batch ${ours:.4f}, "
            f"{ours / seeds:.1%} (if the prompt were never cached: ${uncached:.4f}, {uncached / seeds:.1%})\n"
        )
        if ours > MOST_SHARE * seeds:
            sys.exit(f"more than {MOST_SHARE:.0%} of the seed's way")


if __name__ == "__main__":
    main()
