"""The groups of pictures that are compared to judge a model."""

from dataclasses import dataclass, field

from PIL import Image

COMPARED = {  # groups by their names for a reader
    "train": "training images",
    "held_out": "held-out images",
    "base": "samples of the base model",
    "tuned": "samples of the tuned model",
    "plain": "samples of the tuned model without the suffix",
}


@dataclass(frozen=True)
class Groups:
    """The groups of pictures to compare: real images, and samples of the base and the tuned model."""

    train: list[Image.Image]
    held_out: list[Image.Image]
    base: list[Image.Image]
    tuned: list[Image.Image]
    plain: list[Image.Image]  # by the tuned model, without the suffix
    probe: list[Image.Image] = field(default_factory=list)  # by the tuned model, of train captions


@dataclass(frozen=True)
class Pictures:
    """The pictures in each group that passed the safety checker, and the number of blocked pictures per group."""

    shown: dict[str, list[Image.Image]]
    blocked: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, group: str) -> list[Image.Image]:
        return self.shown[group]

    def why_too_few(self, min_count: int = 1) -> str:
        """Return the reason why pictures are too few to compare, or "" if every group has enough."""
        for name, words in COMPARED.items():
            # half of the base's samples fit the style axis
            if len(self[name]) < max(min_count, 2 if name == "base" else 1):
                blocked = self.blocked.get(name)
                why = f": the safety checker blocked {blocked}" if blocked else ""
                return f"there are {len(self[name])} {words}{why}"
        return ""


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95% confidence interval."""

    value: float
    low: float
    high: float
