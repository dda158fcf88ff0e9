"""The list of a run: whatever way spectra are named, each comes once, in an order that is always the same."""

from __future__ import annotations

import os
import time

import pytest

from bayesspec.exceptions import BayesspecError
from bayesspec.survey.inputs import Input, expand, read_list, write_list


@pytest.fixture
def folder(tmp_path, make_table):
    for name in ("b/2.txt", "b/1.fits.gz", "a.dat", "b/c/x.csv", "b/.hidden.txt", "b/notes.md"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("1 2 3\n")
    make_table(tmp_path / "library.fits", 7)
    make_table(tmp_path / "more.fits", 3)
    return tmp_path


def names(*given, **options):
    return [(path.rsplit("/", 1)[-1], count) for path, count in expand(given, **options)]


def test_folders_are_searched_in_order(folder):
    found = [("a.dat", None), ("1.fits.gz", None), ("2.txt", None), ("x.csv", None)]
    assert names(folder / "in") == names(folder / "in") == found
    assert names(folder / "in", without=folder / "in" / "b") == found[:1]
    assert names(f"{folder}/in/**/*.txt") == [("2.txt", None)]


def test_a_list_is_as_good_as_its_names(folder):
    (folder / "list").write_text(f"# two\n{folder}/in/a.dat\n\n{folder}/in/b/2.txt\n")
    assert list(expand([f"@{folder}/list"])) == list(expand([folder / "in/a.dat", folder / "in/b/2.txt"]))


def test_the_first_file_says_whether_they_are_tables(folder):
    assert names(f"{folder}/*.fits") == [("library.fits", 7), ("more.fits", 3)]
    assert names(folder / "in/a.dat", folder / "more.fits") == [("a.dat", None), ("more.fits", 3)]


def test_a_folder_that_links_to_itself_ends(folder):
    (folder / "in" / "loop").symlink_to(folder / "in")
    assert len(names(folder / "in")) == 4


@pytest.mark.parametrize("given", ["nothing/*.fits", "@nothing", "empty"])
def test_what_finds_nothing_is_an_error(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BayesspecError, match=given.strip("@").replace("*", ".")):
        list(expand([given]))


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_pieces_of_a_list_are_the_list(folder, size):
    total, _ = write_list([folder / "in", folder / "library.fits", folder / "more.fits"], folder / "l")
    (everything,) = read_list(folder / "l")
    assert total == len(everything) == 14
    assert everything[4:6] == [Input(f"{folder}/library.fits", 0), Input(f"{folder}/library.fits", 1)]
    pieces = [(first, min(first + size, total)) for first in range(0, total, size)]
    found = list(read_list(folder / "l", pieces))
    assert [part for piece in found for part in piece] == everything
    assert [len(piece) for piece in found] == [last - first for first, last in pieces]
    assert list(read_list(folder / "l", pieces[1::2])) == found[1::2]


def test_the_hash_is_that_of_the_names(folder):
    one = write_list([folder / "in"], folder / "l")
    assert write_list([f"{folder}/in"], folder / "l") == one
    (folder / "in" / "new.txt").write_text("")
    assert write_list([folder / "in"], folder / "l").sha256 != one.sha256


def test_names_that_are_not_text_come_back(tmp_path):
    name = os.fsdecode(b"st\xe9\n.txt")
    (tmp_path / name).write_text("")
    write_list([tmp_path], tmp_path / "l")
    assert next(read_list(tmp_path / "l"))[0].path == f"{tmp_path}/{name}"


@pytest.mark.slow
def test_a_million_names_take_seconds(tmp_path):
    (tmp_path / "list").write_text("".join(f"/survey/spectra/{n:07d}.fits\n" for n in range(1_000_000)))
    begin = time.perf_counter()
    assert write_list([f"@{tmp_path}/list"], tmp_path / "l").total == 1_000_000
    assert next(read_list(tmp_path / "l", [(999_999, 1_000_000)])) == [Input("/survey/spectra/0999999.fits")]
    assert (taken := time.perf_counter() - begin) < 10, taken
