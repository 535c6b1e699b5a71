"""Modules about the machine (Colab, device, packages), and for safe pushes to the Hugging Face Hub."""
