"""Prompts for a text encoder of limited length: the suffix is added, and what is too long is cut before it."""

from dataclasses import dataclass

from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from helpers.core.suffix import append_suffix
from helpers.models.tokens import shorten


@dataclass(frozen=True)
class Prompts:
    """Adds the suffix to prompts, and cuts long ones at the end of a word.

    max_tokens  that the text encoder reads, begin and end tokens included: 77 for Stable Diffusion
    """

    tokenizer: CLIPTokenizer
    suffix: str
    max_tokens: int

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, suffix: str) -> "Prompts":
        """Take the tokenizer and its length from a pipeline."""
        return cls(pipeline.tokenizer, suffix, pipeline.tokenizer.model_max_length)

    def styled(self, prompt: str) -> str:
        """The prompt with the suffix at its end, once."""
        return append_suffix(prompt, self.suffix)

    def truncate(self, prompt: str) -> str:
        """The prompt cut to `max_tokens`; a suffix at its end is kept."""
        return shorten(self.tokenizer, prompt, self.suffix, self.max_tokens)

    def truncation_warning(self, prompt: str) -> str:
        """A sentence that says which words of a prompt `truncate` cuts off; empty if none."""
        truncated = self.truncate(prompt)
        if truncated == prompt:
            return ""
        ending = self.suffix if prompt.endswith(self.suffix) else ""
        read, full = truncated.removesuffix(ending), prompt.removesuffix(ending)
        left_out = full[len(read) :].split()
        kept = "; the suffix is kept" if ending else ""
        return (
            f"The model reads {self.max_tokens} tokens: this prompt ends at “{' '.join(read.split()[-4:])}”, "
            f"and its last {len(left_out)} words are left out{kept}."
        )
