"""Killed at random moments, again and again, a run ends with the bytes of one that nothing disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest

from bayesspec import denoise_survey
from bayesspec.survey.folder import STATE

pytest.importorskip("pyarrow")

KILLS, COUNT = 50, 120


def _run(table, out, options):
    for _ in denoise_survey(table, out, **options):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(("per_star", "kills"), [(False, KILLS), (True, KILLS // 2)])
def test_kill_9_at_random_moments(make_table, small_bundle, tmp_path, fingerprint, per_star, kills):
    """A fork has torch in memory already, so that most kills fall in the work and not before it."""
    import torch

    torch.set_num_threads(1)
    rng = random.Random(7)
    table = make_table(tmp_path / "stars.fits", COUNT)
    options = {"model": small_bundle, "piece_size": 6, "batch_size": 6, "per_star": per_star, "workers": 0}
    begin = time.process_time()
    _run(table, tmp_path / "whole", options)
    usual = time.process_time() - begin  # a run's cost, whatever else the machine does
    whole = fingerprint(tmp_path / "whole")

    context, out = multiprocessing.get_context("fork"), tmp_path / "out"
    done = ends = 0
    while done < kills:
        running = context.Process(target=_run, args=(table, out, options))
        running.start()
        spent, wait = 0.0, rng.uniform(0, usual / 4)
        while running.is_alive() and spent < wait:
            time.sleep(0.005)
            spent = _cpu(running.pid)
        running.kill()
        running.join()
        assert running.exitcode in (0, -signal.SIGKILL)
        if running.exitcode == 0:
            ends += 1
            assert fingerprint(out) == whole
            shutil.rmtree(out)
        else:
            done += 1
    _run(table, out, options)
    assert fingerprint(out) == whole
    print(f"{done} kills, {ends + 1} runs that ended with the same bytes")


def _cpu(pid: int) -> float:
    """Seconds of computing that a process has spent."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_kill_9_of_a_command_with_workers(make_table, small_bundle, command, tmp_path, fingerprint):
    """Of the whole family, or of the one that hands the work out: its workers end with it."""
    rng = random.Random(8)
    table = make_table(tmp_path / "stars.fits", COUNT)
    options = {"model": small_bundle, "piece_size": 6, "batch_size": 6, "per_star": False, "workers": 0}
    _run(table, tmp_path / "whole", options)
    out = tmp_path / "out"
    arguments = ("denoise", table, "-o", out, "--model", small_bundle, "--parts", "--piece-size", 6)
    for family in (False, True, False, True):
        rows = out / STATE / "rows"
        before = len(list(rows.iterdir())) if rows.is_dir() else 0
        running = command(*arguments, "--batch-size", 6, "--workers", 2, start_new_session=True)
        while not rows.is_dir() or len(list(rows.iterdir())) <= before:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(running.pid, signal.SIGKILL) if family else running.kill()
        running.communicate()
    running = command(*arguments, "--batch-size", 6, "--workers", 2)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
