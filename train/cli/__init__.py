"""One thin module a verb: `add_arguments` and `run`."""
