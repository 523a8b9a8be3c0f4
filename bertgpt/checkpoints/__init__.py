"""Model folders: recognized, loaded, saved, and fitted to other heads."""
