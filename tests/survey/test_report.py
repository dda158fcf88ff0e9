"""The page of a run: complete in itself, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from bayesspec import denoise_survey
from bayesspec.exceptions import BayesspecError
from bayesspec.survey.browse import open_run
from bayesspec.survey.report import write_report

pytest.importorskip("pyarrow")
pytest.importorskip("plotly")

COUNT = 12
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module", params=[False, True], ids=["parts", "per star"])
def out(request, make_table, small_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    table = make_table(folder / "stars.fits", COUNT)
    given = [table, folder / "</script>missing.fits"]
    options = {"per_star": request.param, "uncertainty": not request.param, "workers": 0, "piece_size": 8}
    list(denoise_survey(given, folder / "out", model=small_bundle, **options))
    return folder / "out"


def data(page):
    """What the page's script is given."""
    (text,) = re.findall(r"^const run = (.*);$", page.read_text(), re.MULTILINE)
    return json.loads(text)


def test_the_page_holds_the_run(out, tmp_path):
    found = data(write_report(out, tmp_path / "page.html"))
    assert (found["total_done"], found["total_failed"], len(found["stars"])) == (COUNT, 1, COUNT)
    assert sum(count for _, count in found["classes"]) == COUNT
    assert found["failures"][0]["name"].endswith("missing.fits")
    assert found["causes"] == [["no such file", 1]]
    for name, histogram in found["histograms"].items():
        assert sum(histogram["counts"]) == COUNT, name
    assert all(star["_spectrum"] for star in found["stars"])
    assert "snr" in found["columns"]


def test_spectra_come_back_from_their_sixteen_bits(out, tmp_path):
    import base64

    star = data(write_report(out, tmp_path / "page.html"))["stars"][4]
    run = open_run(out)
    names = list(run.column("name"))
    truth = run.spectrum(run.rows([names.index(star["name"])])[0])
    assert {"FLUX", "OBSERVED", "OBSERVED_STD", "WAVELENGTH", "MASK"} <= star["_spectrum"].keys()
    for name in star["_spectrum"].keys() - {"MASK"}:
        low, high, packed = star["_spectrum"][name]
        values = np.frombuffer(base64.b64decode(packed), "<u2") * (high - low) / 65535 + low
        np.testing.assert_allclose(values, truth[name], atol=(high - low) / 1e5)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(star["_spectrum"]["MASK"]), np.uint8))
    np.testing.assert_array_equal(bits[: len(truth["MASK"])].astype(bool), truth["MASK"])


def test_a_large_run_is_a_sample_and_what_is_flagged(out, tmp_path):
    found = data(write_report(out, tmp_path / "page.html", sample=5, spectra=4))
    run = open_run(out)
    flagged = sum(bool(row["warnings"]) for row in run.rows(run.where("status", "ok")))
    assert sum(bool(star["warnings"]) for star in found["stars"]) == flagged
    assert len(found["stars"]) == flagged + min(5, COUNT - flagged)
    assert sum(star["_spectrum"] is not None for star in found["stars"]) == min(4, len(found["stars"]))


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(BayesspecError, match="no catalogue"):
        write_report(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser(out, tmp_path):
    """Nothing is fetched, nothing fails, a click shows the star, the filter filters, a column sorts."""
    page = write_report(out, tmp_path / "page.html")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page.read_text().split("<body>")[1])
    driver = """<script>
      const said = [];
      window.onerror = message => said.push(message);
      const lines = () => [...document.querySelectorAll("#stars tbody tr")];
      const name = () => document.querySelector("#star .gtitle").textContent;
      lines()[5].click();
      const told = name();
      said.push([0, 1].some(n => told.startsWith(lines()[5].cells[n].textContent)));
      document.querySelectorAll("#stars th")[run.columns.indexOf("chi2")].click();
      const at = run.columns.indexOf("chi2"), sorted = lines().map(line => +line.cells[at].textContent);
      said.push(sorted.every((v, i) => !i || v >= sorted[i - 1]));
      const filter = document.getElementById("filter");
      filter.value = "chi2>" + sorted[7]; filter.oninput();
      said.push(lines().length);
      said.push(document.querySelectorAll("#star .scatterlayer .trace").length);
      document.body.dataset.said = JSON.stringify(said);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", driver))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [BROWSER, *options, profile, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    (said,) = re.findall(r'data-said="([^"]*)"', done.stdout)
    clicked, in_order, left, traces = json.loads(said.replace("&quot;", '"'))
    assert (clicked, in_order) == (True, True)
    assert abs(left - 4) <= 1  # what is printed is rounded
    assert traces == (5 if (out / "parts").exists() else 3)  # observed, two of the band, clean, residuals
