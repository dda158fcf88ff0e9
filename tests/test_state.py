"""Laws of what is not in the arguments: the caller's state changes no result, and no result changes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import pyro
import pytest
import torch

from bayesspec import Observation, denoise, load_model
from bayesspec.batch import ObservationBatch
from bayesspec.inference import denoise as module
from bayesspec.runtime import own_state, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore:(divide by zero|invalid value):RuntimeWarning"
)  # short chains

METHODS = {
    "newton": {"method": "map"},
    "autodelta": {"method": "map", "engine": "autodelta", "steps": 5},
    "laplace": {"method": "laplace", "draws": 60},
    "importance": {"method": "importance", "draws": 60, "rounds": 1, "handover": False},
    "nuts": {"method": "nuts", "warmup": 2, "draws": 4, "chains": 2, "max_tree_depth": 2},
}
MODELS = ("paper", "stellar")
COLUMNS = ("model_flux", "model_flux_std", "z", "w", "class_probabilities", "log_density", "scale", "chi2")


@contextmanager
def default_dtype():
    """What `torch.set_default_dtype(torch.float64)` does."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def together(*settings):
    """All of these."""
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting())
        yield


CALLERS = {
    "float64, numpy raises": partial(together, default_dtype, lambda: np.errstate(all="raise")),
    "inference mode, another seed": partial(together, torch.inference_mode, lambda: seeded(99)),
    "no_grad, autocast": partial(together, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)),
    "default device": lambda: torch.device("meta"),
}
"""What callers may have set, two at once: a result must not depend on any."""


@pytest.fixture(scope="module")
def models(small_bundle, toy_stellar):
    return {"paper": load_model(small_bundle), "stellar": toy_stellar}


@pytest.fixture(scope="module")
def stars():
    """One whole, one with a gap and without errors, and one of two exposures."""
    wavelength = np.linspace(3900, 9100, 1500)
    noise = 1 + 0.05 * np.random.default_rng(0).normal(size=(4, 1500))
    flux, ivar = noise * (wavelength / 6000) ** -1, np.full(1500, 400.0)
    gap = (wavelength > 5000) & (wavelength < 5500)
    each = [Observation(wavelength, f, ivar, name=f"star {n}") for n, f in enumerate(flux)]
    return [each[0], Observation(wavelength, flux[1], mask=gap), Observation.from_exposures(each[2:])]


@pytest.fixture(scope="module")
def run(models, stars):
    """Every number of a result, and an interval if there is one."""

    def run(model, method):
        # Of the paper's model all is quick; else draws take long, and of several exposures everything does.
        count = {"newton": 3, "autodelta": 3}.get(method, 2) if model == "paper" else 1
        seen = stars[-2:] if (model, method) == ("stellar", "newton") else stars[:count]
        res = denoise(seen, model=models[model], **METHODS[method])
        columns = {name: getattr(res, name) for name in (*COLUMNS, "outlier_score")}
        return columns | ({} if res.draws is None else {"interval": np.stack(res.interval(0.9))})

    return run


@pytest.fixture(scope="module")
def alone(run):
    """What one thread gives whose caller has set nothing."""
    return {(model, method): run(model, method) for model in MODELS for method in METHODS}


def assert_same(found, expected):
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
        assert column is None or found[name].dtype == column.dtype


def state():
    """What a process has one of, and what a thread has one of."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the very state that is looked at
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "numpy errors": np.geterr(),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "parameters": sorted(pyro.get_param_store().keys()),
        "validation": torch.distributions.Distribution._validate_args,
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "threads": torch.get_num_threads(),
        "figures": dict(sys.modules["matplotlib"].rcParams) if "matplotlib" in sys.modules else None,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("caller", CALLERS)
def test_results_do_not_depend_on_the_caller_s_settings(run, alone, caller, method):
    """To the last bit, by every engine, and the settings are as they were."""
    pyro.get_param_store().clear()
    pyro.param("mine", torch.zeros(()))
    for model in MODELS:
        with CALLERS[caller]():
            before = state()
            found = run(model, method)
            assert state() == before
        assert_same(found, alone[model, method])
    pyro.get_param_store().clear()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("method", METHODS)
def test_state_is_as_it_was_after_an_error(models, stars, monkeypatch, method, error):
    """Wherever it comes from: here from where the columns of a result are made."""

    def broken(*args):
        random.random()
        np.random.random()  # noqa: NPY002 - the very state that is kept
        torch.rand(3)
        os.environ["BAYESSPEC_TEST"] = "1"
        warnings.simplefilter("ignore")
        raise error

    for name in ("point_columns", "posterior_columns"):
        monkeypatch.setattr(module, name, broken)
    with default_dtype(), torch.inference_mode():
        before = state()
        with pytest.raises(error):
            denoise(stars, model=models["paper"], **METHODS[method])
        assert state() == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
@pytest.mark.parametrize("method", ["newton", "importance", "nuts"])
def test_an_interrupted_cell_can_be_run_again(run, alone, method):
    """Ctrl-C at any moment of the work: all is as it was, and the next run gives what it would have given."""
    begin = time.perf_counter()
    run("paper", method)
    usual, before = time.perf_counter() - begin, state()
    earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for share in (0.1, 0.35, 0.6):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, share * usual)
                run("paper", method)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert state() == before
    finally:
        signal.signal(signal.SIGALRM, earlier)
    assert_same(run("paper", method), alone["paper", method])


@pytest.mark.parametrize("caller", CALLERS)
def test_models_load_alike_whatever_the_caller_has_set(small_bundle, caller):
    """Parameters and buffers, those that are not saved among them; no random number is drawn."""
    expected = load_model(small_bundle)
    with CALLERS[caller]():
        before = state()
        found = load_model(small_bundle)
        assert state() == before
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (found, expected)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name
        assert not tensor.is_inference()
        assert tensor.dtype != torch.float64


def test_the_program_runs_by_hand_under_another_default(models, stars):
    """A batch is in the model's precision, so that Pyro's tools take the two together."""
    with default_dtype():
        for model in models.values():
            batch = model.with_noise_level(ObservationBatch.from_observations(stars, model.grid))
            trace = pyro.poutine.trace(model).get_trace(batch)
            assert trace.log_prob_sum().isfinite()


def test_threads_give_what_one_gives(run, alone):
    """With one model and all engines at once."""
    work, found, errors, threads = list(alone), [], [], 4

    def go(first):
        try:
            for model, method in (work[first:] + work[:first])[:4]:
                found.append((model, method, run(model, method)))
        except BaseException as error:
            errors.append(error)

    before = state()
    pool = [threading.Thread(target=go, args=(2 * first,)) for first in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert not errors
    assert state() == before
    assert len(found) == threads * 4
    for model, method, result in found:
        assert_same(result, alone[model, method])


def test_own_state_may_be_entered_again():
    """A function that has a state of its own may call another."""
    with default_dtype():
        with own_state(), own_state():
            assert torch.zeros(()).dtype == torch.float32
        assert torch.zeros(()).dtype == torch.float64


FRESH = """
import os, random, sys, warnings
import numpy as np
import torch
import bayesspec

def state():
    filters = [str(f) for f in warnings.filters]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return *numbers, filters, dict(os.environ)

wavelength = np.linspace(3900, 9100, 1500)
star = bayesspec.Observation(wavelength, 1 + 0.05 * np.random.default_rng(0).normal(size=1500))
for options in {options}:
    before = state()
    bayesspec.denoise(star, model=sys.argv[1], **options)
    for part, (old, new) in enumerate(zip(before, state())):
        assert old == new, (options, part, old, new)
"""


def test_first_calls_leave_no_trace(small_bundle):
    """In a new process, where libraries are loaded on first use."""
    script = FRESH.replace("{options}", repr(list(METHODS.values())))
    done = subprocess.run([sys.executable, "-c", script, small_bundle], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
