"""The machine (Colab, device, packages), and safe pushes to the Hugging Face Hub."""
