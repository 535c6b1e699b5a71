"""Draw pictures with a run's models, in batches or from the prompt box."""
