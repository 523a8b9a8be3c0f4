"""From labelled rows to the examples of a task."""
