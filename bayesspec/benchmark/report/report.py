"""The report of a benchmark: tables, figures, and one HTML file with all of them."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from bayesspec import __version__
from bayesspec.benchmark.run import INPUT, Scored
from bayesspec.model import StellarModel

from .examples import close_ups, examples
from .figures import calibration, gap_losses, latent_space, loss_against_loss, method_styles, noise_levels
from .page import page
from .tables import AUTOENCODER

__all__ = ["draw_figures", "provenance", "write_report"]

Found = Mapping[str, Scored]


def provenance(model: StellarModel, found: Found, **facts: object) -> dict[str, str]:
    """The origin of the numbers: bundle, versions, seeds, counts."""
    packages = ("torch", "pyro-ppl", "numpy", "scipy", "astropy")
    return {
        "bundle": f"{model.name}, sha256 {model.card.get('sha256', 'none')}",
        "bayesspec": __version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
        **{name: str(value) for name, value in facts.items()},
        **{f"set {name}": f"{len(s.data)} spectra, {s.data.fingerprint[:16]}" for name, s in found.items()},
    }


def draw_figures(model: StellarModel, found: Found, ours: Sequence[str]) -> dict[str, tuple[Figure, str]]:
    """All figures that are possible with the available sets, with captions, by name.

    Arguments:
        model: The bundle.
        found: From `run_benchmark`.
        ours: The bundle's methods; the first of them was run on every set.
    """
    method = ours[0]
    every = [name for scored in found.values() for name in scored.scores]
    styles = method_styles(list(dict.fromkeys(every)), ours)
    others = {name: style for name, style in styles.items() if name not in ours[1:]}
    figures: dict[str, tuple[Figure, str]] = {}
    if "plain" in found:
        plain = found["plain"]
        chosen = [method, *_rivals(plain, ours)]
        figures["latents"] = (
            latent_space(model, plain, method),
            "Latents of training stars (pale), and of test stars from noisy spectra. As figure 5.",
        )
        figures["examples"] = (examples(plain, method), "A test star of each class. As figures 7 and 8.")
        for k, rival in enumerate(chosen[1:], start=1):
            title = f"Losses of {method} and {rival}, star by star. As figures 9 and 15."
            figures[f"losses-{k}"] = loss_against_loss(plain, method, rival), title
        closer = {name: styles[name] for name in chosen[:4]}
        figures["close-ups"] = close_ups(plain, closer), "Two stars closer. As figures 11 and 12."
    if "interval" in found:
        title = "The same with an interval removed, shaded. As figures 13 and 14."
        figures["examples-gap"] = examples(found["interval"], method), title
    if "gaps" in found:
        title = "Loss over the whole spectrum with a gap; band: 95 % of the median. As figure 6."
        figures["gaps"] = gap_losses(found["gaps"], others), title
    if "der_snr" in found:
        title = "Loss and DER_SNR after denoising, by the noise of the input. As figure 10."
        figures["noise"] = noise_levels(found["der_snr"], others), title
    for name in ours:
        if any("coverage" in scored.scores.get(name, {}) for scored in found.values()):
            figures["calibration"] = (
                calibration(found, name),
                f"Coverage of the intervals of {name}, all pixels and classes together.",
            )
    return figures


def write_report(
    out: Path,
    tables: Mapping[str, Table],
    figures: Mapping[str, tuple[Figure, str]],
    facts: Mapping[str, str],
    ours: str,
) -> Path:
    """Write `report.html`, the tables as ECSV and the figures as PNG.

    Arguments:
        out: Folder.
        tables: From `all_tables`.
        figures: From `draw_figures`.
        facts: From `provenance`.
        ours: The method that was run on every set.

    Returns:
        The report.
    """
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write(out / "tables" / f"{name}.ecsv", overwrite=True)
    images = {}
    for name, (figure, caption) in figures.items():
        memory = io.BytesIO()
        figure.savefig(memory, format="png", facecolor="white")
        (out / "figures" / f"{name}.png").write_bytes(memory.getvalue())
        images[name] = (base64.b64encode(memory.getvalue()).decode(), caption)
    path = out / "report.html"
    path.write_text(page(tables, images, facts, ours), encoding="utf-8")
    return path


def _rivals(plain: Scored, ours: Sequence[str]) -> list[str]:
    """Three opponents: the paper's, and the two others that are best on complete spectra."""
    loss = {m: float(np.median(s["loss"])) for m, s in plain.scores.items() if m not in (INPUT, *ours)}
    order = sorted(loss, key=lambda name: (AUTOENCODER not in name.lower(), loss[name]))
    return order[:3]
