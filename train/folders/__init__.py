"""Files on disk: run folders, checkpoints, token stores and their locks."""
