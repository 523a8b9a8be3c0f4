"""Uses of trained models: fill masks, embed and generate text, predict, export to StableHLO."""
