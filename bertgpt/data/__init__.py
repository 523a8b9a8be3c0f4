"""From text to batches, with NumPy only: corpus -> store -> plan -> batch.

`__init__.pyi` lists the public names; docs/data.md shows how they are used in a loop of your own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
