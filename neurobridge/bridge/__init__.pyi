from .blueprint import Blueprint as Blueprint
from .blueprint import Neuron as Neuron
from .blueprint import Time as Time
from .blueprint import Wiring as Wiring
from .composition import compose as compose
from .front import pareto as pareto
from .scores import scorecard as scorecard
from .weights import transfer_weights as transfer_weights
