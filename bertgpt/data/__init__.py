"""Text to batches, in NumPy alone: corpus -> store -> plan -> batch."""
