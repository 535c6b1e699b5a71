"""The machine: Colab or not, device, installed packages, and pushes to the Hub."""
