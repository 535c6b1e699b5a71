"""04: the fine-tune. Begin reading in trainer.py."""
