"""The laws that every distribution of the package obeys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from bayesspec.distributions import ClassKDE, NoiseFlow, RobustNoiseFlow, SharedDiscrepancy

F64 = torch.float64
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, F64: {"rtol": 1e-10, "atol": 1e-10}}


@dataclass
class Case:
    """A distribution by its arguments, and which of them carry the batch or a gradient."""

    family: Callable
    arguments: dict
    batched: tuple[str, ...]
    differentiable: tuple[str, ...]
    shape: tuple[tuple[int, ...], tuple[int, ...]] = field(default=((), ()))

    def build(self, dtype: torch.dtype = F64, **changed: Tensor) -> dist.TorchDistribution:
        """The distribution, in one precision, with some arguments changed."""
        arguments = {}
        for name, value in (self.arguments | changed).items():
            floating = isinstance(value, nn.Module) or value.is_floating_point()
            arguments[name] = value.to(dtype) if floating else value
        return self.family(**arguments, validate_args=True)


def flow_case(network: Callable, masked: bool) -> Case:
    arguments = {
        "loc": torch.randn(2, 3, 6, dtype=F64),
        "network": network(kernel=2),
        "scale": torch.rand(2, 3, dtype=F64) + 0.5,
    }
    if masked:
        observed = torch.ones(2, 3, 6, dtype=torch.bool)
        observed[0, 1, 4] = observed[1, 2, 0] = observed[1, 0, 3:6] = False
        arguments["observed"] = observed
    batched = tuple(name for name in arguments if name != "network")
    return Case(NoiseFlow, arguments, batched, ("loc", "scale"), ((2, 3), (6,)))


def robust_case(robust_network: Callable, masked: bool) -> Case:
    flow = flow_case(lambda kernel: robust_network(6, kernel), masked)
    widths = {"noise_std": 0.3, "discrepancy": 0.1}
    if not masked:
        del widths["discrepancy"]
    arguments = flow.arguments | {
        name: torch.rand(2, 3, 6, dtype=F64) + least for name, least in widths.items()
    }
    batched = (*flow.batched, *widths)
    return Case(RobustNoiseFlow, arguments, batched, ("loc", "scale", *widths), flow.shape)


KINDS = (0.5, 1.0, 20.0)


def shares(*batch: int) -> Tensor:
    """Of these widths, (..., 3, 6)."""
    return (torch.rand(*batch, 3, 6, dtype=F64) + 0.1).softmax(-2)


def widths_case(robust_network: Callable) -> Case:
    """A discrepancy of several widths."""
    robust = robust_case(robust_network, masked=True)
    arguments = robust.arguments | {"shares": shares(2, 3)}
    batched, differentiable = (*robust.batched, "shares"), (*robust.differentiable, "shares")
    return Case(partial(RobustNoiseFlow, kinds=KINDS), arguments, batched, differentiable, robust.shape)


def share_discrepancy(validate_args: bool, **arguments: Tensor) -> SharedDiscrepancy:
    flow = RobustNoiseFlow(**arguments, kinds=KINDS, validate_args=validate_args)
    return SharedDiscrepancy(flow, validate_args=validate_args)


def shared_case(robust_network: Callable, masked: bool) -> Case:
    """Two exposures of six stars."""
    arguments = {
        "loc": torch.randn(2, 3, 1, 6, dtype=F64),
        "network": robust_network(6, 2),
        "noise_std": torch.rand(2, 3, 2, 6, dtype=F64) + 0.3,
        "scale": torch.rand(2, 3, 2, dtype=F64) + 0.5,
        "discrepancy": torch.rand(2, 3, 1, 6, dtype=F64) + 0.1,
        "shares": shares(2, 3, 1),
    }
    differentiable = tuple(name for name in arguments if name != "network")
    if masked:
        observed = torch.ones(2, 3, 2, 6, dtype=torch.bool)
        observed[0, 1, :, 4] = observed[1, 2, 0, 0] = observed[1, 0, 1] = False
        arguments["observed"] = observed
    batched = tuple(name for name in arguments if name != "network")
    return Case(share_discrepancy, arguments, batched, differentiable, ((2, 3), (2, 6)))


def kde_case(isotropic: bool, shaped: bool = False) -> Case:
    weights = torch.rand(4, 5, dtype=F64)
    weights[1, 2:] = weights[3, 4:] = 0.0  # padding
    bandwidth = torch.rand(4, dtype=F64) + 0.3
    arguments = {
        "klass": torch.tensor([[3, 0, 1], [1, 2, 2]]),
        "centres": torch.randn(4, 5, 3, dtype=F64),
        "log_weights": (weights / weights.sum(-1, keepdim=True)).log(),
        "bandwidth": bandwidth
        if isotropic
        else bandwidth[:, None] * torch.tensor([0.5, 1.0, 2.0], dtype=F64),
    }
    if shaped:
        factor = 0.3 * torch.randn(4, 5, 3, 3, dtype=F64)
        arguments["precision_tril"] = factor.tril(-1) + torch.diag_embed(torch.rand(4, 5, 3, dtype=F64) + 0.5)
    return Case(ClassKDE, arguments, ("klass",), ("centres", "bandwidth"), ((2, 3), (3,)))


@pytest.fixture(
    params=[
        "flow",
        "flow-masked",
        "robust",
        "robust-masked",
        "robust-widths",
        "shared",
        "shared-masked",
        "kde",
        "kde-anisotropic",
        "kde-shaped",
    ]
)
def case(request: pytest.FixtureRequest, network: Callable, robust_network: Callable) -> Case:
    if request.param == "robust-widths":
        return widths_case(robust_network)
    if request.param.startswith("shared"):
        return shared_case(robust_network, masked=request.param.endswith("masked"))
    if request.param.startswith("robust"):
        return robust_case(robust_network, masked=request.param.endswith("masked"))
    if request.param.startswith("flow"):
        return flow_case(network, masked=request.param.endswith("masked"))
    return kde_case(request.param != "kde-anisotropic", shaped=request.param == "kde-shaped")


@pytest.fixture(params=["flow", "robust", "shared", "kde", "kde-shaped"])
def planar(
    request: pytest.FixtureRequest, network: Callable, robust_network: Callable
) -> dist.TorchDistribution:
    """One distribution over the plane."""
    if request.param == "robust":
        loc, noise_std, discrepancy = torch.tensor([[0.3, -0.2], [0.6, 0.4], [0.5, 0.7]], dtype=F64)
        return RobustNoiseFlow(loc, robust_network(2, kernel=1), noise_std, 1.3, discrepancy)
    if request.param == "shared":
        loc, discrepancy, *noise_std = torch.tensor([0.3, 0.5, 0.6, 0.3], dtype=F64).reshape(4, 1, 1)
        share = torch.tensor([[0.3], [0.68], [0.02]], dtype=F64)
        arguments = loc, robust_network(1, kernel=1), torch.cat(noise_std), torch.tensor([1.3, 0.8]).to(loc)
        return SharedDiscrepancy(RobustNoiseFlow(*arguments, discrepancy, None, share, (0.5, 1.0, 3.0)))
    if request.param == "flow":
        loc = torch.tensor([0.3, -0.2], dtype=F64)
        return NoiseFlow(loc, network(kernel=1), scale=torch.tensor(1.3, dtype=F64))
    centres = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[-1.0, 0.5], [1.0, -0.5]]], dtype=F64)
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=F64)
    bandwidth = torch.tensor([1.0, 0.4], dtype=F64)
    factor = torch.tensor([[1.0, 0.0], [0.4, 0.8]], dtype=F64).expand(2, 2, 2, 2)
    shaped = factor if request.param == "kde-shaped" else None
    return ClassKDE(torch.tensor(1), centres, weights.log(), bandwidth, shaped)


def random_part(d: dist.TorchDistribution) -> Tensor:
    """Where draws are random: everywhere, but at pixels that a flow does not observe."""
    observed = getattr(getattr(d, "flow", d), "observed", None)
    return torch.ones(d.shape(), dtype=torch.bool) if observed is None else observed


@pytest.mark.parametrize("sample_shape", [(), (4,), (5, 4)])
def test_shapes(case: Case, sample_shape: tuple[int, ...]) -> None:
    """Samples are sample + batch + event shaped, their log-densities sample + batch."""
    d, (batch, event) = case.build(), case.shape
    value = d.sample(sample_shape)

    assert (d.batch_shape, d.event_shape) == (batch, event)
    assert d.event_dim == d.support.event_dim == len(event)
    assert value.shape == d.shape(torch.Size(sample_shape)) == (*sample_shape, *batch, *event)
    assert d.log_prob(value).shape == (*sample_shape, *batch)
    assert not d.has_enumerate_support


def test_log_prob_is_elementwise(case: Case) -> None:
    """The log-density of a batch is that of each value alone; values broadcast against the batch."""
    d = case.build()
    value = d.sample((4,))

    alone = torch.stack([d.log_prob(v) for v in value])
    torch.testing.assert_close(d.log_prob(value), alone)

    one = value[0, 0, 0]
    torch.testing.assert_close(d.log_prob(one), d.log_prob(one.expand(d.shape())))
    column = value[:, :1, :1]
    torch.testing.assert_close(d.log_prob(column), d.log_prob(column.expand(value.shape)))


def test_expand(case: Case) -> None:
    """Expanding repeats the log-density, draws independent samples, and never shrinks."""
    d = case.build()
    wide = d.expand((5, *d.batch_shape))
    value = d.sample()

    assert wide.batch_shape == (5, *d.batch_shape)
    torch.testing.assert_close(wide.log_prob(value), d.log_prob(value).expand(wide.batch_shape))
    torch.testing.assert_close(d.expand_by((5,)).log_prob(value), wide.log_prob(value))

    drawn = wide.sample()
    assert drawn.shape == wide.shape()
    assert not torch.isclose(drawn[0], drawn[1])[random_part(d)].any()
    with pytest.raises((ValueError, RuntimeError), match="expand"):
        d.expand((1, 1))


def test_mask_and_to_event(case: Case) -> None:
    """Pyro's mask zeroes log-densities; to_event sums them."""
    d = case.build()
    value, mask = d.sample(), torch.tensor([True, False, True])
    log_prob = d.log_prob(value)

    torch.testing.assert_close(d.mask(mask).log_prob(value), log_prob * mask)
    torch.testing.assert_close(d.to_event(1).log_prob(value), log_prob.sum(-1))
    assert d.to_event(2).event_shape == d.shape()


def test_gradients(case: Case) -> None:
    """Gradients and second derivatives equal finite differences in float64."""
    inputs = [case.build().sample()] + [case.arguments[name] for name in case.differentiable]
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]

    def log_prob(value: Tensor, *changed: Tensor) -> Tensor:
        return case.build(**dict(zip(case.differentiable, changed, strict=True))).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, inputs, fast_mode=len(case.shape[1]) > 1)  # of many, for time
    assert torch.autograd.gradgradcheck(
        lambda value: case.build().log_prob(value), inputs[:1], fast_mode=True
    )


def test_function_transforms(case: Case) -> None:
    """torch.func's vectorised gradient equals autograd's."""
    d = case.build()
    d._validate_args = False  # validation branches on data
    value = d.sample((4,)).requires_grad_()

    (expected,) = torch.autograd.grad(d.log_prob(value).sum(), value)
    found = torch.func.vmap(torch.func.grad(lambda v: d.log_prob(v).sum()))(value.detach())
    torch.testing.assert_close(found, expected)


def test_integrates_to_one(planar: dist.TorchDistribution) -> None:
    """A density over the plane integrates to one."""
    axis = torch.linspace(-12, 12, 101, dtype=F64)  # the narrowest part is half again as wide as a step
    value = torch.cartesian_prod(axis, axis).reshape(-1, *planar.shape())
    mass = planar.log_prob(value).exp().sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass.item(), 1.0, rtol=1e-4, atol=0.0)


def test_samples_follow_density(planar: dist.TorchDistribution, p_value: Callable) -> None:
    """Around a tenth of the samples the others are as dense as the density says; it is no accident.

    The discs about them that are empty of the others have areas that are exponentially distributed.
    """
    some, others = planar.sample((50_000,)).split([5_000, 45_000])
    distance, _ = cKDTree(others.flatten(1)).query(some.flatten(1))
    area = math.pi * torch.from_numpy(distance).square()
    assert p_value(len(others) * planar.log_prob(some).exp() * area, "expon") > 1e-4


def test_permutation(case: Case) -> None:
    """A permuted batch has permuted log-densities."""
    d, order = case.build(), torch.tensor([2, 0, 1])
    value = d.sample()
    permuted = case.build(**{name: case.arguments[name][:, order] for name in case.batched})
    torch.testing.assert_close(permuted.log_prob(value[:, order]), d.log_prob(value)[:, order])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_precision(case: Case, dtype: torch.dtype) -> None:
    """Samples and log-densities have the arguments' dtype and agree with float64."""
    d = case.build(dtype)
    value = d.sample()
    log_prob = d.log_prob(value)

    assert value.dtype == log_prob.dtype == dtype
    torch.testing.assert_close(log_prob.double(), case.build().log_prob(value.double()), **TOLERANCE[dtype])


def test_seed(case: Case) -> None:
    """A seed gives the same samples, another one others."""
    draws = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(case.build().sample())
    assert torch.equal(draws[0], draws[1])
    assert not torch.isclose(draws[0], draws[2])[random_part(case.build())].any()


def test_values_are_validated(case: Case) -> None:
    """A value of the wrong shape or with a NaN is refused, by an expanded distribution, too."""
    d = case.build()
    value = d.sample()
    with pytest.raises(ValueError, match=r"value|event_shape"):
        d.log_prob(value[..., :-1])
    with pytest.raises(ValueError, match=r"[Vv]alue"):
        d.log_prob(value[:, [0, 1]])
    value[0, 0, 1] = torch.nan
    for one in (d, d.expand((5, *d.batch_shape))):
        with pytest.raises(ValueError, match=r"[Vv]alue"):
            one.log_prob(value)


def test_plates(case: Case) -> None:
    """In Pyro's plates the log-density of a trace is that of the distribution."""
    d = case.build()

    def model(value: Tensor | None = None) -> Tensor:
        with pyro.plate("column", 3, dim=-1), pyro.plate("row", 2, dim=-2):
            return pyro.sample("value", d, obs=value)

    value = pyro.poutine.trace(model).get_trace().nodes["value"]["value"]
    trace = pyro.poutine.trace(model).get_trace(value)
    torch.testing.assert_close(trace.log_prob_sum(), d.log_prob(value).sum())


def test_one_device(case: Case, only_meta: type) -> None:
    """Densities, gradients and samples touch no tensor on another device than the arguments'.

    The meta device stands for an accelerator: like it, it cannot branch on data, and unlike fake CUDA tensors
    it has indexing and autograd in a torch that is built without CUDA.
    """
    arguments = {name: value.to("meta") for name, value in case.arguments.items()}
    inputs = [arguments[name].requires_grad_() for name in case.differentiable]

    with only_meta():
        d = case.family(**arguments, validate_args=False)
        value = d.sample((4,)).requires_grad_()
        log_prob = d.log_prob(value)
        gradients = torch.autograd.grad(log_prob.sum(), [value, *inputs])

    assert log_prob.shape == (4, *case.shape[0])
    assert [g.shape for g in gradients] == [tensor.shape for tensor in (value, *inputs)]
