"""One module per kind of run: its data, objective and evaluation."""
