"""What every test shares: where the development spectra are, and which third-party warnings are known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from hypothesis import settings

from bayesspec.grid import WavelengthGrid
from bayesspec.inference.result import Result

settings.register_profile("bayesspec", deadline=None)  # a busy machine is no failure
settings.load_profile("bayesspec")

SHARED = Path(
    os.environ.get("BAYESSPEC_DATA", Path(__file__).parents[1].parent / "shared" / "data")
).resolve()


def shared_files(pattern: str) -> list[Path]:
    """Development spectra that match, for parametrising; empty where they are absent."""
    return sorted(SHARED.glob(pattern))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development spectra; tests that read it skip where it is absent."""
    if not (SHARED / "stars.fits.gz").exists():
        pytest.skip("needs the development spectra (set BAYESSPEC_DATA to their folder)")
    return SHARED


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 128 pixels with random weights: for what does not depend on what a model has learned."""
    import torch

    from bayesspec.bundle import save_model
    from bayesspec.distributions import LatentPrior
    from bayesspec.model import StellarModel
    from bayesspec.nn import Encoder, Generator, NoiseNetwork

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = ("O", "B", "A", "F", "G", "K", "M", "CV", "Carbon", "WD")
        centres = [torch.randn(3) + 0.1 * torch.randn(20, 3) for _ in classes]
        model = StellarModel(
            WavelengthGrid(size=128),
            classes,
            Encoder(size=128, hidden=8, channels=(4, 4)),
            Generator(size=128, hidden=16, channels=(8, 4), strides=(4, 8)),
            LatentPrior.from_classes(centres, [0.1] * len(classes)),
            NoiseNetwork(),
        )
    return save_model(model, tmp_path_factory.mktemp("bundles") / "small", card={})


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    """A result from nothing: N random stars, their exposures and masks; no model is needed."""

    def make(
        stars: int = 3, exposures: int = 2, *, seed: int = 0, ivar: bool = True, **changes: object
    ) -> Result:
        rng = np.random.default_rng(seed)
        grid, classes = WavelengthGrid(size=64), ("O", "B", "A", "F", "G", "K", "M", "CV", "Carbon", "WD")
        spectra = rng.uniform(0.5, 1.5, (stars, grid.size))
        sigma = rng.uniform(0.05, 0.2, (stars, exposures, grid.size))
        scale = rng.uniform(0.5, 2.0, (stars, exposures))
        mask = rng.random((stars, exposures, grid.size)) < 0.2
        mask[..., 10:20] = True
        mask[..., 0] = False
        noisy = scale[..., None] * (spectra[:, None] + sigma * rng.standard_normal(sigma.shape))
        probabilities = rng.dirichlet(np.full(len(classes), 0.3), stars)
        values = {
            "method": "map",
            "model_name": "made up",
            "grid": grid,
            "classes": classes,
            "names": tuple(f"star {n}" for n in range(stars)),
            "units": (u.Unit("1e-17 erg / (s cm2 Angstrom)"),) * stars,
            "model_flux": spectra,
            "unit_flux": rng.uniform(1, 50, stars),
            "z": rng.standard_normal((stars, 3)),
            "class_probabilities": probabilities,
            "best_class": probabilities.argmax(-1),
            "log_density": rng.standard_normal(stars),
            "scale": scale,
            "exposure_unit": rng.uniform(1, 50, (stars, exposures)),
            "observed_flux": np.where(mask, 0, noisy),
            "observed_ivar": np.where(mask, 0, (scale[..., None] * sigma) ** -2) * ivar,
            "observed_mask": mask,
            "chi2": rng.uniform(0.8, 1.2, stars),
            "used_fraction": rng.uniform(0, 1, stars),
            "observed_fraction": (~mask).any(-2).mean(-1),
            "outlier_score": rng.uniform(0, 1, stars),
        }
        return Result(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def only_meta():
    """A mode that refuses every operation that reads or makes a tensor outside the meta device.

    The meta device stands for an accelerator: like it, it cannot branch on data, and unlike fake CUDA tensors
    it has indexing and autograd in a torch that is built without CUDA.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class OnlyMeta(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves((args, kwargs, result)):
                assert not isinstance(leaf, torch.Tensor) or leaf.is_meta, f"{func} touches {leaf.device}"
            return result

    return OnlyMeta


@pytest.fixture(scope="session")
def toy_model():
    """A small model with random weights: 3 classes, L = 2, 96 pixels. What is a law holds for it too."""
    import torch

    from bayesspec.distributions import LatentPrior
    from bayesspec.grid import WavelengthGrid
    from bayesspec.model import StellarModel
    from bayesspec.nn import Encoder, Generator, NoiseNetwork
    from bayesspec.runtime import seeded

    with seeded(5):
        noise = NoiseNetwork(kernel=3, channels=8, hidden=4, initial_scale=0.1)
        torch.nn.init.normal_(noise.heads.weight, std=0.02)
        centres = torch.randn(3, 1, 2) + 0.3 * torch.randn(3, 12, 2)
        return StellarModel(
            WavelengthGrid(4000.0, 9000.0, 96),
            ("hot", "warm", "cool"),
            Encoder(latent_dim=2, size=96, hidden=16, channels=(4, 8)),
            Generator(latent_dim=2, size=96, hidden=16, channels=(8, 4), strides=(4, 4)),
            LatentPrior.from_classes(list(centres.numpy()), [0.3, 0.3, 0.4]),
            noise,
            {"name": "toy"},
        )


@pytest.fixture(scope="session")
def toy_batch(toy_model):
    """Four stars drawn from the toy model, up to three exposures: complete, with gaps, of one arm only."""
    import numpy as np
    import torch

    from bayesspec.distributions import NoiseFlow
    from bayesspec.observation import ObservationBatch
    from bayesspec.runtime import seeded

    n, exposures, size = 4, 3, toy_model.grid.size
    with seeded(6):
        klass = torch.arange(n) % 3
        s = toy_model.generator(toy_model.prior(klass).sample())
        flux = NoiseFlow(s[:, None].expand(-1, exposures, -1), toy_model.noise).sample().numpy()
    mask = np.zeros((n, exposures, size), bool)
    mask[0, 1:] = True
    mask[1, 0, 20:30] = True
    mask[2, 0, 40:] = True
    mask[2, 1, :50] = True
    free = (~mask).mean(-1) < 0.98
    unit = np.ones((n, exposures))
    return ObservationBatch.from_arrays(flux, np.zeros_like(flux), mask, unit, free)
