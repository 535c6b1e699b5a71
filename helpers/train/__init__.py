"""Fine-tune the model (notebook 04). Begin reading in trainer.py."""
