from . import brain as brain
from . import bridge as bridge
from . import core as core
from . import cornet as cornet
from . import data as data
from . import g2g as g2g
from . import lab as lab
from . import snn as snn
from . import transfer as transfer

__version__: str
