"""One module per format of weights."""
