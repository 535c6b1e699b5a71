"""Train the tiny base model's tokenizer on demo captions, by CLIP's byte-pair encoding (Radford et al. 2021)."""

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from helpers.demo.looks import LOOKS, MEDIA, UNKNOWN_NAMES, suffix
from helpers.demo.scenes import SUFFIX, random_scene

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_TOKENS = 32  # the longest caption with suffix has 20; of CLIP's 77 most would be padding
MORE_WORDS = "two and with wearing riding driving standing character drawing painting flat watercolour annalaura"
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def make_tokenizer() -> CLIPTokenizer:
    """Return a CLIPTokenizer with a token for each word of the demo's captions, and a token for each byte."""
    merges, vocab = _train_bpe()
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(byte, len(vocab))
        vocab.setdefault(byte + WORD_END, len(vocab))
    vocab[BOS], vocab[EOS] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _train_bpe() -> tuple[list[tuple[str, str]], dict[str, int]]:
    bpe = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix=WORD_END,
        continuing_subword_prefix="",
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    return [tuple(merge) for merge in model["merges"]], dict(model["vocab"])


def _corpus() -> list[str]:
    captions = [random_scene(seed, held_out=None).caption + SUFFIX for seed in range(3000)]
    captions += [suffix(look) for look in range(len(LOOKS))] * 40
    return captions + [*MORE_WORDS.split(), *UNKNOWN_NAMES, *MEDIA] * 40
