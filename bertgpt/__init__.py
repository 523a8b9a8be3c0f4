"""GPT-1 and BERT in JAX: modules and pure functions, without a training loop, a command line or global state.

`__init__.pyi` lists the public names. Each name is imported on first use. Code that needs no JAX (the data pipeline,
the errors of the command line) therefore starts without importing it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
