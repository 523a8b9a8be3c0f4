"""Programs as users compile them."""

import jax

jax.config.update("jax_disable_most_optimizations", False)
