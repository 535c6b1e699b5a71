"""Add the suffix to prompts, and truncate long prompts to the token limit, without losing the suffix."""

from dataclasses import dataclass

from transformers import CLIPTokenizer

from helpers.core.suffix import append_suffix
from helpers.models.tokens import shorten


@dataclass(frozen=True)
class Prompts:
    """A tool that adds the suffix to prompts, and truncates long prompts at the end of a word.

    max_tokens  the text encoder's limit, begin and end tokens included: 77 for Stable Diffusion
    """

    tokenizer: CLIPTokenizer
    suffix: str
    max_tokens: int

    def styled(self, prompt: str) -> str:
        """Return the prompt with the suffix exactly once, at the end."""
        return append_suffix(prompt, self.suffix)

    def truncate(self, prompt: str) -> str:
        """Return the prompt cut to `max_tokens`. A suffix at the end is kept."""
        return shorten(self.tokenizer, prompt, self.suffix, self.max_tokens)

    def truncation_warning(self, prompt: str) -> str:
        """Return a warning for a prompt that `truncate` would shorten, or "" if the prompt fits."""
        truncated = self.truncate(prompt)
        if truncated == prompt:
            return ""
        ending = self.suffix if prompt.endswith(self.suffix) else ""
        read = truncated.removesuffix(ending)
        left_out = prompt.removesuffix(ending)[len(read) :].split()
        kept = "; the suffix is kept" if ending else ""
        return (
            f"The model reads {self.max_tokens} tokens: this prompt ends at “{' '.join(read.split()[-4:])}”, "
            f"and its last {len(left_out)} words are left out{kept}."
        )
