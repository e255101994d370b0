"""A literate laboratory for brain-inspired vision networks.

    import neurobridge as nb

    nb.snn.lif, nb.transfer.convert, nb.cornet.cornet_s, nb.g2g.wire, nb.brain.rdm

A room is loaded when it is first used, and a module of it when one of its names is.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, _rooms = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_rooms, "__version__"]
