"""Networks: the generator G, its encoder E, the residual term, and the conditioner of the noise flow."""

from .encoder import Encoder
from .generator import Generator
from .noise import NoiseNetwork
from .residual import ResidualTerm
from .robust_noise import RobustNoiseNetwork

__all__ = ["Encoder", "Generator", "NoiseNetwork", "ResidualTerm", "RobustNoiseNetwork"]
