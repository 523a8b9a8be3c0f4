"""Programs as users compile them."""

import jax

jax.config.update("jax_disable_most_optimizations", False)
jax.config.update("jax_enable_compilation_cache", False)  # it cannot read programs for absent devices
jax.config.update("jax_default_matmul_precision", None)
