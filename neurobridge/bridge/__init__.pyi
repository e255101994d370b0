from .front import pareto as pareto
from .scores import scorecard as scorecard
