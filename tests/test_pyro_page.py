"""The page for users of Pyro runs from top to bottom, and agrees with the package's own engines."""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import pytest
import torch

from bayesspec.inference.convergence import import_arviz
from bayesspec.inference.density import log_joint
from bayesspec.runtime import own_state

PAGE = Path(__file__).parents[1] / "docs" / "pyro.md"

SHORTER = {
    r"num_samples=20\)": "num_samples=2)",
    r"num_samples=400, warmup_steps=150": "num_samples=12, warmup_steps=4",
    r"max_tree_depth=5": "max_tree_depth=3",
    r"uncertainty=True\)": "uncertainty=True, draws=128, rounds=2)",
    r"steps=400": "steps=20",
    r"num_samples=100": "num_samples=20",
}
"""What the page runs for minutes, and what suffices to see that it runs."""


class Page:
    """The blocks of the page, run section by section in one namespace, each section once."""

    def __init__(self, *, short: bool) -> None:
        self.short, self.names = short, {}
        text = PAGE.read_text(encoding="utf-8")
        for pattern, fewer in SHORTER.items() if short else ():
            text, found = re.subn(pattern, fewer, text)
            assert found, f"{pattern} is not on the page"
        if int(import_arviz().__version__.split(".")[0]) >= 1:
            text, found = re.subn(r"from_dict\(posterior=halves\)", 'from_dict({"posterior": halves})', text)
            assert found
        self.left = [(part.split("\n", 1)[0], part) for part in re.split(r"^## ", text, flags=re.M)[1:]]

    def __call__(self, title: str) -> dict:
        """Names after the section of this title, the sections before it run too."""
        assert title in [name for name, _ in self.left] or self.names, title
        while title in [name for name, _ in self.left]:
            name, section = self.left.pop(0)
            with own_state(), pyro.get_param_store().scope():
                pyro.set_rng_seed(0)  # whatever has run before in this process
                for block in re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S):
                    exec(compile(block, f"{PAGE.name}, {name}", "exec"), self.names)
        return self.names


@pytest.fixture(scope="module", params=["short", pytest.param("full", marks=pytest.mark.slow)])
def page(request):
    return Page(short=request.param == "short")


def test_program(page):
    """A star of the class and velocity that were asked for."""
    names = page("The program and its sites")
    assert names["prior"]["flux"].shape[1:] == (1, 2048)
    assert names["prior"]["flux"].isfinite().all()
    assert set(names["drawn"]) == {"C", "z", "v", "q", "w", "y", "flux"}
    assert float(names["drawn"]["v"]) == -20.0
    assert names["batch"].free_index.shape[1] == 1


def test_whitened(page):
    names = page("Why whitened coordinates")
    assert {"log_scale_white", "z_white", "v_white", "q_white", "w_white"} <= set(names["sites"])
    assert names["program"](names["batch"]).isfinite().all()


def test_nuts_agrees_with_importance_sampling(page):
    names = page("NUTS")
    draws, row = names["draws"], names["res"].table[0]
    assert draws["flux"].shape == (12 if page.short else 400, 1, 2048)
    assert draws["flux"].isfinite().all()
    away = (float(draws["v"].mean()) - row["velocity_offset"]) / row["velocity_offset_err"]
    assert abs(away) < (2.0 if page.short else 0.4)  # twelve draws are correlated and few
    assert (names["difference"] ** 2).mean() ** 0.5 < (2.0 if page.short else 0.3)
    if not page.short:
        assert len(names["chain"].diagnostics()["divergences"]["chain 0"]) < 4
        assert 0.7 < float(draws["v"].std()) / row["velocity_offset_err"] < 1.5
        assert names["model"].classes[int(names["probability"].argmax())] == row["class"] == "G"
    assert float(names["probability"].sum()) == pytest.approx(1.0, abs=1e-4)


def test_guides(page):
    """AutoDelta ends above the point of `map`, which sums w out, and AutoNormal has the velocity's error."""
    names = page("The mode, and guides")
    model, batch = names["model"], names["batch"]
    sites = {name: value[0] for name, value in names["point"].items() if name in ("z", "v", "q", "w")}
    with own_state(), torch.no_grad():
        res = names["bayesspec"].denoise(names["star"], model=model, method="map")
        ends = (
            (model.of_sites(sites), names["point"]["log_scale"][:1]),
            (torch.as_tensor(res.latents).float(), torch.as_tensor(res.scale).float().log()),
        )
        found, peak = (float(log_joint(model, batch, *end, "marginal")[0]) for end in ends)
    assert found > peak - (5.0 if page.short else 0.5)
    assert 3.0 < float(names["normal"]["v"].std()) < 30.0
    for draws in (names["normal"], names["laplace"]):
        assert draws["flux"].shape == (20 if page.short else 100, 1, 2048)
        assert draws["flux"].isfinite().all()


def test_known(page):
    names = page("A known velocity, a known class")
    assert (names["fixed"]["v"] == -20.0).all()
    assert names["fixed"]["flux"].isfinite().all()
    assert names["no_dwarf"].class_logits[names["model"].classes.index("WD")] == -torch.inf
    assert torch.tensor(names["losses"]).isfinite().all()


def test_another_prior(page):
    """The catalogue's error is the smaller one; the original model keeps its own prior."""
    names = page("Another prior")
    v = names["informed"]["v"]
    assert abs(float(v.mean()) + 20.0) < (10.0 if page.short else 6.0)  # 40 steps do not converge
    assert 2.0 < float(v.std()) < (15.0 if page.short else 8.0)
    assert float(names["model"].passage.widths[0]) != 300.0
    assert isinstance(names["model"].passage.velocity_prior(), pyro.distributions.StudentT)
    assert torch.tensor(names["losses"]).isfinite().all()
    assert (names["res"].flux > 0).mean() > 0.9


def test_arviz(page):
    names = page("To ArviZ")
    rhat, ess = (getattr(names["az"], what)(names["posterior"]) for what in ("rhat", "ess"))
    for value in (rhat["v"], ess["v"], rhat["z"], ess["z"]):
        assert (value > 0).all()
    if not page.short:
        assert float(rhat["v"].max()) < 1.1
