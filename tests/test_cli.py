"""The command line: products, exit statuses, and nothing but results on stdout."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from bayesspec.cli import main
from bayesspec.exceptions import BayesspecError
from bayesspec.results.products import SUMMARY
from bayesspec.survey.folder import STATE

COMMANDS = ("denoise", "status", "demo", "info", "train", "evaluate")


@pytest.fixture
def run(capsys):
    """Run a command; gives the exit status, the rows on stdout, and the lines on stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return (
            stop.value.code,
            list(csv.reader(streams.out.splitlines(), delimiter="\t")),
            streams.err.splitlines(),
        )

    return call


@pytest.fixture
def spectra(tmp_path):
    """Three text files of made-up stars."""
    rng = np.random.default_rng(0)
    wavelength = np.linspace(3950, 9050, 600)
    for name, slope in (("red", 2.0), ("flat", 0.0), ("blue", -2.0)):
        flux = (wavelength / 6000) ** slope + 0.1 * rng.standard_normal(600)
        np.savetxt(tmp_path / f"{name}.txt", np.column_stack([wavelength, flux, np.full(600, 0.1)]))
    return [tmp_path / f"{name}.txt" for name in ("red", "flat", "blue")]


@pytest.fixture
def process(tmp_path):
    """Begin a command in a process of its own."""
    code = "from bayesspec.cli import main; main()"

    def begin(*arguments, stdout=subprocess.PIPE, **options):
        command = [sys.executable, "-c", code, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, **options)

    return begin


def one_line(running, status=2) -> str:
    """What a process says as it ends: a line on stderr."""
    _, errors = running.communicate(timeout=120)
    assert running.returncode == status, errors.decode()
    (line,) = errors.decode().splitlines()
    return line


def summary(folder) -> Table:
    return Table.read(folder / SUMMARY)


def test_denoise_writes_a_table_per_star_and_a_row_per_file(run, spectra, small_bundle, tmp_path):
    out = tmp_path / "out"
    status, rows, errors = run("denoise", *spectra, "-o", out, "--model", small_bundle, "--figures")
    assert status == 0
    assert [row[0] for row in rows] == ["file", *map(str, spectra)]
    assert errors == [f"3 of 3 denoised, products in {out}"]
    expected = {SUMMARY} | {f"{s.stem}{end}" for s in spectra for end in (".denoised.fits", ".png")}
    assert {path.name for path in out.iterdir()} == expected
    assert list(summary(out)["class"]) == [row[1] for row in rows[1:]]


def test_a_corrupt_file_fails_alone(run, spectra, small_bundle, tmp_path):
    (bad := tmp_path / "bad.fits").write_bytes(b"SIMPLE  =" + bytes(3000))
    missing, dark = tmp_path / "missing.fits", tmp_path / "dark.txt"
    dark.write_text("1000 1 1\n1001 1 1\n")
    files = [spectra[0], bad, spectra[1], missing, dark]
    status, rows, errors = run("denoise", *files, "-o", tmp_path / "out", "--model", small_bundle)
    assert status == 1
    assert [str(row["name"]) for row in summary(tmp_path / "out")] == list(map(str, files))
    assert list(summary(tmp_path / "out")["status"]) == ["ok", "failed", "ok", "failed", "failed"]
    for file, line in zip((bad, missing, dark), errors, strict=False):
        assert line.startswith(f"{file}: ")
    assert len(errors) == 4
    assert len(rows) == 6
    assert "Traceback" not in "".join(errors)


def test_nothing_but_failures_is_still_a_summary(run, small_bundle, tmp_path):
    status, rows, errors = run(
        "denoise", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", "--model", small_bundle
    )
    assert status == 1
    assert len(rows) == len(errors) == 3
    assert list(summary(tmp_path / "out")["status"]) == ["failed", "failed"]


@pytest.mark.parametrize("batch", [1, 2])
def test_order_and_batches_do_not_matter(run, spectra, small_bundle, tmp_path, batch):
    run("denoise", *spectra, "-o", tmp_path / "a", "--model", small_bundle)
    run("denoise", *spectra[::-1], "-o", tmp_path / "b", "--model", small_bundle, "--batch-size", batch)
    one, other = summary(tmp_path / "a"), summary(tmp_path / "b")[::-1]
    assert list(one["class"]) == list(other["class"])
    for name in ("chi2", "scale", "z1", "log_density"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=1e-3)


def test_overwriting_needs_the_flag(run, spectra, small_bundle, tmp_path):
    command = ("denoise", spectra[0], "-o", tmp_path / "out", "--model", small_bundle)
    assert run(*command)[0] == 0
    before = (tmp_path / "out" / SUMMARY).stat().st_mtime_ns
    status, rows, errors = run(*command)
    assert (status, rows, len(errors)) == (2, [], 1)
    assert (tmp_path / "out" / SUMMARY).stat().st_mtime_ns == before
    assert run(*command, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("denoise",),
        ("denoise", "a.fits", "--exposures", "both"),
        ("denoise", "a.fits", "--batch-size", "0"),
        ("denoise", "a.fits", "--seed", str(2**70)),
        ("denoise", "a.fits", "--seed", "-1"),
        ("demo", "--seed", str(2**32)),
        ("evaluate", "kang2021", "--library", "a", "--noise", "a", "--seed", str(2**64)),
        ("denoise", "a.fits", "--model", "no such model"),
        ("info", "no such model"),
        ("train", "a.fits", "-o", "out"),
        ("train", "a.fits", "-o", "out", "--noise", "no such folder"),
        ("train", "a.fits", "-o", "out", "--noise", "a", "--recipe", "no such recipe"),
        ("evaluate", "kang2021", "--noise", "a"),
        ("evaluate", "kang2021", "--library", "a", "--noise", "no such folder"),
        ("evaluate", "no such model", "--library", "a", "--noise", "a"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_misuse_is_status_2_and_no_traceback(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(*arguments)
    assert status == 2
    assert "Traceback" not in "\n".join(errors)


def test_errors_of_train_are_one_line(run, tmp_path):
    """Of the recipe, the tables, the files and the folder."""
    (tmp_path / "junk.fits").write_text("junk")
    (tmp_path / "wide.toml").write_text("[grid]\nsize = 1000")
    (tmp_path / "bad.toml").write_text("generator = 5")
    (tmp_path / "file").write_text("")
    start = ("train", tmp_path / "junk.fits", "--noise", tmp_path / "junk.fits", "-o", tmp_path / "out")
    for more, message in (
        (("--recipe", tmp_path / "wide.toml"), "cannot make 1000 pixels"),
        (("--recipe", tmp_path / "bad.toml"), "bad.toml: not a recipe"),
        (("--recipe", tmp_path), "no recipe is called"),
        ((), "junk.fits: not a table"),
        (("-o", tmp_path / "file" / "out"), "junk.fits: not a table"),
        (("--restart",), "junk.fits: not a table"),
    ):
        status, rows, errors = run(*start, *more)
        assert (status, rows, len(errors)) == (2, [], 1), errors
        assert message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--device", "no such device"), ("--method", "no such method")])
def test_what_torch_and_inference_refuse_is_misuse(run, spectra, small_bundle, tmp_path, option):
    status, rows, errors = run(
        "denoise", spectra[0], "-o", tmp_path / "out", "--model", small_bundle, *option
    )
    assert (status, rows) == (2, [])
    assert option[1] in errors[0]


def test_uncertainty_comes_with_the_products(run, spectra, small_bundle, tmp_path):
    """With the flag the clean flux has a standard deviation, with `--method map` too there is an error."""
    command = ("denoise", spectra[0], "--model", small_bundle)
    assert run(*command, "-o", tmp_path / "mode")[0] == 0
    assert run(*command, "-o", tmp_path / "mean", "--uncertainty")[0] == 0
    mode, mean = (Table.read(tmp_path / out / "red.denoised.fits") for out in ("mode", "mean"))
    assert set(mean.colnames) - set(mode.colnames) == {"FLUX_STD"}
    assert (mode.meta["METHOD"], mean.meta["METHOD"]) == ("map", "importance")

    status, rows, errors = run(*command, "-o", tmp_path / "none", "--uncertainty", "--method", "map")
    assert (status, rows, len(errors)) == (2, [], 1)
    assert "map is a point" in errors[0]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, capsys, command):
    status, _, errors = run(command, "--help")
    assert (status, errors) == (0, [])
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"Example: bayesspec {command} " in capsys.readouterr().out


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys\nfrom bayesspec.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print(sorted({'torch', 'astropy', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - begin < 5
    assert done.stderr.strip() == "[]"


def test_info_of_a_spectrum(run, spectra):
    status, rows, errors = run("info", spectra[0])
    assert (status, errors) == (0, [])
    assert ["star", "red"] in rows
    assert rows[-1][1:5] == ["600", "3950.0", "9050.0", "100.0%"]


def test_info_of_a_bundle(run, small_bundle):
    status, rows, errors = run("info", small_bundle)
    assert (status, errors) == (0, [])
    assert ["model", "small"] in rows
    assert {"O", "Carbon", "WD"} <= {row[0] for row in rows}


def test_info_of_junk(run, tmp_path):
    (junk := tmp_path / "junk.fits").write_bytes(b"\0" * 100)
    status, rows, errors = run("info", junk)
    assert (status, rows, len(errors)) == (1, [], 1)


def test_version(run):
    from bayesspec import __version__

    assert run("--version")[1] == [[f"bayesspec {__version__}"]]


class TestOverwriting:
    """What an earlier run left never passes for what this run found."""

    def test_an_input_that_now_fails_leaves_nothing(self, run, spectra, small_bundle, tmp_path):
        out = tmp_path / "out"
        command = ("denoise", *spectra, "-o", out, "--model", small_bundle, "--overwrite")
        assert run(*command, "--figures")[0] == 0
        spectra[1].write_text("no spectrum any more")
        assert run(*command)[0] == 1
        left = {path.name for path in out.iterdir()}
        assert left == {SUMMARY, "red.denoised.fits", "blue.denoised.fits"}

    def test_nobody_else_s_file_is_removed(self, run, small_bundle, tmp_path):
        (out := tmp_path / "out").mkdir()
        (out / "red.png").write_text("mine")
        command = ("denoise", tmp_path / "red.txt", "-o", out, "--model", small_bundle, "--overwrite")
        assert run(*command)[0] == 1
        assert (out / "red.png").read_text() == "mine"

    def test_a_run_that_made_nothing_does_not_block_its_folder(self, run, spectra, small_bundle, tmp_path):
        command = ("denoise", spectra[0], "-o", tmp_path / "out", "--model", small_bundle)
        right = spectra[0].read_text()
        spectra[0].write_text("")
        assert run(*command)[0] == 1
        spectra[0].write_text(right)
        assert run(*command)[0] == 0
        assert run(*command)[0] == 2

    def test_a_file_that_is_no_summary_blocks(self, run, spectra, small_bundle, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / SUMMARY).write_text("mine")
        assert run("denoise", spectra[0], "-o", tmp_path / "out", "--model", small_bundle)[0] == 2

    def test_a_folder_in_the_place_of_a_product(self, run, spectra, small_bundle, tmp_path):
        (tmp_path / "out" / "flat.denoised.fits").mkdir(parents=True)
        for more in ((), ("--overwrite",)):
            command = ("denoise", *spectra, "-o", tmp_path / "out", "--model", small_bundle, *more)
            status, rows, errors = run(*command)
            assert (status, rows, len(errors)) == (2, [], 1)
            assert "flat.denoised.fits: is a folder" in errors[0]


def test_names_that_are_not_text(run, spectra, small_bundle, tmp_path):
    """Bytes that are not UTF-8, line breaks: the run goes on, and everything it leaves can be read."""
    names = [
        os.fsdecode(name) for name in (b"st\xe9.txt", b"st\xea.txt", b"two\nlines\r.txt", b"$\\frac.txt")
    ]
    for name in names:
        shutil.copy(spectra[0], tmp_path / name)
    files, out = [tmp_path / name for name in (*names, "missing \udce9")], tmp_path / "out"
    status, rows, errors = run("denoise", *files, "-o", out, "--model", small_bundle, "--figures")
    assert status == 1
    assert len(errors) == 2
    table = summary(out)
    assert list(table["status"]) == ["ok"] * 4 + ["failed"]
    assert len(set(table["name"])) == len(rows) - 1 == 5
    for name in table["file"][:4]:
        assert fits.getheader(out / name)["OBJECT"]
        assert (out / name).with_name(name.replace(".denoised.fits", ".png")).stat().st_size > 10_000


class TestProcesses:
    """However a run ends: one clear line, the right status, no traceback, and whole files."""

    def test_full_disk(self, process, spectra, small_bundle, tmp_path):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))  # noqa: E731
        out = tmp_path / "out"
        running = process("denoise", *spectra, "-o", out, "--model", small_bundle, preexec_fn=limit)
        assert "red.denoised.fits: cannot be written (File too large)" in one_line(running)
        assert {path.name for path in out.iterdir()} == {SUMMARY, STATE}
        assert set(summary(out)["status"]) == {"not reached"}

    def test_killed(self, process, spectra, small_bundle, tmp_path):
        """With -9: the summary knows of all stars but those of the last batch, whose products are whole."""
        out = tmp_path / "out"
        files = [shutil.copy(spectra[n % 3], tmp_path / f"{n:03d}.txt") for n in range(100)]
        running = process("denoise", *files, "-o", out, "--model", small_bundle, "--batch-size", "1")
        while len(made := list(out.glob("*.denoised.fits"))) < 3:
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        made = {path.name for path in out.glob("*.denoised.fits")}
        for name in made:
            fits.getdata(out / name, "SPECTRUM")
        table = summary(out)
        assert len(table) == 100
        known = set(table["file"][table["status"] == "ok"])
        assert known <= made
        assert len(made) - len(known) <= 1
        assert set(table["status"]) == {"ok", "not reached"}

    def test_nobody_reads(self, process, small_bundle):
        """A pipe whose reader has gone, as behind `| head`."""
        reading, writing = os.pipe()
        os.close(reading)
        running = process("info", small_bundle, stdout=writing)
        os.close(writing)
        assert "Broken pipe" in one_line(running)

    def test_stdout_is_closed(self, process, spectra, small_bundle, tmp_path):
        """The products are there all the same."""
        out = tmp_path / "out"
        running = process(
            *("denoise", spectra[0], "-o", out, "--model", small_bundle), preexec_fn=lambda: os.close(1)
        )
        _, errors = running.communicate(timeout=120)
        done, problem = errors.decode().splitlines()
        assert running.returncode == 2
        assert done.startswith("1 of 1 denoised")
        assert "stdout is closed" in problem
        assert list(summary(out)["status"]) == ["ok"]

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
    def test_stdout_is_full(self, process, small_bundle):
        with open("/dev/full", "w") as full:
            assert "No space left" in one_line(process("info", small_bundle, stdout=full))

    def test_a_terminal_that_knows_ascii_only(self, process, spectra, tmp_path):
        star = shutil.copy(spectra[0], tmp_path / "étoile.txt")
        running = process("info", star, env={"PYTHONIOENCODING": "ascii"})
        output, errors = running.communicate(timeout=120)
        assert (running.returncode, errors) == (0, b"")
        assert b"\\xe9toile" in output


def test_output_folder_that_goes_away(spectra, small_bundle, tmp_path):
    from bayesspec import denoise_survey

    rows = iter(denoise_survey(spectra, tmp_path / "out", model=small_bundle, batch_size=1))
    next(rows)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(BayesspecError, match=r"cannot be written \(No such file or directory\)"):
        next(rows)


def test_the_summary_is_there_from_the_start(spectra, small_bundle, tmp_path, monkeypatch):
    """After each batch it says what there is; in no moment is it half a file."""
    from bayesspec import denoise_survey

    # On a busy machine a write may be slow, and then the next one waits.
    monkeypatch.setattr("bayesspec.results.products.QUICK", np.inf)
    survey = denoise_survey(spectra, tmp_path / "out", model=small_bundle, batch_size=1)
    for done, _ in enumerate(survey, start=1):
        assert list(summary(tmp_path / "out")["status"]) == ["ok"] * done + ["not reached"] * (3 - done)
    assert list(summary(tmp_path / "out")["status"]) == ["ok"] * 3


@pytest.mark.parametrize("card", ["{}", '{"name": "x"}', "[]"])
def test_info_of_a_foreign_card(run, tmp_path, card):
    (tmp_path / "model.json").write_text(card)
    status, rows, errors = run("info", tmp_path)
    assert (status, rows, len(errors)) == (2, [], 1)
    assert str(tmp_path) in errors[0]


@pytest.mark.parametrize("part", ["grid", "classes", "architecture", "metrics", "provenance", "recipe"])
def test_info_of_a_card_with_something_else_in_it(run, small_bundle, tmp_path, part):
    import json

    card = json.loads((small_bundle / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, part: 5}))
    status, rows, errors = run("info", tmp_path)
    assert (status, rows, len(errors)) == (2, [], 1)


class TestSummary:
    """What is printed: what an astronomer asks for, and with --full what the files have."""

    @pytest.fixture
    def table(self, make_result, tmp_path):
        numbers = np.array([[12.34, 0.0123], [-180.0, 0.3], [0.0, -0.1]])
        res = make_result(
            passage=numbers,
            passage_std=0.1 + np.abs(numbers),
            facts=({"ra": 10.25, "dec": -3.5}, {}, {}),
            failures=((1, "broken", "no such file"),),
            warnings=((), ("odd",), ()),
            flags=np.array([0, 4, 0]),
        )
        return summary(res.write(tmp_path / "out"))

    def test_by_default(self, table, capsys):
        from bayesspec.terminal import print_summary

        print_summary(table)
        header, *lines = list(csv.reader(capsys.readouterr().out.splitlines(), delimiter="\t"))
        assert header == [
            "file", "ra", "dec", "class", "probability", "S/N", "velocity [km/s]", "E(B-V) [mag]", "note"
        ]  # fmt: skip
        assert lines[0][:3] == ["star 0", "10.25000", "-3.50000"]
        assert lines[0][6:] == ["12.3 \N{PLUS-MINUS SIGN} 12.4", "0.012 \N{PLUS-MINUS SIGN} 0.112", ""]
        assert lines[1] == ["broken", *[""] * 7, "failed: no such file"]
        assert lines[2][1:4] == ["", "", table["class"][2]]
        assert lines[2][-1] == "odd"

    def test_in_full(self, table, capsys):
        from bayesspec.terminal import print_summary

        print_summary(table, full=True)
        header, *lines = list(csv.reader(capsys.readouterr().out.splitlines(), delimiter="\t"))
        for n, line in enumerate(lines):
            row = dict(zip(header, line, strict=True))
            for name in (
                "chi2",
                "outlier_score",
                "observed_fraction",
                "used_fraction",
                "log_density",
                "scale",
            ):
                assert (
                    not row[name] if n == 1 else float(row[name]) == pytest.approx(table[name][n], rel=1e-4)
                )
        assert not [name for name in header if name.startswith(("p_", "ew_")) or name == "z1"]
        assert len(set(header)) == len(header)

    def test_of_the_command(self, run, spectra, small_bundle, tmp_path):
        command = ("denoise", spectra[0], "--model", small_bundle, "-o")
        _, (short, _), _ = run(*command, tmp_path / "short")
        _, (full, _), _ = run(*command, tmp_path / "full", "--full")
        assert "chi2" not in short
        assert {"chi2", "flags"} < set(full)
        first, second = (summary(tmp_path / name) for name in ("short", "full"))
        assert first.colnames == second.colnames


def test_warnings_are_beside_the_class(run, monkeypatch, spectra, small_bundle, tmp_path):
    """On a terminal and in a pipe, of a run and of the demonstration."""
    from bayesspec import terminal

    command = ("denoise", spectra[0], "-o", tmp_path / "out", "--model", small_bundle)
    _, rows, _ = run(*command)
    notes = summary(tmp_path / "out")["warnings"][0]
    assert rows[1][-1] == notes != ""
    seen = []
    monkeypatch.setattr(terminal, "print_table", lambda header, rows: seen.extend(rows))
    terminal.print_classes(("A", "B"), (0.3, 0.7), ("first", "second"))
    assert seen == [["B", "0.700", "first; second"], ["A", "0.300", ""]]
