"""The models: the shared transformer block, and BERT and GPT-1 with their heads."""

from bertgpt.model import masks as masks  # bertgpt.masks
