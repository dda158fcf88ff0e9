"""Runs of many spectra: nothing is lost, nothing stops the rest, and the end is always the same."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import bayesspec
from bayesspec import denoise_survey
from bayesspec.exceptions import BayesspecError
from bayesspec.survey.folder import STATE
from bayesspec.survey.progress import status

parquet = pytest.importorskip("pyarrow.parquet")

COUNT = 40


@pytest.fixture(scope="module")
def table(make_table, tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("in") / "stars.fits", COUNT)


@pytest.fixture(scope="module")
def options(small_bundle):
    return {"model": small_bundle, "per_star": False, "piece_size": 8, "batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def whole(table, options, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert len(list(denoise_survey(table, out, **options))) == COUNT
    return out


def test_parts_hold_what_denoise_gives(table, whole, small_bundle):
    from bayesspec.io.tables import open_spectra

    file = open_spectra(table)
    stars = [file.read(n) for n in range(COUNT)]
    file.close()
    result = bayesspec.denoise(stars, model=small_bundle, method="map", batch_size=4)
    parts = sorted((whole / "parts").iterdir())
    tables = [Table.read(part, hdu="SPECTRA") for part in parts]
    assert [len(table) for table in tables] == [8] * 5
    flux = np.concatenate([table["FLUX"] for table in tables])
    np.testing.assert_allclose(flux, result.flux, rtol=1e-3)
    np.testing.assert_array_equal(np.concatenate([t["MASK"] for t in tables]), result.observed.mask)
    names = np.concatenate([table["STAR"] for table in tables])
    assert list(names.astype(str)) == list(result.names) == [f"star {n}" for n in range(COUNT)]
    np.testing.assert_allclose(fits.getdata(parts[0], "WAVELENGTH")["WAVELENGTH"], result.wavelength)
    for name in result.full_table.colnames:
        if name != "name":
            assert name.upper() in tables[0].colnames


def test_the_catalogue_has_a_row_for_each_input(whole):
    rows = parquet.read_table(whole / "catalogue.parquet").to_pylist()
    assert [row["position"] for row in rows] == list(range(COUNT))
    small = Table.read(whole / "catalogue.ecsv")
    assert list(small["class"]) == [row["class"] for row in rows]
    for row in rows[::7]:
        part = Table.read(whole / "parts" / row["part"], hdu="SPECTRA")
        assert part["NAME"][row["row"]] == row["name"]
        assert part["CHI2"][row["row"]] == pytest.approx(row["chi2"])


@pytest.mark.parametrize("taken", [0, 1, 8, 9, 39])
def test_a_run_that_stops_goes_on_to_the_same_bytes(table, whole, options, tmp_path, taken, fingerprint):
    survey = denoise_survey(table, tmp_path / "out", **options)
    rows = iter(survey)
    for _ in range(taken):
        next(rows)
    survey.close()
    found = status(tmp_path / "out")
    assert (found["state"], found["total"]) == ("stopped" if found["done"] < COUNT else "complete", COUNT)
    assert taken <= found["done"] < taken + 8
    rest = list(denoise_survey(table, tmp_path / "out", **options))
    assert len(rest) == COUNT - found["done"]
    assert fingerprint(tmp_path / "out") == fingerprint(whole)
    assert status(tmp_path / "out")["state"] == "complete"
    assert list(denoise_survey(table, tmp_path / "out", **options)) == []


def test_processes_and_shares_end_in_the_same_bytes(table, whole, options, tmp_path, fingerprint):
    list(denoise_survey(table, tmp_path / "two", **{**options, "workers": 2}))
    assert fingerprint(tmp_path / "two") == fingerprint(whole)
    for k in (2, 3, 1):
        assert not (tmp_path / "array" / "catalogue.parquet").exists()
        list(denoise_survey(table, tmp_path / "array", part=(k, 3), **options))
    assert fingerprint(tmp_path / "array") == fingerprint(whole)


def test_a_file_a_star_goes_on_too(table, small_bundle, tmp_path, fingerprint):
    run, given = {"model": small_bundle, "batch_size": 4}, [tmp_path / "missing", table]
    assert len(list(denoise_survey(given, tmp_path / "whole", **run))) == COUNT + 1
    survey = denoise_survey(given, tmp_path / "out", **run)
    next(iter(survey))
    survey.close()
    found = status(tmp_path / "out")
    assert (found["done"], found["failed"]) == (4, 1)
    assert len(list(denoise_survey(given, tmp_path / "out", workers=2, **run))) == COUNT - 3
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")
    assert status(tmp_path / "out")["state"] == "complete"


class TestAnotherRun:
    """What was asked for before and what is asked for now are not mixed."""

    @pytest.fixture
    def begun(self, table, options, tmp_path):
        survey = denoise_survey(table, tmp_path / "out", **options)
        next(iter(survey))
        survey.close()
        return tmp_path / "out"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"seed": 1}, "seed was 0, now 1"),
            ({"method": "importance"}, "method was 'map', now 'importance'"),
            ({"piece_size": 4}, "piece_size was 8, now 4"),
            ({"model": "kang2021"}, "the model of this name is different"),
        ],
    )
    def test_another_option_is_said(self, begun, table, options, change, said, fingerprint):
        before = fingerprint(begun)
        with pytest.raises(BayesspecError, match=said):
            denoise_survey(table, begun, **{**options, **change})
        assert fingerprint(begun) == before

    def test_another_list_is_said(self, begun, table, options, make_table, tmp_path):
        with pytest.raises(BayesspecError, match="list of inputs is different"):
            denoise_survey([table, make_table(tmp_path / "more.fits", 2)], begun, **options)

    def test_overwriting_begins_anew(self, begun, table, options):
        mine = begun / "parts" / "mine.txt"
        mine.write_text("")
        rows = list(denoise_survey(table, begun, **{**options, "seed": 1}, overwrite=True))
        assert len(rows) == COUNT
        assert mine.exists()

    def test_two_runs_refuse_each_other(self, begun, table, options):
        first = denoise_survey(table, begun, **options)
        for part in (None, (1, 2)):
            with pytest.raises(BayesspecError, match="is at work here"):
                denoise_survey(table, begun, part=part, **options)
        first.close()
        share = denoise_survey(table, begun, part=(1, 2), **options)
        with pytest.raises(BayesspecError, match="is at work here"):
            denoise_survey(table, begun, **options)
        denoise_survey(table, begun, part=(2, 2), **options).close()
        share.close()

    def test_a_lock_of_another_machine_needs_the_flag(self, begun, table, options):
        owner = begun / STATE / "owner.json"
        owner.write_text(json.dumps({"host": "elsewhere", "pid": 7, "user": "me", "since": "yesterday"}))
        for _ in range(2):
            with pytest.raises(BayesspecError, match=r"process 7 of me on elsewhere.*--take-over"):
                denoise_survey(table, begun, **options)
        survey = denoise_survey(table, begun, take_over=True, **options)
        assert "elsewhere" in survey.remark
        survey.close()
        assert not owner.exists()


class TestFailures:
    """One bad input never stops the rest."""

    def test_bad_files_are_rows(self, table, options, tmp_path):
        (bad := tmp_path / "bad.fits").write_bytes(b"SIMPLE  =" + bytes(3000))
        rows = list(denoise_survey([bad, table, tmp_path / "missing"], tmp_path / "out", **options))
        failed = [row["position"] for row in rows if row["status"] == "failed"]
        assert failed == [0, COUNT + 1]
        found = Table.read(tmp_path / "out" / "catalogue.ecsv")
        assert list(found["position"][found["status"] == "failed"]) == failed
        assert found["class"].mask[0]
        assert status(tmp_path / "out")["failed"] == 2

    def test_nothing_but_failures(self, options, tmp_path):
        rows = list(denoise_survey([tmp_path / "a", tmp_path / "b"], tmp_path / "out", **options))
        assert [row["status"] for row in rows] == ["failed"] * 2
        assert not list((tmp_path / "out" / "parts").iterdir())

    def test_a_table_among_files_of_one_star_says_so(self, table, options, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "0.txt").write_text("4000 1 1\n5000 1 1\n")
        shutil.copy(table, tmp_path / "in" / "1.fits")
        rows = list(denoise_survey(tmp_path / "in", tmp_path / "out", **options))
        assert f"a file of {COUNT} spectra" in rows[1]["reason"]

    def test_a_reader_that_hangs_is_given_up(self, table, options, tmp_path, monkeypatch):
        from bayesspec.survey import reading

        read = reading.read
        slow = lambda path, **more: time.sleep(20) if "slow" in path else read(path, **more)  # noqa: E731
        monkeypatch.setattr(reading, "read", slow)
        filters = list(warnings.filters)
        begin = time.monotonic()
        given = [tmp_path / "slow.txt", table, tmp_path / "slow"]
        rows = list(denoise_survey(given, tmp_path / "out", time_limit=1.0, **options))
        assert time.monotonic() - begin < 18
        assert [row["status"] for row in rows] == ["failed", *["ok"] * COUNT, "failed"]
        assert "more than 1 s" in rows[0]["reason"]
        assert warnings.filters == filters

    def test_the_input_that_kills_workers_is_named(self, options, tmp_path):
        """With the signal of the system's out-of-memory killer; all others have their results."""
        (tmp_path / "in").mkdir()
        text = "\n".join(f"{w} 1 0.1" for w in np.linspace(3950, 9050, 200))
        for n in range(6):
            (tmp_path / "in" / f"{n:02d}{'-killer' * (n == 2)}.txt").write_text(text)
        (hook := tmp_path / "hook").mkdir()
        (hook / "sitecustomize.py").write_text(
            "import builtins, os, signal\nreal = builtins.open\n"
            "def opened(file, *more, **options):\n"
            "    if 'killer' in str(file):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(file, *more, **options)\n"
            "builtins.open = opened\n"
        )
        (script := tmp_path / "script.py").write_text(
            "from bayesspec import denoise_survey\nif __name__ == '__main__':\n"
            f"    for row in denoise_survey({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, workers=2,\n"
            f"            model={str(options['model'])!r}, per_star=False, piece_size=3, batch_size=2):\n"
            "        print(row['position'], row['status'], row['reason'], sep='|')\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hook), *sys.path])}
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
        rows = sorted((line.split("|") for line in done.stdout.splitlines()), key=lambda row: int(row[0]))
        assert [row[1] for row in rows] == ["ok"] * 2 + ["failed"] + ["ok"] * 3, done.stderr
        assert "the worker died" in rows[2][2]


class TestCommand:
    """In processes of its own: signals, disks that are full, what is said."""

    @pytest.fixture
    def arguments(self, table, small_bundle, tmp_path):
        out = ("-o", tmp_path / "out", "--model", small_bundle)
        return ("denoise", table, *out, "--parts", "--piece-size", 8, "--batch-size", 4)

    def until_begun(self, running, tmp_path):
        rows = tmp_path / "out" / STATE / "rows"
        while not (rows.is_dir() and any(rows.iterdir())):
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)

    @pytest.mark.parametrize(
        ("number", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)]
    )
    def test_signals(
        self, command, arguments, table, options, whole, tmp_path, number, code, workers, fingerprint
    ):
        arguments = (*arguments, "--workers", workers)
        running = command(*arguments)
        self.until_begun(running, tmp_path)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == code, errors
        assert "Traceback" not in errors
        found = status(tmp_path / "out")
        assert len(Table.read(tmp_path / "out" / "catalogue.ecsv")) == found["done"]
        list(denoise_survey(table, tmp_path / "out", **options))
        assert fingerprint(tmp_path / "out") == fingerprint(whole)

    @pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # by jax, where another test has loaded it
    def test_a_full_disk_is_one_error_and_nothing_is_half(
        self, command, arguments, table, options, whole, tmp_path, fingerprint
    ):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))  # noqa: E731
        running = command(*arguments, "--workers", 0, preexec_fn=limit)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == 2
        (line,) = errors.splitlines()
        assert "cannot be written (File too large)" in line
        assert not list((tmp_path / "out" / "parts").iterdir())
        list(denoise_survey(table, tmp_path / "out", **options))
        assert fingerprint(tmp_path / "out") == fingerprint(whole)

    def test_killed_and_gone_on(self, command, arguments, whole, tmp_path, fingerprint):
        """With -9; the lock that is left is no obstacle."""
        running = command(*arguments, "--workers", 2)
        self.until_begun(running, tmp_path)
        running.kill()
        running.communicate()
        done = command(*arguments, "--workers", 0)
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        assert "ended unexpectedly" in errors
        assert "continuing" in errors
        assert fingerprint(tmp_path / "out") == fingerprint(whole)

    def test_status_from_another_terminal(self, command, arguments, tmp_path):
        running = command(*arguments, "--workers", 0)
        self.until_begun(running, tmp_path)
        output, _ = command("status", tmp_path / "out").communicate(timeout=60)
        assert f"running, process {running.pid}" in output or "complete" in output
        running.communicate(timeout=120)
        output, errors = command("status", tmp_path / "out").communicate(timeout=60)
        assert f"{COUNT} of {COUNT} (100.0%)" in output
        assert "complete" in output
        nothing = command("status", tmp_path)
        _, errors = nothing.communicate(timeout=60)
        assert (nothing.returncode, len(errors.splitlines())) == (2, 1)
