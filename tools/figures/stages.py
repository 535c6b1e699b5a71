"""The five stages as a strip, with the notebook's own stage marked."""

from tools.figures.sheet import BLUE, GREY, INK, PALE, WHITE, Sheet

STAGES = (
    ("Scrape", "images"),
    ("Caption", "captions"),
    ("Dataset", "dataset"),
    ("Train", "model"),
    ("Inference", "pictures"),
)


def stages(own: int) -> Sheet:
    sheet = Sheet(150)
    for number, (name, product) in enumerate(STAGES, 1):
        left, is_own = 8 + (number - 1) * 180, number == own
        sheet.box(left, 12, 156, 92, BLUE if is_own else PALE)
        colour = WHITE if is_own else INK
        sheet.write(left + 78, 38, str(number), 26, colour, "center", weight="bold")
        sheet.write(
            left + 78, 76, name, 26, colour, "center", weight="bold" if is_own else "normal"
        )
        sheet.write(left + 78, 128, product, 24, BLUE if is_own else GREY, "center")
        if number < len(STAGES):
            sheet.arrow((left + 156, 58), (left + 182, 58))
    return sheet
