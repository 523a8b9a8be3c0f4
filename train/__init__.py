"""The trainer: `python -m train COMMAND`."""
