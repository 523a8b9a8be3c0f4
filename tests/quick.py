"""A flag that makes tests compile in two thirds of the time."""

import importlib.metadata

# XLA's older emitters are quicker to compile. Other versions may not know the flag, and would abort.
QUICK = "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
