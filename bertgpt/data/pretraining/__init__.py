"""From a token store to pretraining examples: sentence pairs, windows, masking, packing."""
