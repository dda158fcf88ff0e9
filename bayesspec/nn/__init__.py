"""Networks: generator G, encoder E, residual term, velocity/dust/calibration, noise-flow conditioners."""

from .encoder import Encoder
from .generator import Generator
from .noise import NoiseNetwork
from .passage import Passage
from .residual import WIDTHS, ResidualTerm
from .robust_noise import RobustNoiseNetwork

__all__ = [
    "WIDTHS",
    "Encoder",
    "Generator",
    "NoiseNetwork",
    "Passage",
    "ResidualTerm",
    "RobustNoiseNetwork",
]
