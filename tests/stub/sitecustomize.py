"""Colab's kernels have google.colab loaded when they start."""

import google.colab  # noqa: F401
