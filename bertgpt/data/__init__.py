"""From text to batches, with NumPy only: corpus -> store -> plan -> batch."""
