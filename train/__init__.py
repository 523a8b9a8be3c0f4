"""What runs: `python -m train VERB`."""
