"""Colab's kernels have google.colab loaded when they start; `STUB_GPUS` is how many GPUs a machine is said to have."""

import os

import google.colab  # noqa: F401

if "STUB_GPUS" in os.environ:
    import torch

    torch.cuda.device_count = lambda: int(os.environ["STUB_GPUS"])
