"""02: a good and a bad caption, what a token is, what a request costs."""

from transformers import CLIPTokenizer

from helpers.caption.claude.estimate import CHARACTERS_PER_TOKEN, OUTPUT_TOKENS
from helpers.caption.claude.prices import MODELS
from helpers.caption.claude.prompt import STYLE_GUIDE, image_tokens
from helpers.demo.scenes import SUFFIX
from helpers.models.tokens import CLIP_TOKENS
from tools.figures.drawn import CAT, watercolour
from tools.figures.sheet import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, SKY, WHITE, Sheet

ENDS = "#c9ced6"  # the tokens before the first word and after the last
TOKENIZER = "assets/tiny-sd/tokenizer"
LARGE_PX = 1080  # of a picture, before it is scaled down to be sent
SENT_PX = 756  # CaptionConfig.image_side_px


def good_and_bad() -> Sheet:
    sheet = Sheet(470)
    sheet.picture(watercolour(CAT, 320), 20, 20, 310)
    sheet.write(360, 46, "✗", 34, RED)
    sheet.write(405, 46, "a lovely watercolour of a cat", 26)
    sheet.write(405, 88, "praises, names the style, misses the scene", 22, GREY)
    sheet.write(360, 172, "✓", 34, GREEN)
    sheet.write(405, 188, "a blue cat next to a red car\non a green hill", 26)
    sheet.write(405, 248, "who, of which colour, with what, where", 22, GREY)
    sheet.box(20, 360, 860, 92)
    sheet.write(40, 386, "03 adds the style's name, the same to every caption:", 22, GREY)
    sheet.write(40, 424, "… on a green hill", 26)
    sheet.write(270, 424, SUFFIX.strip(), 26, BLUE, weight="bold")
    return sheet


def tokens() -> Sheet:
    """A caption as the demo's tokenizer cuts it, on the scale of the 77 tokens that CLIP reads."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    suffix = " in a kestrel gouache style"
    words, style = (tokenizer.tokenize(text) for text in (CAT.caption, suffix))
    pieces = ["start", *words, *style, "end"]
    colours = [ENDS, *[SKY] * len(words), *[ORANGE] * len(style), ENDS]
    sheet = Sheet(330)
    sheet.title(f"{len(CAT.caption.split() + suffix.split())} words, {len(pieces)} tokens")
    x, y = 20, 66
    for piece, colour in zip(pieces, colours, strict=True):
        text = piece.removesuffix("</w>")
        width = 18 + 14.5 * len(text)
        if x + width > 885:
            x, y = 20, y + 58
        sheet.box(x, y, width, 46, colour)
        sheet.write(x + width / 2, y + 23, text, 23, align="center")
        x += width + (8 if piece == "start" or piece.endswith("</w>") else 2)
    sheet.write(20, y + 88, f"CLIP reads {CLIP_TOKENS}; what comes after is never seen", 24)
    for i, colour in enumerate(colours + [PALE] * (CLIP_TOKENS - len(colours))):
        sheet.cell(20 + 11.2 * i, y + 116, 9, 34, colour)
    sheet.write(20, y + 182, "■", 26, SKY)
    sheet.write(50, y + 182, "caption", 23)
    sheet.write(190, y + 182, "■", 26, ORANGE)
    sheet.write(220, y + 182, "suffix; a rare word comes in pieces", 23)
    return sheet


def cost() -> Sheet:
    """Tokens of a request, and what each part of it costs, by the cheapest model's prices."""
    price = MODELS["claude-haiku-5-5"]
    parts = {
        "style guide": len(STYLE_GUIDE) / CHARACTERS_PER_TOKEN,
        "your picture": image_tokens(LARGE_PX, LARGE_PX, SENT_PX),
        "caption": OUTPUT_TOKENS,
    }
    rates = (price.cache_read, price.input, price.output)
    dollars = [count * rate / 1e6 for count, rate in zip(parts.values(), rates, strict=True)]
    sheet = Sheet(420)
    sheet.title("What one request costs")
    colours = dict(zip(parts, (GREY, BLUE, ORANGE), strict=True))
    for y, label, sizes in ((106, "tokens", [*parts.values()]), (206, "dollars", dollars)):
        sheet.write(20, y, label, 24)
        x = 130.0
        for name, size in zip(parts, sizes, strict=True):
            width, share = 750 * size / sum(sizes), size / sum(sizes)
            sheet.cell(x, y - 32, width - 3, 64, colours[name])
            if width > 60:
                ink = INK if colours[name] == ORANGE else WHITE
                sheet.write(x + width / 2, y, f"{share:.0%}", 24, ink, "center")
            x += width
    x = 20.0
    named = ("style guide, kept by Claude", "your picture", "caption")
    for name, words in zip(parts, named, strict=True):
        sheet.write(x, 276, "■", 26, colours[name])
        sheet.write(x + 30, 276, words, 23)
        x += 80 + 12.6 * len(words)
    for x, words in (
        (20, "now: answers in minutes,\nfull price"),
        (460, "batch: answers within a day,\nhalf the price"),
    ):
        sheet.box(x, 316, 420, 86)
        sheet.write(x + 210, 359, words, 24, align="center")
    return sheet
