"""Find out what machine this is (Colab, device, packages), and push to the Hugging Face Hub safely."""
