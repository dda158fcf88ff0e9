"""Networks: the generator G, its encoder E, and the conditioner of the noise flow."""

from .encoder import Encoder
from .generator import Generator
from .noise import NoiseNetwork

__all__ = ["Encoder", "Generator", "NoiseNetwork"]
