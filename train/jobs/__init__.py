"""One module for each kind of run: what it trains on and how it is judged."""
