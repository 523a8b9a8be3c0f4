"""One module for each format of weights."""
