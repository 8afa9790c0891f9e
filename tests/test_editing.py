"""Chains that begin at any t and their pictures (sample.py --edit, --chain); 1,000 modes (--data stacked, modes.py)."""

import math
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import HOME, needs_data
from PIL import Image

import data
import sample
from cli import BadInput
from model import Model

SIZES = {"width": 8, "mult": (1,), "blocks": 1, "fold": 2}


def tiny(method, T=4, shape=(1, 28, 28), **args):
    network = {**SIZES, "channels": shape[0], **({} if method == "DDPM" else {"z_dim": 3})}
    return Model({"method": method, "T": T, "schedule": "vp", "shape": shape, "network": network, **args})


@pytest.fixture
def files(tmp_path, monkeypatch):
    """In this folder: ddpm.pt, ddgan.pt and siddm.pt, untrained, and a sketch of 60 x 40 in colour."""
    monkeypatch.chdir(tmp_path)
    for method, T in (("DDPM", 12), ("DDGAN", 4), ("SIDDM", 4)):
        model = tiny(method, T)
        torch.save({"args": model.args, "weights": model.network.state_dict()}, f"{method.lower()}.pt")
    Image.new("RGB", (40, 60), (200, 100, 50)).save("sketch.png")
    return tmp_path


@pytest.mark.parametrize(("method", "flags"), [
    ("DDPM", {}),
    ("DDPM", {"steps": 2}),
    ("DDPM", {"sampler": "ddim", "steps": 2}),
    ("DDGAN", {}),
    ("SIDDM", {})])
def test_an_edit_begins_with_the_picture_noised_to_t_by_2(method, flags):
    model, told = tiny(method), []
    model.network.register_forward_pre_hook(lambda _, inputs: told.append((inputs[0], inputs[-1])))
    picture = (torch.arange(784, dtype=torch.float32).view(1, 1, 28, 28).mul(255 / 783).to(torch.uint8)
               .expand(400, -1, -1, -1))
    made = model.generate(400, edit=picture, start=3, amp=False, **flags)
    assert made.shape == picture.shape
    x_t, t = told[0]
    alpha_bar = model.diffusion.alpha_bar[3].item()
    assert (t == 3).all() and [int(t[0]) for _, t in told] == ([3, 2] if flags else [3, 2, 1])
    noise = x_t - math.sqrt(alpha_bar) * data.normalize(picture)
    assert noise.mean(0).abs().max() < 5 / math.sqrt(400)  # of 784 pixels none beyond five standard errors
    assert noise.var().item() == pytest.approx(1 - alpha_bar, rel=0.02)


def test_a_chain_from_a_smaller_t_needs_a_picture():
    with pytest.raises(BadInput, match="--from 3 needs an --edit FILE"):
        tiny("DDGAN").generate(4, start=3)
    assert tiny("DDGAN").generate(4, start=4, amp=False).shape == (4, 1, 28, 28)
    picture = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    for edit, flags in ((picture, {}), (picture[:3], {"start": 3}), (picture[0], {"start": 3})):
        with pytest.raises(BadInput, match="an edit of shape"):
            tiny("DDGAN").generate(4, edit=edit, **flags)


def test_the_command_shows_the_sketch_and_what_became_of_it(files, capsys):
    for start in (1, 4):
        sample.main(["ddgan.pt", "siddm.pt", "--edit", "sketch.png", "--from", str(start), "-n", "3",
                     "--npy", "e.npy", "--out", "e.png"])
        assert f"{start} network evaluations" in capsys.readouterr().out
    assert np.load("e.npy").shape == (6, 1, 28, 28)
    sample.main(["ddpm.pt", "--edit", "sketch.png", "--from", "6", "--steps", "2", "--sampler", "ddim", "-n", "3",
                 "--out", "f.png"])
    grid = np.asarray(Image.open("f.png"))
    # one row of four, the flat sketch first
    assert grid.shape[1] == 2 * (4 * 29 + 1) and (grid[10:50, 10:50] == grid[10, 10]).all()


@pytest.mark.parametrize(("flags", "named"), [
    (["ddgan.pt", "--edit", "sketch.png", "--from", "5"], "--from 5"),
    (["ddgan.pt", "--edit", "sketch.png", "--from", "0"], "0"),
    (["ddpm.pt", "--edit", "sketch.png", "--from", "5", "--steps", "6"], "--steps 6"),
    (["ddgan.pt", "--edit", "sketch.png"], "--from"),
    (["ddgan.pt", "--from", "2"], "--edit"),
    (["ddgan.pt", "--edit", "ddpm.pt", "--from", "2"], "ddpm.pt"),
    (["ddgan.pt", "--edit", "none.png", "--from", "2"], "none.png"),
    (["ddgan.pt", "--denoise", "0.5", "--chain"], "--chain"),
    (["ddgan.pt", "--denoise", "0.5", "--from", "2"], "--from"),
    (["ddgan.pt", "--denoise", "0.5", "--eta", "0"], "--eta"),
    (["ddgan.pt", "--denoise", "0.5", "--temperature", "0.5"], "--temperature"),
    (["ddgan.pt", "--edit", "sketch.png", "--from", "1", "--temperature", "0.5"], "--temperature 0.5"),
    (["ddgan.pt", "--denoise", "0.5", "--out", "x.gif"], "x.gif"),
    (["ddgan.pt", "--chain", "--npy", "x.npy"], "--npy x.npy"),
    (["ddgan.pt", "--out", "x.gif"], "x.gif"),
    (["ddgan.pt", "--edit", "sketch.png", "--from", "2", "--out", "sketch.png"], "sketch.png")])
def test_what_cannot_be_edited_is_one_line(files, capsys, flags, named):
    with pytest.raises((SystemExit, BadInput)) as stopped:
        sample.main(flags)
    said = capsys.readouterr().err if stopped.type is SystemExit else str(stopped.value)
    assert named in said and said.strip().count("\n") == 0
    assert not (files / "samples.png").exists() and Image.open("sketch.png").size == (40, 60)


@pytest.mark.parametrize(("C", "mode"), [(1, "L"), (3, "RGB"), (1, "RGBA"), (3, "P")])
def test_a_picture_of_any_kind_is_fitted_to_the_models_shape(tmp_path, C, mode):
    Image.new("RGB", (50, 30), (102, 102, 102)).convert(mode).save(tmp_path / "p.png")
    picture = sample.load_picture(tmp_path / "p.png", (C, 28, 32))
    assert picture.shape == (C, 28, 32) and picture.dtype == torch.uint8 and (picture.float() - 102).abs().max() <= 1
    with pytest.raises(BadInput, match="2 channels"):
        sample.load_picture(tmp_path / "p.png", (2, 28, 32))


def test_pixels_of_16_bits_and_transparent_ones_are_refused(tmp_path):
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (30, 30), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    for name, says in (("deep", "8 bits"), ("clear", "transparent")):
        with pytest.raises(BadInput, match=says):
            sample.load_picture(tmp_path / f"{name}.png", (1, 28, 28))
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.png").rename(tmp_path / name / "a.png")
        with pytest.raises(BadInput, match=says):
            data.load_folder(tmp_path / name)


def test_a_chain_that_is_not_finite_is_one_line():
    model = tiny("DDPM")
    torch.nn.init.constant_(model.network.out.bias, math.nan)
    with pytest.raises(BadInput, match="NaN"):
        sample.chain(model, 1)


@pytest.mark.parametrize(("method", "predict"), [("DDPM", "eps"), ("DDPM", "x_0"), ("DDPM", "mean"), ("DDGAN", None)])
def test_a_chain_is_the_samplers_own_way_and_its_predictions_are_the_models(method, predict):
    model = tiny(method, **({"predict": predict} if predict else {}))
    steps = sample.chain(model, 3, seed=5, amp=False)
    assert [t for t, _, _ in steps] == [4, 3, 2, 1, 0]
    assert torch.equal(steps[-1][1], model.generate(3, seed=5, batch=3, amp=False))
    assert torch.equal(steps[-2][2], steps[-1][1])  # what the last step predicts is x_0
    assert all(x_t.shape == x_0.shape == (3, 1, 28, 28) for _, x_t, x_0 in steps)


def test_the_chain_as_a_picture_and_as_a_film(files):
    sample.main(["ddpm.pt", "ddgan.pt", "--chain", "-n", "2", "--out", "c.png"])
    sample.main(["ddpm.pt", "ddgan.pt", "--chain", "-n", "2", "--out", "c.gif"])
    assert Image.open("c.png").format == "PNG"
    film = Image.open("c.gif")
    assert film.format == "GIF" and film.n_frames > 4
    first = np.asarray(film.convert("L")).astype(int)
    film.seek(film.n_frames - 1)
    assert np.abs(np.asarray(film.convert("L")).astype(int) - first).mean() > 1


# 1,000 modes

@needs_data
def test_stacks_are_three_garments_with_a_label_of_three_digits():
    stacks, labels = data.load("stacked", "test", HOME / "data", labels=True)
    images, kinds = data.load("fashion-mnist", "test", HOME / "data", labels=True)
    assert stacks.shape == (10000, 3, 28, 28)
    kind = {image.numpy().tobytes(): k for image, k in zip(images, kinds.tolist())}
    for c, digit in enumerate((100, 10, 1)):
        # each channel has every garment once
        assert torch.equal(stacks[:, c].float().mean(0), images[:, 0].float().mean(0))
        assert [kind[image.numpy().tobytes()] for image in stacks[:200, c]] == (labels[:200] // digit % 10).tolist()


def test_a_batch_of_stacks_draws_each_channel_anew_and_any_other_does_not():
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 3, 2, 2)
    torch.manual_seed(0)
    for mixed in (True, False):
        batch = data.random_batch(images, 200, mixed)
        assert batch.shape == (200, 3, 2, 2) and (batch == batch[:, :, :1, :1]).all()
        assert (batch[:, 0] == batch[:, 1]).float().mean() < 0.1 if mixed else (batch[:, 0] == batch[:, 1]).all()


def test_coverage_counts_modes_and_the_divergence_from_uniform():
    coverage = runpy.run_path(str(HOME / "experiments/modes.py"))["coverage"]
    assert coverage(torch.arange(1000).repeat(3)) == (1000, pytest.approx(0, abs=1e-12))
    assert coverage(torch.full((50,), 7)) == (1, pytest.approx(math.log(1000)))
    assert coverage(torch.arange(500)) == (500, pytest.approx(math.log(2)))


@needs_data
def test_the_modes_of_real_stacks_and_of_a_model_are_printed(tmp_path):
    sizes = ["--preset", "cpu", "--width", "8", "--batch", "4", "--device", "cpu", "--steps", "2", "--every", "2"]
    subprocess.run([sys.executable, "train_ddgan.py", *sizes, "--data", "stacked", "--out", tmp_path / "run"],
                   cwd=HOME, check=True, capture_output=True)
    command = [sys.executable, "experiments/modes.py", tmp_path / "run/model.pt", "--samples", "300"]
    done = subprocess.run(command, cwd=HOME, check=True, capture_output=True, text=True)
    _, real, model = (line.split()[-2:] for line in done.stdout.splitlines())
    assert 200 < int(real[0]) <= 300 and float(real[1]) < float(model[1])
    done = subprocess.run([*command[:2], "weights/ddgan.pt"], cwd=HOME, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "--data stacked" in done.stderr and done.stderr.count("\n") == 1


@needs_data
def test_garments_from_sketches_are_scored_and_drawn(tmp_path):
    command = [sys.executable, "experiments/editing.py", "weights/ddgan.pt", "--samples", "40",
               "--out", tmp_path / "editing.png"]
    done = subprocess.run(command, cwd=HOME, check=True, capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("weights")]
    assert [row[1:3] for row in rows] == [["1", "1"], ["2", "2"], ["3", "3"]]
    assert float(rows[0][3]) < float(rows[2][3])  # the later it begins, the nearer to the sketch
    assert (tmp_path / "editing.png").read_bytes()[:4] == b"\x89PNG"
