"""experiments/blind.py: tiles on the sheets are whose the count says that they are."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from conftest import HOME, needs_data

import cli
from data import load
from model import load as load_model

sys.path.insert(0, str(HOME / "experiments"))
import blind

DDPM, DDGAN = (str(HOME / "weights" / f"{name}.pt") for name in ("ddpm", "ddgan"))


def run(*flags):
    blind.main([*map(str, flags), "--root", str(HOME / "data"), "--device", "cpu"])


@needs_data
def test_a_marked_tile_counts_for_the_source_of_its_image(tmp_path, monkeypatch, capsys):
    sheets = []
    monkeypatch.setattr(blind, "draw_sheet", lambda images, path: sheets.append(images))
    out = tmp_path / "sheets"
    samples = str(tmp_path / "samples.npy")
    np.save(samples, load("fashion-mnist", "train", HOME / "data")[:23].numpy())
    run(DDGAN, DDPM, samples, "--sampler", "ddim", "--steps", "2", "--each", "23", "--seed", "3", "--out", out)
    assert [len(sheet) for sheet in sheets] == [64, 28]  # 92 images
    shown = {f"{number}{tile}": image for number, sheet in enumerate(sheets, start=1)
             for tile, image in zip(blind.TILES, sheet)}
    images = {"the test set": load("fashion-mnist", "test", HOME / "data"),
              DDGAN: load_model(DDGAN, "cpu").generate(23, seed=3),
              DDPM: load_model(DDPM, "cpu").generate(23, seed=3, sampler="ddim", steps=2),
              samples: load("fashion-mnist", "train", HOME / "data")[:23]}
    with open(out / "blind.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(images)
    for row in rows:
        known = {image.numpy().tobytes() for image in images[row["name"]]}
        assert len(row["tiles"].split()) == 23
        assert all(shown[tile].numpy().tobytes() in known for tile in row["tiles"].split())
    with open(out / "blind.csv", "a") as file:
        file.write(f"rater,ann,{rows[1]['tiles']} {rows[2]['tiles'].split()[0]}\nrater,bob,\n")
    capsys.readouterr()
    blind.main(["--count", str(out / "blind.csv")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-3:] for line in lines[:5]] == [
        ["images", "ann", "bob"], ["23", "0", "0"], ["23", "23", "0"], ["23", "1", "0"], ["23", "0", "0"]]
    # of 23 and 23 images 0 and 23, or 0 and 1 broken: 2 / C(46, 23) = 2e-13, and 1
    assert [line[-2] for line in lines[6:]] == ["0.000", "1.000", "1.000", "0.000", "0.000", "1.000"]
    assert {line[-1] for line in lines[6:]} == {"1.000"}
    with pytest.raises(cli.BadInput, match="may have raters' marks"):
        run(DDGAN, "--out", out)


def test_a_sheets_tiles_are_where_their_names_say(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(blind, "save_figure", lambda figure, path, dpi: figures.append(figure))
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(60, 1, 8, 12)
    blind.draw_sheet(images, tmp_path / "1.png")
    axis, = figures[0].axes
    ticks = [dict(zip((label.get_text() for label in side.get_majorticklabels()), side.get_majorticklocs()))
             for side in (axis.yaxis, axis.xaxis)]
    pixels = axis.images[0].get_array()
    for i, tile in enumerate(blind.TILES[:60]):
        assert pixels[round(ticks[0][tile[0]]), round(ticks[1][tile[1]]), 0] == i


@pytest.mark.parametrize("name", ["shipped", "objectives", "energy", "T", "T-2", "ddpm", "long", "ten", "temperature"])
def test_the_marks_of_the_pages_fit_their_sheets(name):
    sources, raters = blind.read(HOME / "figures" / f"blind-{name}.csv")
    assert len(set().union(*sources.values())) == sum(map(len, sources.values())) and len(raters) >= 2
    assert len({len(tiles) for tiles in sources.values()}) == 1


@pytest.mark.parametrize(("rows", "told"), [
    ("rater,ann,1A9\n", "1A9, which is not a tile"),
    ("rater,ann,A1\n", "A1, which is not a tile"),
    ("rater,ann,1A1 1A1\n", "or is there twice"),
    ("judge,ann,1A1\n", "judge is neither source nor rater"),
    ("rater,ann,2B3\n", "rater ann marks 2B3, a tile of no sheet"),
    ("", "1 sources and 0 raters")])
def test_marks_that_do_not_fit_the_sheets_are_one_line(rows, told, tmp_path):
    (tmp_path / "b.csv").write_text("kind,name,tiles\nsource,x,1A1 1A2\n" + rows)
    with pytest.raises(cli.BadInput, match=re.escape(told)) as error:
        blind.main(["--count", str(tmp_path / "b.csv")])
    assert "\n" not in str(error.value)


@needs_data
@pytest.mark.parametrize(("flags", "told"), [
    ([], "one of the two"),
    ([DDGAN, "--count", "b.csv"], "one of the two"),
    ([DDGAN, "--each", "10001"], "there are 10000 real images"),
    ([DDGAN, "{tmp}/other.pt"], "sources of the same data"),
    ([DDGAN, "{tmp}/few.npy"], "few.npy holds 3 images: give --each 3"),
    (["{tmp}/few.npy"], "few.npy holds 3 images: give --each 3"),
    ([DDGAN, "{tmp}/wide.npy"], "wide.npy has images of shape (1, 28, 32), and fashion-mnist of (1, 28, 28)"),
    ([DDGAN, DDPM, "--steps", "2", "--temperature", "0.5", "--eta", "0.5"], "--eta 0.5")])
def test_bad_input_is_told_before_anything_is_drawn(flags, told, tmp_path, monkeypatch):
    saved = torch.load(DDPM, weights_only=True)
    saved["args"]["data"] = "mnist"
    torch.save(saved, tmp_path / "other.pt")
    np.save(tmp_path / "few.npy", np.zeros((3, 28, 28), np.uint8))
    np.save(tmp_path / "wide.npy", np.zeros((128, 28, 32), np.uint8))
    monkeypatch.setattr("model.Model.generate", lambda *args, **flags: pytest.fail("it drew"))
    with pytest.raises(cli.BadInput, match=re.escape(told)):
        run(*(flag.format(tmp=tmp_path) for flag in flags), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
