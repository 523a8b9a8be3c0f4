"""Against Hugging Face: models made at random, no download. What was measured is printed as a table at the end."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest
import torch
import transformers

jax.config.update("jax_disable_most_optimizations", False)  # as users run it
transformers.logging.disable_progress_bar()
torch.set_num_threads(2)
MEASURED: dict[tuple[str, str], float] = {}


def pytest_collection_modifyitems(items):
    """Their warnings are theirs."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"))


@pytest.fixture
def measured():
    """(model, quantity, difference): keeps the largest of each for the table."""

    def record(model: str, quantity: str, difference: float) -> float:
        MEASURED[model, quantity] = max(difference, MEASURED.get((model, quantity), 0.0))
        return difference

    return record


def pytest_terminal_summary(terminalreporter):
    """The measured differences as a Markdown table."""
    if not MEASURED:
        return
    columns = list(dict.fromkeys(quantity for _, quantity in MEASURED))
    lines = ["", f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}", ""]
    lines += ["| largest difference | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for model in dict.fromkeys(model for model, _ in MEASURED):
        cells = (MEASURED.get((model, column)) for column in columns)
        lines.append(f"| {model} | " + " | ".join("" if cell is None else f"{cell:.1e}" for cell in cells) + " |")
    for line in lines:
        terminalreporter.write_line(line)
