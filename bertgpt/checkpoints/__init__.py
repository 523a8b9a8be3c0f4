"""Model folders: detect the format, load, save, and adapt a model to another head."""
