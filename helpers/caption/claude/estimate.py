"""Estimate the cost of captioning with Claude before anything is spent."""

from dataclasses import dataclass
from statistics import mean

from helpers.caption.claude.client import Session
from helpers.caption.claude.prices import PRICES_DATE, Usage, cost_usd
from helpers.config import CaptionConfig
from helpers.core.records import Caption, Post, caption_costs, read_rows
from helpers.core.run import Run

OUTPUT_TOKENS = 25  # of fifteen words in their JSON, until the run has answers of its own
CHARACTERS_PER_TOKEN = 4
THINKING_TOKENS = 100


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of captioning images, now or in batches, and the token counts behind it."""

    images: int
    image_tokens: int  # in total
    shared_tokens: int  # of the prompt, repeated in every request
    output_tokens: int  # per answer
    now_usd: float
    batch_usd: float
    uncached_usd: float  # for mode=batch without any cache hit
    spent_usd: float
    budget_usd: float
    model: str
    warning: str

    def __str__(self) -> str:
        lines = [
            f"{self.images} images by {self.model}, at the prices of {PRICES_DATE}",
            f"  mode=now    ${self.now_usd:.4f}   answers within minutes",
            f"  mode=batch  ${self.batch_usd:.4f}   answers mostly within an hour, at most a day; "
            f"${self.uncached_usd:.4f} if the prompt is never cached",
            f"  {self.image_tokens} tokens of images, {self.shared_tokens} of prompt in each request, "
            f"{self.output_tokens} of answer each",
            f"  spent so far ${self.spent_usd:.4f} of budget_usd=${self.budget_usd:.2f}",
        ]
        return "\n".join(lines + ([f"  {self.warning}"] if self.warning else []))


def estimate(config: CaptionConfig, run: Run, posts: list[Post]) -> Estimate:
    """Estimate the cost of captioning `posts`, with one free request to the token counting endpoint."""
    session = Session(config, run)
    count, shared = len(posts), session.shared_tokens
    images = sum(session.tokens_of(post) for post in posts)
    output = output_tokens(session)
    unshared = {"input": images, "output": output * count}
    written = Usage(**unshared, cache_write=shared * count, cache_write_hour=shared * count)
    if shared < session.model.min_cache_tokens:
        usage = written = Usage(input=images + shared * count, output=output * count)
    else:
        reads = shared * max(0, count - 1)
        usage = Usage(**unshared, cache_write=shared, cache_write_hour=shared, cache_read=reads)
    return Estimate(
        images=count,
        image_tokens=images,
        shared_tokens=shared,
        output_tokens=output,
        now_usd=cost_usd(session.model, usage),
        batch_usd=cost_usd(session.model, usage, batch=True),
        uncached_usd=cost_usd(session.model, written, batch=True),
        spent_usd=caption_costs(run.captions)[0],
        budget_usd=config.budget_usd,
        model=config.model,
        warning=session.warning,
    )


def output_tokens(session: Session) -> int:
    """Estimate the output tokens of an answer: the mean of this run's answers, else of the examples, else a default."""
    rows = read_rows(session.run.captions, Caption)
    given = [row.output_tokens for row in rows if row.model == session.config.model]
    if any(given):
        return round(mean(filter(None, given)))
    thinking = THINKING_TOKENS if session.model.thinks else 0
    if answers := session.prompt.example_answers:
        return round(mean(len(answer) for answer in answers) / CHARACTERS_PER_TOKEN) + thinking
    return OUTPUT_TOKENS + thinking
