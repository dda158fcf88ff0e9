"""Cost of a survey: time and memory of `bayesspec denoise` by number of inputs, workers, and method."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table, vstack

from bayesspec.demo import example_star
from bayesspec.exceptions import BayesspecError
from bayesspec.results.products import written
from bayesspec.survey.catalogue import rows_name
from bayesspec.survey.runner import PIECE, denoise_survey

__all__ = ["bench_start", "bench_survey", "simulate"]

SNR = 10.0

DISTINCT = 2000
"""Number of different spectra; for more, the table is given several times, as 100,000 spectra fill 4 GB."""

PROFILE = "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"
"""Dask's profiler samples its workers a hundred times a second, which takes a tenth of their time."""

_CODE = "from bayesspec.cli import main; main()"


def simulate(path: str | Path, count: int, *, seed: int = 0) -> Path:
    """A table of simulated spectra: the demonstration star with random slopes and noise.

    Arguments:
        path: The FITS table, in the format of star libraries.
        count: Number of spectra.
        seed: Seed of slopes and noise.
    """
    rng = np.random.default_rng(seed)
    star = example_star().exposures[0]
    loglam = np.log10(star.wavelength)
    clean = np.nan_to_num(star.flux / np.mean(np.abs(star.flux)))
    bend = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    flux = (clean * (star.wavelength / 6000) ** bend).astype(np.float32)
    flux += rng.standard_normal(flux.shape, dtype=np.float32) / SNR
    ivar = np.broadcast_to(np.float32(SNR**2), flux.shape)
    meta = {"COEFF0": loglam[0], "COEFF1": (loglam[-1] - loglam[0]) / (len(loglam) - 1)}
    names = [f"simulated {n}" for n in range(count)]
    Table({"ID": names, "FLUX": flux, "IVAR": ivar}, meta=meta).write(path, overwrite=True)
    return Path(path)


def bench_survey(
    out: str | Path,
    *,
    model: str = "kang2021",
    methods: Sequence[str] = ("map", "importance"),
    counts: Sequence[int] = (64, 512),
    workers: Sequence[int] = (1, 2),
    scheduler: bool = False,
) -> Table:
    """Run `bayesspec denoise` on simulated spectra and record the cost; rows are added to those in `out`.

    Processor time is that of all processes of the run; memory is the peak of the largest one.

    Arguments:
        out: Table of all runs (ECSV).
        model: Name or bundle.
        methods: Methods of inference.
        counts: Numbers of spectra.
        workers: Numbers of processes.
        scheduler: Repeat each run with the same number of workers of a local Dask cluster.

    Returns:
        All rows: model, method, spectra, workers, by ("processes" or "dask"), wall-clock and processor
        seconds, peak_memory (MiB), load (of the machine, before), and cores.

    Raises:
        BayesspecError: if a run fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            table = simulate(folder / "simulated.fits", min(count, DISTINCT))
            for method in methods:
                for number in workers:
                    kinds = ("processes", "dask") if scheduler else ("processes",)
                    for kind in kinds:
                        row = {
                            "model": Path(model).name,
                            "method": method,
                            "spectra": count,
                            "workers": number,
                        }
                        row |= {
                            "by": kind,
                            **_run([table] * -(-count // DISTINCT), count, model, method, number, kind),
                        }
                        _add(Path(out), row)
            table.unlink()
    return Table.read(out)


def bench_start(out: str | Path, *, names: int = 1_000_000, model: str = "kang2021") -> Table:
    """Time the start of a run of many files, and its continuation when all but one piece are done.

    No spectrum is read: the files need not exist, and finished pieces are known by their names.

    Arguments:
        out: Table of all runs (ECSV), see `bench_survey`.
        names: Number of files.
        model: Name or bundle.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = (f"/survey/spectra/{n // 10_000:04d}/spec-{n:08d}.fits\n" for n in range(names))
        (listed := Path(folder, "list")).write_text("".join(lines))
        for what in ("begin", "go on"):
            before, wall, spent = os.getloadavg()[0], time.perf_counter(), time.process_time()
            survey = denoise_survey(f"@{listed}", Path(folder, "out"), model=model, per_star=False)
            seconds, spent = time.perf_counter() - wall, time.process_time() - spent
            for first in range(0, names - PIECE, PIECE):
                (survey.folder.rows / rows_name(first, PIECE, 0)).touch()
            survey.close()
            row = {"model": model, "method": what, "spectra": names, "workers": 0, "by": "start-up"}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            _add(Path(out), row | _cost(seconds, spent, peak, before))
    return Table.read(out)


def _cost(seconds: float, processor: float, peak: int, load: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "processor": round(processor, 2),
        "peak_memory": round(peak / 1024),
        "load": round(load, 1),
        "cores": os.cpu_count(),
    }


def _run(tables: list[Path], count: int, model: str, method: str, workers: int, kind: str) -> dict[str, Any]:
    folder = tables[0].parent
    out, piece = folder / "out", max(16, min(256, count // (2 * workers)))
    command = ["denoise", *tables, "-o", out, "--model", model, "--method", method, "--parts"]
    command += ["--piece-size", piece]
    before = os.getloadavg()[0]
    with _cluster(folder, workers) if kind == "dask" else contextlib.nullcontext() as cluster:
        share = ("--workers", workers) if cluster is None else ("--scheduler", cluster[0])
        begun = time.perf_counter()
        running = _begin([sys.executable, "-c", _CODE, *command, *share])
        _, code, usage = os.wait4(running.pid, 0)
        seconds = time.perf_counter() - begun
        running.returncode = os.waitstatus_to_exitcode(code)
        there = [] if cluster is None else cluster[1]
        spent = usage.ru_utime + usage.ru_stime + sum(map(_spent, there))
    shutil.rmtree(out, ignore_errors=True)
    if running.returncode:
        raise BayesspecError(f"the run with {workers} workers by {kind} failed: status {running.returncode}")
    return _cost(seconds, spent, usage.ru_maxrss, before)


@contextlib.contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[tuple[Path, list[int]]]:
    """A scheduler and workers as in the documentation; yields the scheduler's file and the process ids."""
    file = folder / "scheduler.json"
    local = ("--scheduler-file", file, "--host", "127.0.0.1")
    dask = [sys.executable, "-m", "dask"]
    running = [_begin([*dask, "scheduler", *local, "--port", 0, "--dashboard-address", ":0"])]
    own = ("--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", folder)
    running += [_begin([*dask, "worker", *local, *own]) for _ in range(workers)]
    try:
        while not file.exists():
            time.sleep(0.1)
        yield file, [process.pid for process in running[1:]]
    finally:
        for process in running:
            process.kill()
            process.wait()
        file.unlink(missing_ok=True)


def _begin(line: Sequence[object]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", PROFILE: "False"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(list(map(str, line)), env=environment, stdout=quiet, stderr=quiet)


def _spent(pid: int) -> float:
    """Seconds of processor time of a running process, on Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _add(path: Path, row: dict[str, Any]) -> None:
    table = Table([row])
    if path.exists():
        table = vstack([Table.read(path), table])
    with written(path) as part:
        table.write(part, format="ascii.ecsv", overwrite=True)
