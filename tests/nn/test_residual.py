"""Laws of the residual term: its derivatives, its bounds, and the size that multiplies all of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bayesspec.nn import ResidualTerm
from bayesspec.nn.residual import FARTHEST, LOG_RANGE, WIDTHS

F64 = torch.float64
L, R, D, P, T = 3, 4, 50, 6, 3


@pytest.fixture
def term() -> ResidualTerm:
    """A residual term in float64 that uses every buffer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        term = ResidualTerm(L, D, P, R, anchors=5, bands=6, knots=T).double()
        for name in ("basis", "anchors", "offset", "slope", "factor", "log_discrepancy", "log_bands"):
            getattr(term, name).normal_()
        yield term


@pytest.mark.parametrize("batch", [(), (7,), (2, 3), (0,)])
def test_shapes(term: ResidualTerm, batch: tuple[int, ...]) -> None:
    """Any batch, empty included."""
    z, hw = torch.randn(*batch, L, dtype=F64), torch.randn(*batch, term.dim, dtype=F64)
    assert term.dim == T + 2 + R
    assert term(z, hw).shape == term.discrepancy(z, hw).shape == (*batch, D)
    assert term.local_offset(z).shape == (*batch, P)
    assert term.local_factor(z).shape == (*batch, P, R)
    assert term.jacobian(z, hw).shape == (*batch, D, T + 2 + R)
    assert term.jacobian_z(z, hw).shape == (*batch, D, L)
    assert term.growth(hw[..., : T + 2]).shape == (*batch, D, T + 2)


def test_term_is_what_its_formula_says(term: ResidualTerm) -> None:
    """B m + S (B Lambda w), each interpolated between the anchors."""
    z, hw = torch.randn(5, L, dtype=F64), torch.randn(5, term.dim, dtype=F64)
    h, w = term.split(hw)
    scattered = (term.local_factor(z) @ w[..., None])[..., 0] @ term.basis
    expected = term.local_offset(z) @ term.basis + term.size(h) * scattered
    torch.testing.assert_close(term(z, hw), expected)
    torch.testing.assert_close((term.patterns_of(z) @ w[..., None])[..., 0], scattered)


def test_anchors_share_what_lies_between_them(term: ResidualTerm) -> None:
    """Shares are positive and sum to one; at an anchor, far from the others, all is as the anchor has it."""
    assert (term.near(torch.randn(50, L, dtype=F64)) > 0).all()
    torch.testing.assert_close(term.near(torch.randn(50, L, dtype=F64)).sum(-1), torch.ones(50, dtype=F64))
    term.anchors *= 1e4
    torch.testing.assert_close(term.near(term.anchors), torch.eye(5, dtype=F64))
    torch.testing.assert_close(term.local_offset(term.anchors), term.offset)
    torch.testing.assert_close(term.local_factor(term.anchors), term.factor)


def test_shares_are_those_of_the_kind(term: ResidualTerm) -> None:
    """At an anchor, far from the others, they are its kind's; anywhere they sum to one."""
    term.share.copy_(torch.rand(term.share.shape, dtype=F64))
    term.share /= term.share.sum(1, keepdim=True)
    term.kind.copy_(torch.tensor([0, 3, 3, 9, 0]))
    between = term.shares(torch.randn(2, 7, L, dtype=F64))
    assert between.shape == (2, 7, len(WIDTHS), D)
    torch.testing.assert_close(between.sum(-2), torch.ones(2, 7, D, dtype=F64))
    term.anchors *= 1e4
    torch.testing.assert_close(term.shares(term.anchors), term.share[term.kind])


def test_mean_is_linear_around_an_anchor(term: ResidualTerm) -> None:
    """The mean grows by the anchor's slopes, as far as its say and the widths reach."""
    term.anchors *= 1e4
    step = 1e-4 * torch.randn(5, L, dtype=F64)
    moved = term.local_offset(term.anchors + step) - term.offset
    torch.testing.assert_close(moved, (step[:, None] @ term.slope)[:, 0], rtol=1e-5, atol=1e-9)
    far = term.anchors + 1e3 * torch.nn.functional.normalize(step, dim=-1)
    reach = (term.local_offset(far) - term.offset) / (1e-3 * (far - term.anchors)[:, None] @ term.slope)[:, 0]
    torch.testing.assert_close(reach, torch.ones_like(reach) * FARTHEST * term.width, rtol=1e-3, atol=0)


def test_jacobian_is_that_of_autograd(term: ResidualTerm) -> None:
    """Derivatives by z, h and w of every star, far from all anchors too, small and large sizes alike."""
    z, hw = torch.randn(5, L, dtype=F64), torch.randn(5, term.dim, dtype=F64)
    hw[3:, :T] = torch.tensor([[-9.0], [9.0]])
    z[4] += 30.0
    by_z, by_hw = torch.func.vmap(torch.func.jacrev(term, argnums=(0, 1)))(z, hw)
    torch.testing.assert_close(term.jacobian(z, hw), by_hw)
    torch.testing.assert_close(term.jacobian_z(z, hw), by_z)


def test_growth_is_the_slope_of_the_log_size(term: ResidualTerm) -> None:
    """For any h; at the usual size the spreads themselves, those of the knots as far as each reaches."""
    h = 5 * torch.randn(81, T + 2, dtype=F64)
    h[40] = 0
    slope = torch.func.vmap(torch.func.jacrev(lambda h: term.size(h).log()))(h)
    torch.testing.assert_close(term.growth(h), slope)
    torch.testing.assert_close(term.growth(h)[40, :, -1], term.spread.expand(D))
    torch.testing.assert_close(term.growth(h)[40, :, 1:-1], term.local_spread * term.between.T)


def test_sizes_along_the_spectrum(term: ResidualTerm) -> None:
    """At a knot the size is the knot's; without knots of its own a star has one size, that of its number."""
    h = torch.randn(81, T + 2, dtype=F64)
    at = torch.linspace(0, D - 1, T).round().long()
    torch.testing.assert_close(term.size(h)[:, at[[0, -1]]], term.log_sizes(h)[:, [0, -1]].exp())
    h[:, :-1] = 0
    torch.testing.assert_close(term.size(h), term.log_size(h[:, -1:]).exp().expand(81, D))
    assert (term.log_sizes(1e3 * h).abs() <= LOG_RANGE).all()
    torch.testing.assert_close(term.log_sizes(-h), -term.log_sizes(h))


def test_mean_size_is_standard_normal(term: ResidualTerm) -> None:
    """Over the prior."""
    found = term.mean_size(torch.randn(20_000, T + 2, dtype=F64))
    assert abs(found.mean()) < 0.03
    assert abs(found.std() - 1) < 0.03


def test_size_multiplies_all_residuals(term: ResidualTerm) -> None:
    """What deviates from the usual, and the discrepancy, by the same factor in every pixel."""
    z, hw = torch.randn(5, L, dtype=F64), torch.randn(5, term.dim, dtype=F64)
    usual, none = hw.clone(), torch.zeros_like(hw)
    usual[:, : T + 2] = 0
    factor = term.size(hw[:, : T + 2])
    torch.testing.assert_close(term.discrepancy(z, hw), factor * term.discrepancy(z, usual))
    mean = term(z, none)
    torch.testing.assert_close(term(z, hw) - mean, factor * (term(z, usual) - mean))


def test_residual_is_linear_in_w(term: ResidualTerm) -> None:
    """Twice the w, twice as far from the mean; w = 0 leaves the mean, of whatever size."""
    z, hw = torch.randn(5, L, dtype=F64), torch.randn(5, term.dim, dtype=F64)
    h, w = term.split(hw)
    mean = term(z, torch.cat([h, 0 * w], dim=-1))
    torch.testing.assert_close(mean, term.local_offset(z) @ term.basis)
    torch.testing.assert_close(term(z, torch.cat([h, 2 * w], dim=-1)) - mean, 2 * (term(z, hw) - mean))


@pytest.mark.parametrize("far", [1.0, 1e2, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_latent_breaks_it(term: ResidualTerm, far: float, dtype: torch.dtype) -> None:
    """However far z and h are, mean, factor and discrepancy stay within reach, and gradients finite."""
    term = term.to(dtype)
    z = (far * torch.randn(200, L, dtype=dtype)).requires_grad_()
    hw = (far * torch.randn(200, term.dim, dtype=dtype)).requires_grad_()
    assert (term.away(z).norm(dim=-1) <= FARTHEST * term.width + 1e-5).all()
    most = term.offset.abs().amax(0) + FARTHEST * term.width * term.slope.norm(dim=1).amax(0)
    assert (term.local_offset(z).abs() <= most + 1e-5).all()
    assert (term.local_factor(z) >= term.factor.amin(0) - 1e-5).all()
    discrepancy, (h, w) = term.discrepancy(z, hw), term.split(hw)
    assert (discrepancy > 0).all()
    assert (term.size(h).log().abs() <= LOG_RANGE + 1e-5).all()
    every = term(z, torch.cat([h, w / far], dim=-1)).sum() + discrepancy.log().sum()
    for gradient in torch.autograd.grad(every, (z, hw)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("bands", "size"), [(1, 20), (2, 20), (6, 50), (12, 2048)])
def test_interpolation_is_linear(bands: int, size: int) -> None:
    """Hats are not negative, sum to one, and reproduce a straight line through the knots."""
    hats = ResidualTerm(L, size, P, R, bands=bands).interpolation
    assert (hats >= 0).all()
    torch.testing.assert_close(hats.sum(0), torch.ones(size))
    line = torch.arange(bands, dtype=torch.float32) @ hats
    torch.testing.assert_close(line, torch.linspace(0, bands - 1, size))


def test_starts_the_same_for_all_stars() -> None:
    """A new term has one discrepancy for every z, and no pattern."""
    term, z = ResidualTerm(L, D, P, R), torch.randn(7, L)
    hw = torch.randn(7, term.dim)
    assert (term(z, hw) == 0).all()
    h, w = term.split(hw)
    usual = torch.cat([0 * h, w], dim=-1)
    torch.testing.assert_close(term.discrepancy(z, usual), torch.full((7, D), math.exp(-4.0)))


def test_its_config_builds_it(term: ResidualTerm) -> None:
    """A term of the same config takes its state and says the same."""
    twin = ResidualTerm(**term.config).double()
    twin.load_state_dict(term.state_dict())
    z, hw = torch.randn(5, L, dtype=F64), torch.randn(5, term.dim, dtype=F64)
    assert torch.equal(twin(z, hw), term(z, hw))
    assert torch.equal(twin.discrepancy(z, hw), term.discrepancy(z, hw))


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(term: ResidualTerm, only_meta) -> None:
    """Term, sizes and derivatives touch no tensor but those of the device they are on."""
    term = copy.deepcopy(term).to("meta")
    z, hw = (torch.zeros(5, size, dtype=F64, device="meta") for size in (L, term.dim))
    with only_meta():
        assert term(z, hw).shape == term.discrepancy(z, hw).shape == (5, D)
        assert term.jacobian(z, hw).shape == (5, D, term.dim)
        assert term.jacobian_z(z, hw).shape == (5, D, L)
