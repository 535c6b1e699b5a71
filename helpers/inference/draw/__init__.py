"""Drawing: pictures from a model, and the prompt box."""
