"""What every test shares: where the development spectra are, and which third-party warnings are known."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from hypothesis import settings

from bayesspec.grid import WavelengthGrid
from bayesspec.results.result import Result

settings.register_profile("bayesspec", deadline=None)  # a busy machine is no failure
settings.load_profile("bayesspec")

SHARED = Path(
    os.environ.get("BAYESSPEC_DATA", Path(__file__).parents[1].parent / "shared" / "data")
).resolve()


def shared_files(pattern: str) -> list[Path]:
    """Development spectra that match, for parametrising; empty where they are absent."""
    return sorted(SHARED.glob(pattern))


def pytest_configure() -> None:
    """Where pytest has a process for each core, each computes on one thread, and so do its subprocesses."""
    if "PYTEST_XDIST_WORKER" in os.environ and find_spec("torch"):
        import torch
        from threadpoolctl import threadpool_limits

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        threadpool_limits(1)  # numpy's, which has been loaded already; scikit-learn needs this package


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What is random without a seed of its own is the same in each run, whichever tests went before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if find_spec("torch"):
        import torch

        torch.manual_seed(0)


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
            "free_scale": ~mask.all(-1),
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

    from bayesspec.batch import ObservationBatch
    from bayesspec.distributions import NoiseFlow
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


@pytest.fixture(scope="session")
def toy_stellar(toy_model):
    """The toy model with a residual term of four smooth patterns, a passage, noise that knows the ivar."""
    import torch

    from bayesspec.model import StellarModel
    from bayesspec.nn import RobustNoiseNetwork
    from bayesspec.runtime import seeded
    from bayesspec.training.passage import PassageRecipe, make_passage

    with seeded(7):
        noise = RobustNoiseNetwork(pixels=96, kernel=3, channels=8, hidden=4, components=3)
        torch.nn.init.normal_(noise.heads.weight, std=0.02)
        residual = _smooth_residual(toy_model.latent_dim)
        residual.factor += 0.1 * torch.randn_like(residual.factor)
        residual.offset.normal_(std=0.1)
        residual.slope.normal_(std=0.03)
        residual.log_bands.normal_(std=0.3)
    recipe = PassageRecipe(velocity=500.0, dust=0.03, arms=0.02, calibration=0.02, modes=1)
    passage = make_passage(toy_model.grid, recipe)  # of which a pixel is 2,600 km/s wide
    parts = toy_model.encoder, toy_model.generator, toy_model.prior, noise, {"name": "toy stellar"}
    return StellarModel(toy_model.grid, toy_model.classes, *parts, residual=residual, passage=passage)


@pytest.fixture(scope="session")
def toy_stellar_batch(toy_stellar):
    """Four stars drawn from `toy_stellar`: complete, with a gap, of one arm, and of three exposures."""
    return _drawn_stars(toy_stellar, seed=8)


@pytest.fixture(scope="session")
def gaussian_stellar(toy_model):
    """A model with a residual term whose posterior is known on paper, given the size h; double precision.

    G is linear, p(z) one Gaussian, and the noise is Gaussian, of the given ivar, pixel by pixel.
    """
    import torch

    from bayesspec.distributions import LatentPrior
    from bayesspec.model import StellarModel
    from bayesspec.nn import RobustNoiseNetwork
    from bayesspec.runtime import seeded

    class LinearGenerator(torch.nn.Module):
        latent_dim = 2

        def __init__(self) -> None:
            super().__init__()
            x = torch.linspace(0, 1, 96)
            self.register_buffer("slope", torch.stack([(5 * x).sin(), (3 * x).cos()]))

        def forward(self, z):
            return 1 + z @ self.slope

        def jacobian(self, z):
            return self(z), self.slope.T.expand(*z.shape[:-1], -1, -1)

    noise = RobustNoiseNetwork(pixels=96, kernel=3, channels=8, hidden=4, components=1)
    torch.nn.init.zeros_(noise.log_scales)
    with seeded(9):
        residual = _smooth_residual(latent_dim=2)
    prior = LatentPrior.from_classes([np.array([[0.1, -0.2]])] * 3, [0.5] * 3)
    parts = toy_model.encoder, LinearGenerator(), prior, noise, {"name": "gaussian"}
    return StellarModel(toy_model.grid, toy_model.classes, *parts, residual=residual).double()


@pytest.fixture(scope="session")
def gaussian_stellar_batch(gaussian_stellar):
    """Four stars drawn from `gaussian_stellar`: complete, with a gap, of one arm, and of three exposures."""
    return _drawn_stars(gaussian_stellar, seed=10)


def _smooth_residual(latent_dim):
    """A residual term of smooth patterns, the same for all z, as large as the noise of the toy stars."""
    import torch

    from bayesspec.nn import ResidualTerm

    residual = ResidualTerm(latent_dim, size=96, patterns=6, components=4, anchors=3, bands=5)
    waves = torch.randn(6, 12) @ torch.cos(torch.arange(12)[:, None] * torch.linspace(0, torch.pi, 96))
    residual.basis.copy_(torch.linalg.qr(waves.T).Q.T)
    residual.anchors.normal_()
    residual.width.fill_(0.5)
    turned = torch.linalg.qr(torch.randn(6, 4)).Q
    residual.factor.copy_(turned * torch.linspace(0.0, -1.0, 4).exp())
    residual.log_discrepancy.fill_(-3.5)
    return residual


def first_exposures(batch, count=1):
    """The same stars with so many exposures: what is quick with one takes long beside a star of several."""
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    return batch.with_tensors(**{name: getattr(batch, name)[:, :count] for name in names})


def _drawn_stars(model, seed):
    import torch

    from bayesspec.batch import ObservationBatch
    from bayesspec.distributions import RobustNoiseFlow
    from bayesspec.runtime import seeded

    n, exposures, size = 4, 3, model.grid.size
    mask = torch.zeros(n, exposures, size, dtype=torch.bool)
    mask[:3, 1:] = True
    mask[1, 0, 20:30] = True
    mask[2, 0, 40:] = True
    mask[3, 0, 50] = True
    noise_std = torch.tensor([0.05, 0.08, 0.04])[:, None] * torch.linspace(1.5, 0.8, size)
    with seeded(seed):
        z = model.prior(torch.arange(n) % 3).sample()
        x = z.new_zeros(n, 0)
        if model.passage is not None:
            v, q = (
                prior().sample((n,)) for prior in (model.passage.velocity_prior, model.passage.factor_prior)
            )
            x = model.passage.latents(v, q).to(z)
        latents = torch.cat([z, x, torch.randn(n, model.residual_dim, dtype=z.dtype)], -1)
        s = model.spectrum(latents)
        star = s + model.discrepancy(latents) * torch.randn_like(s)
        flow = RobustNoiseFlow(star[:, None], model.noise, noise_std.to(z), observed=~mask)
        flux = flow.sample().numpy()
    free = (~mask).double().mean(-1) < 0.98
    ivar = noise_std.square().reciprocal().expand(n, -1, -1)
    arrays = flux, ivar.numpy(), mask.numpy(), np.ones((n, exposures)), free.numpy()
    return ObservationBatch.from_arrays(*arrays, dtype=z.dtype)


@pytest.fixture
def no_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise flows without their Cauchy part: what is Gaussian on paper is so exactly."""
    from bayesspec.distributions import noise_flow, spectrum_noise

    for module in (noise_flow, spectrum_noise):
        monkeypatch.setattr(module, "LOG_HIT", -math.inf)
        monkeypatch.setattr(module, "LOG_USUAL", 0.0)
    monkeypatch.setattr(noise_flow, "HIT_SHARE", 0.0)


@pytest.fixture
def many_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise flows with one hit in two pixels, hardly wider than the usual noise: whatever is wrong shows."""
    from bayesspec.distributions import noise_flow, pixel_mixture, robust_flow, spectrum_noise

    values = {"HIT_SHARE": 0.5, "LOG_HIT": -math.log(2), "LOG_USUAL": -math.log(2), "HIT_WIDTH": 1.5}
    for module in (noise_flow, pixel_mixture, robust_flow, spectrum_noise):
        for name in values.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, values[name])
