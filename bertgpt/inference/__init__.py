"""What trained models are used for: filled masks, vectors, text, predictions, StableHLO."""
