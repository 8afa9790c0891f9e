"""experiments/blind.py: tiles on the sheets are whose the count says that they are."""

import sys

import pytest
import torch
from conftest import HOME, needs_data

import cli
from data import load
from model import load as load_model

sys.path.insert(0, str(HOME / "experiments"))
import blind

MODEL = str(HOME / "weights" / "ddgan.pt")


@needs_data
def test_a_marked_tile_counts_for_the_source_of_its_image(tmp_path, monkeypatch, capsys):
    sheets = []
    monkeypatch.setattr(blind, "draw_sheet", lambda images, path: sheets.append(images))
    flags = [MODEL, "--each", "35", "--seed", "3"]
    blind.main([*flags, "--out", str(tmp_path), "--root", str(HOME / "data")])
    assert [len(sheet) for sheet in sheets] == [64, 6]  # 70 images
    # the marks: every tile that shows an image of the model
    made = {image.numpy().tobytes() for image in load_model(MODEL).generate(35, seed=3)}
    rows = [" ".join(tile for tile, image in zip(blind.TILES, sheet) if image.numpy().tobytes() in made)
            for sheet in sheets]
    (tmp_path / "m.csv").write_text(f"rater,sheet,broken\nann,1,{rows[0]}\nann,2,{rows[1]}\nbob,2,\nbob,1,\n")
    capsys.readouterr()
    blind.main([*flags, "--marks", str(tmp_path / "m.csv")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-2:] == ["ann", "bob"] and lines[1][-2:] == ["0", "0"] and lines[2][-2:] == ["35", "0"]
    # what is not the model's is of the test set
    test = {image.numpy().tobytes() for image in load("fashion-mnist", "test", HOME / "data")}
    assert sum(image.numpy().tobytes() in test for image in torch.cat(sheets)) == 35


def test_a_sheet_names_its_tiles(tmp_path):
    blind.draw_sheet(torch.zeros(6, 3, 28, 28, dtype=torch.uint8), tmp_path / "1.png")
    assert (tmp_path / "1.png").read_bytes()[:4] == b"\x89PNG"
    assert blind.TILES[0] == "A1" and blind.TILES[9] == "B2" and blind.TILES[63] == "H8"


@pytest.mark.parametrize("rows, told", [
    ("ann,1,A9\n", "sheet 1 has no tile A9"),
    ("ann,1,A3\n", "sheet 1 has no tile A3"),  # only two images
    ("ann,0,A1\n", "sheet 0 has no tile A1"),
    ("ann,x,A1\n", "invalid literal"),
    ("ann,2,\n", "rater ann has rows for the sheets [2]"),
    ("ann,1,A1\nann,1,A2\n", "rater ann has rows for the sheets [1, 1]"),
    ("", "no marks in")])
def test_marks_that_do_not_fit_the_sheets_are_one_line(rows, told, tmp_path):
    (tmp_path / "m.csv").write_text("rater,sheet,broken\n" + rows)
    with pytest.raises(cli.BadInput) as error:
        blind.main([MODEL, "--each", "1", "--marks", str(tmp_path / "m.csv")])
    assert told in str(error.value) and "\n" not in str(error.value)
