"""Densities of the model as Pyro distributions, independent of the inference."""

from __future__ import annotations

from bayesspec.distributions.class_kde import ClassKDE, LatentPrior
from bayesspec.distributions.noise_flow import Conditioner, NoiseFlow
from bayesspec.distributions.robust_flow import RobustNoiseFlow
from bayesspec.distributions.shared_discrepancy import SharedDiscrepancy

__all__ = ["ClassKDE", "Conditioner", "LatentPrior", "NoiseFlow", "RobustNoiseFlow", "SharedDiscrepancy"]
