"""GPT-1 and BERT in JAX: modules and pure functions; no loop, no command line, no global state.

`__init__.pyi` lists the public names. Each is imported when it is first used, so that what needs no JAX (the data
pipeline, the command line's errors) does not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
