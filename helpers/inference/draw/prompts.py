"""What a model reads of a prompt: so many tokens and no more, the suffix always among them."""

from dataclasses import dataclass

from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from helpers.core.suffix import append_suffix
from helpers.models.tokens import shorten


@dataclass(frozen=True)
class Prompts:
    """Adds the suffix to prompts, and cuts those that are too long where a word ends.

    tokens  that the text encoder reads, begin and end included: 77 for Stable Diffusion
    """

    tokenizer: CLIPTokenizer
    suffix: str
    tokens: int

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline, suffix: str) -> "Prompts":
        return cls(pipeline.tokenizer, suffix, pipeline.tokenizer.model_max_length)

    def styled(self, prompt: str) -> str:
        """The prompt with the suffix at its end, once."""
        return append_suffix(prompt, self.suffix)

    def fit(self, prompt: str) -> str:
        """The prompt, or as much of it as is read; the suffix stays where it has it."""
        return shorten(self.tokenizer, prompt, self.suffix, self.tokens)

    def told(self, prompt: str) -> str:
        """What is left out of a prompt that is too long, in a sentence; empty where it fits."""
        fitted = self.fit(prompt)
        if fitted == prompt:
            return ""
        ending = self.suffix if prompt.endswith(self.suffix) else ""
        read, whole = fitted.removesuffix(ending), prompt.removesuffix(ending)
        left_out = whole[len(read) :].split()
        kept = "; the suffix is kept" if ending else ""
        return (
            f"The model reads {self.tokens} tokens: this prompt ends at “{' '.join(read.split()[-4:])}”, "
            f"and its last {len(left_out)} words are left out{kept}."
        )
