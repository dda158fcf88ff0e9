"""A run on a Dask cluster: the same bytes as without, whoever is lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bayesspec import denoise_survey
from bayesspec.exceptions import BayesspecError

pytest.importorskip("pyarrow")
pytest.importorskip("distributed")

COUNT = 48

pytestmark = pytest.mark.filterwarnings("default")  # of dask, about ports and loops of its own


@pytest.fixture(scope="module")
def table(make_table, tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("in") / "stars.fits", COUNT)


@pytest.fixture(scope="module")
def whole(table, small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    list(denoise_survey(table, out, model=small_bundle, per_star=False, piece_size=4, workers=0))
    return out


@pytest.fixture
def started(tmp_path):
    """A scheduler and two workers, as a user starts them."""
    file = tmp_path / "scheduler.json"
    log = (tmp_path / "log").open("w")

    def begin(*arguments):
        line = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)

    host = ("--host", "127.0.0.1")
    running = [begin("scheduler", *host, "--port", "0", "--dashboard-address", ":0")]
    running += [
        begin("worker", *host, "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path))
        for _ in range(2)
    ]
    begun = time.monotonic()
    while not file.exists():
        assert time.monotonic() - begun < 60, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield file
    for process in running:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


@pytest.mark.slow
def test_a_cluster_that_a_user_started(table, whole, started, small_bundle, command, tmp_path, fingerprint):
    out = tmp_path / "out"
    arguments = ("-o", out, "--model", small_bundle, "--piece-size", 4, "--scheduler", started)
    running = command("denoise", table, *arguments)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.slow
def test_a_worker_is_killed_in_mid_run(table, whole, small_bundle, tmp_path, fingerprint):
    """What it had is done by the other one; the scheduler never holds more than two pieces a worker."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options, local_directory=str(tmp_path)) as cluster:
        run = {"model": small_bundle, "per_star": False, "piece_size": 4}
        survey = denoise_survey(table, tmp_path / "out", scheduler=cluster.scheduler_address, **run)
        rows, most = [], 0
        for row in survey:
            rows.append(row)
            most = max(most, len(cluster.scheduler.tasks))
            if len(rows) == 5:
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
    assert len(rows) == COUNT
    assert most <= 6  # of two workers, or for a moment of three: the lost one's successor
    assert fingerprint(tmp_path / "out") == fingerprint(whole)


def test_nobody_answers(table, small_bundle, tmp_path, monkeypatch):
    from bayesspec.survey import pool

    monkeypatch.setattr(pool, "ANSWER", 1.0)
    survey = denoise_survey(table, tmp_path / "out", model=small_bundle, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(BayesspecError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        next(iter(survey))


def test_what_does_not_go_with_a_scheduler(table, small_bundle, tmp_path):
    for more in ({"workers": 2}, {"part": (1, 2)}, {"per_star": True}):
        with pytest.raises(BayesspecError, match="scheduler"):
            denoise_survey(table, tmp_path / "out", model=small_bundle, scheduler="tcp://x:1", **more)
    assert not (tmp_path / "out" / "catalogue.parquet").exists()
