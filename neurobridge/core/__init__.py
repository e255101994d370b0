"""The public names of `neurobridge.core`; a module loads when its name is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
