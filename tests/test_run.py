"""run.py and model.py: your own images, defaults that suit the machine, a run that nothing overwrites, notebooks."""

import csv
import os
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import HOME
from PIL import Image

import cli
import fid
import sample
import train_ddgan
import train_ddpm
import train_siddm
from model import Model, load
from run import MovingAverage, Run, parse, training_parser

TINY = ["--preset", "cpu", "--width", "8", "--batch", "4", "--device", "cpu", "--T", "2"]
TRAINERS = {"DDPM": train_ddpm, "DDGAN": train_ddgan, "SIDDM": train_siddm}


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder, made the current one, with images of several kinds."""
    monkeypatch.chdir(tmp_path)
    np.save("grey.npy", noise(12, 28, 28))
    np.save("colour.npy", noise(12, 3, 32, 32))
    np.save("wide.npy", noise(12, 2, 8, 12))
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(noise(12, 16, 16)):
        Image.fromarray(image).save(f"pictures/{i}.png")
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + np.array([12, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + noise(12, 28, 28).tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([12], ">i4").tobytes() + bytes(12))
    return tmp_path


# Your own images

@pytest.mark.parametrize(("method", "data", "shape"), [
    ("DDPM", "mnist", (1, 28, 28)),
    ("DDGAN", "grey.npy", (1, 28, 28)),
    ("DDGAN", "colour.npy", (3, 32, 32)),
    ("SIDDM", "pictures", (1, 16, 16)),
    *((method, "wide.npy", (2, 8, 12)) for method in TRAINERS)])
def test_any_images_are_trained_resumed_sampled_and_scored(method, data, shape, images, monkeypatch, capsys):
    TRAINERS[method].main([*TINY, "--data", data, "--steps", "2", "--out", "run"])
    TRAINERS[method].main(["--resume", "--steps", "3", "--out", "run", "--device", "cpu"])
    assert f"{data} (12 images, {' x '.join(map(str, shape))})" in capsys.readouterr().err
    model = load("run/model.pt")
    assert model.shape == shape and model.args["data"] in (data, os.path.abspath(data)) and model.args["step"] == 3
    assert model.args["schedule"] == ("cosine" if method == "SIDDM" else "vp")
    assert model.generate(2).shape == (2, *shape)
    sample.main(["run/model.pt", "-n", "6", "--npy", "samples.npy", "--device", "cpu"])
    assert np.load("samples.npy").shape == (6, *shape) and Image.open("samples.png").size[0] > 0
    sample.main(["run/model.pt", "-n", "2", "--denoise", "0.5", "--out", "denoised.png", "--device", "cpu"])
    if shape == (1, 28, 28):
        fid.main(["run/model.pt", "samples.npy", "--features", "fashion", "--samples", "6", "--device", "cpu"])
        assert capsys.readouterr().out.count(f"reference {data.removesuffix('.npy')} train") == 2
    else:  # what fits InceptionV3 is scored there with random weights, below; here: which features fit
        with pytest.raises(cli.BadInput, match="--features fashion does not fit"):
            fid.main(["run/model.pt", "--features", "fashion", "--samples", "6", "--device", "cpu"])


def test_colour_images_are_scored_on_inceptions_layout(images, monkeypatch, capsys):
    from torchvision.models import Inception3

    torch.manual_seed(0)
    torch.save(Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict(), "weights.pth")
    np.save("few.npy", noise(4, 3, 32, 32))
    fid.main(["few.npy", "--reference", "few.npy", "--inception-weights", "weights.pth", "--dims", "64",
              "--device", "cpu"])
    assert "FID 0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "named"), [((4, 30, 28), "28 x 28 or 32 x 28"), ((4, 3, 2, 9), "4 x 8 or 4 x 12")])
def test_a_size_that_the_strides_do_not_allow_names_the_nearest_ones(shape, named, images):
    np.save("odd.npy", noise(*shape))
    with pytest.raises(cli.BadInput, match=named):
        train_ddgan.main([*TINY, "--data", "odd.npy", "--out", "run"])
    assert not os.path.exists("run")


@pytest.mark.parametrize("kind", ["empty", "mixed", "floats", "truncated", "absent"])
def test_what_cannot_be_trained_on_is_one_line_and_never_another_data_set(kind, images, monkeypatch, capsys):
    os.mkdir("empty")
    os.mkdir("mixed")
    for name, size in (("a.png", (8, 8)), ("b.png", (12, 8))):
        Image.fromarray(noise(*size)).save(f"mixed/{name}")
    np.save("floats.npy", noise(4, 8, 8).astype(np.float32))
    with open("grey.npy", "rb") as whole, open("truncated.npy", "wb") as cut:
        cut.write(whole.read()[:-100])
    path = kind if kind in ("empty", "mixed", "absent") else f"{kind}.npy"
    monkeypatch.setattr(sys, "argv", ["train_ddpm.py", *TINY, "--data", path, "--out", "run"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(HOME / "train_ddpm.py"), run_name="__main__")
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and path in err and not os.path.exists("run")


# Defaults

@pytest.mark.parametrize("trainer", TRAINERS.values())
def test_help_shows_the_values_that_will_be_used(trainer, capsys):
    shown = {}
    for preset in ("cpu", "gpu"):
        with pytest.raises(SystemExit) as end:
            trainer.main(["--preset", preset, "--help"])
        assert end.value.code == 0
        shown[preset] = " ".join(capsys.readouterr().out.split())
    assert "optimiser steps (default: 60000)" in shown["gpu"] and "optimiser steps (default: 60000)" not in shown["cpu"]
    assert "images in a step (default: 128)" in shown["gpu"] and "multiple of 8 (default: 64)" in shown["gpu"]
    assert "None" not in shown["gpu"]
    steps, batch = {"train_ddpm": (7000, 64), "train_ddgan": (8500, 32), "train_siddm": (6000, 32)}[trainer.__name__]
    assert f"optimiser steps (default: {steps})" in shown["cpu"] and f"in a step (default: {batch})" in shown["cpu"]


def test_help_of_an_objective_shows_its_recipe(capsys):
    for objective, weight in (("js", "0.0"), ("wasserstein", "10.0")):
        with pytest.raises(SystemExit):
            train_ddgan.main(["--objective", objective, "--help"])
        assert f"of v2 (31) (default: {weight})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("device", "preset", "steps"), [("cpu", "cpu", 7000), ("cuda", "gpu", 60000)])
def test_without_preset_it_is_the_machines(device, preset, steps):
    parser = training_parser("A trainer.", T=4, out="runs/x")
    parser.set_defaults(device=torch.device(device))
    args = parse(parser, [], cpu={"steps": 7000})
    assert (args.preset, args.steps) == (preset, steps)
    assert parse(parser, ["--steps", "5", "--preset", "cpu"], cpu={"steps": 7000}).steps == 5


# A run is never overwritten

@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt", "log.csv", "samples-000100.png"])
def test_a_folder_that_holds_any_file_of_a_run_is_refused(name, images):
    os.mkdir("run")
    with open(f"run/{name}", "w") as file:
        file.write("mine")
    with pytest.raises(cli.BadInput, match=f"run/{name} exists.*choose another --out"):
        train_ddpm.main([*TINY, "--data", "grey.npy", "--out", "run"])
    assert os.listdir("run") == [name]


def test_while_a_run_goes_on_no_other_can_write_into_its_folder(images):
    flags = [*TINY, "--data", "grey.npy", "--steps", "2", "--out", "run"]
    for _ in Run("DDPM", parse(training_parser("A trainer.", T=2, out="run"), flags, cpu={})).steps():
        with pytest.raises(cli.BadInput, match="another run is writing into run"):
            train_ddpm.main(flags)
    with pytest.raises(cli.BadInput, match="exists, and a run is never overwritten"):
        train_ddpm.main(flags)


def test_what_cannot_be_resumed_is_told(images):
    with pytest.raises(cli.BadInput, match="no run to resume: run/checkpoint.pt is not there; give the run's folder"):
        train_ddpm.main(["--resume", "--out", "run"])
    with pytest.raises(cli.BadInput, match="no run to resume"):
        train_ddpm.main(["--resume", "--out", "x" * 300])  # longer than a name may be
    train_ddpm.main([*TINY, "--data", "grey.npy", "--steps", "2", "--out", "run"])
    with pytest.raises(cli.BadInput, match="--steps 1: the run in run/checkpoint.pt is for 2 already"):
        train_ddpm.main(["--resume", "--steps", "1", "--out", "run"])
    assert torch.equal(load("run").generate(2), load("run/model.pt").generate(2))  # a run's folder is its model
    assert "root" not in load("run").args  # a file to hand on does not name this machine's folders


def test_a_run_is_resumed_by_its_own_trainer_with_its_own_images(images):
    runpy.run_path(str(HOME / "experiments/ablation.py"))["main"]([
        *TINY, "--data", "grey.npy", "--steps", "2", "--predict", "x_0", "--out", "x_0"])
    with pytest.raises(cli.BadInput, match="has --loss, which this trainer lacks"):
        train_ddpm.main(["--resume", "--steps", "4", "--out", "x_0"])
    train_ddpm.main([*TINY, "--data", "grey.npy", "--steps", "2", "--out", "eps"])
    with pytest.raises(cli.BadInput, match=r"--predict x_0 is not what eps/checkpoint.pt was begun with \(eps\)"):
        runpy.run_path(str(HOME / "experiments/ablation.py"))["main"](["--resume", "--predict", "x_0", "--out", "eps"])
    np.save("grey.npy", noise(12, 8, 8))
    with pytest.raises(cli.BadInput, match="1 x 8 x 8 now, and those of eps/checkpoint.pt were 1 x 28 x 28"):
        train_ddpm.main(["--resume", "--steps", "4", "--out", "eps"])


def test_a_resumed_run_goes_on_from_what_is_there_when_it_has_the_folder(images):
    train_ddpm.main([*TINY, "--data", "grey.npy", "--steps", "2", "--out", "run"])
    parser = training_parser("A trainer.", T=2, out="run")
    parser.add_argument("--lr", type=float)
    args = parse(parser, ["--resume", "--steps", "9", "--out", "run", "--device", "cpu"], cpu={})
    late = Run("DDPM", args)  # has read the checkpoint of step 2
    late.args.steps = 5
    train_ddpm.main(["--resume", "--steps", "4", "--out", "run"])  # meanwhile another run comes to step 4
    network = late.model.network
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    parts = {"network": network, "optimizer": optimizer,
             "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)}
    assert sum(1 for _ in late.steps(**parts)) == 1 and late.step == 5


@pytest.mark.parametrize("out", ["link", "deep/link"])
def test_a_run_goes_where_a_link_points(out, images):
    os.makedirs("deep", exist_ok=True)
    os.symlink(images / "target", out)
    train_ddpm.main([*TINY, "--data", "grey.npy", "--steps", "1", "--out", out])
    assert os.path.exists("target/model.pt") and os.path.islink(out)


@pytest.mark.parametrize("flags", [
    ["--T", "9223372036854775807"],
    ["--batch", "9223372036854775808"],
    ["--width", "800000000000"],
    ["--z-dim", "1" * 30],
    ["--out", ""],
    ["--data", ""]])
def test_what_overflows_or_is_empty_is_one_line(flags, images, capsys):
    with pytest.raises(SystemExit) as end:
        train_ddgan.main([*TINY, "--data", "grey.npy", *flags])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and not os.path.exists("runs")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.signals_noted() as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def rates(folder):
    parts = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["training"]["parts"]
    return [parts[name]["param_groups"][0]["lr"] for name in parts if name.startswith("optimizer")]


@pytest.mark.parametrize("method", TRAINERS)
def test_a_run_can_be_lengthened_and_its_rates_go_on_as_those_of_the_longer_one(method, images):
    flags = [*TINY, "--data", "grey.npy", "--every", "4"]
    TRAINERS[method].main([*flags, "--steps", "4", "--out", "short"])
    TRAINERS[method].main(["--resume", "--steps", "8", "--out", "short"])
    TRAINERS[method].main([*flags, "--steps", "8", "--out", "long"])
    assert torch.load("short/model.pt", weights_only=True)["args"]["step"] == 8
    assert torch.load("short/model.pt", weights_only=True)["args"]["steps"] == 8
    assert rates("short") == pytest.approx(rates("long"), abs=1e-9)
    # at the end a cosine is at 0; DDGAN's D keeps its rate
    assert rates("long") == pytest.approx({"DDPM": [0], "DDGAN": [0, 8e-4], "SIDDM": [0, 0]}[method], abs=1e-9)
    TRAINERS[method].main(["--resume", "--steps", "12", "--out", "short"])  # from its end, where the rate was 0
    TRAINERS[method].main([*flags, "--steps", "12", "--out", "longer"])
    assert rates("short") == pytest.approx(rates("longer"), abs=1e-9)


# Notebooks

def test_in_a_notebook_images_are_uint8_and_a_trainer_leaves_its_arguments_alone(images):
    pictures = load(HOME / "weights/ddgan.pt").generate(4)
    assert pictures.shape == (4, 1, 28, 28) and pictures.dtype == torch.uint8
    argv = sys.argv
    train_ddgan.main([*TINY, "--data", "grey.npy", "--steps", "1", "--out", "run"])
    assert sys.argv is argv and os.path.exists("run/model.pt")


def test_drawing_images_leaves_the_callers_random_numbers_as_they_were():
    model = load(HOME / "weights/ddgan.pt", "cpu")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, seconds = model.generate_timed(2, seed=5, batch=2)
    assert torch.equal(torch.rand(3), expected) and seconds > 0
    assert torch.equal(first, model.generate(2, seed=5)) and not torch.equal(first, model.generate(2, seed=6))


def test_on_a_gpu_the_first_batch_is_drawn_before_the_clock_starts(monkeypatch):
    model, drawn = load(HOME / "weights/ddgan.pt", "cpu"), []
    monkeypatch.setattr(model, "generate", lambda n, *args, **flags: drawn.append((n, len(flags["edit"]))))
    edit = torch.zeros(9, 1, 28, 28, dtype=torch.uint8)
    model.generate_timed(9, 0, 4, edit=edit)
    monkeypatch.setattr(model, "device", torch.device("cuda"))
    model.generate_timed(9, 0, 4, edit=edit)
    assert drawn == [(9, 9), (4, 9), (9, 9)]


def test_a_model_samples_in_bfloat16_where_the_hardware_has_it_unless_it_was_trained_without(monkeypatch):
    model = load(HOME / "weights/ddgan.pt", "cpu")
    assert all(weight.requires_grad for weight in model.network.parameters())  # else autocast casts them at every call
    for trained_with in (None, True, False):
        model.args["amp"] = trained_with
        for hardware in (True, False):
            monkeypatch.setattr("model.computes_in_bf16", lambda device, found=hardware: found)
            with model.autocast():
                assert torch.is_autocast_enabled("cpu") == (hardware and trained_with is not False)
            for asked in (True, False):
                with model.autocast(asked):
                    assert torch.is_autocast_enabled("cpu") == asked


def test_a_loop_of_ones_own_has_batches_and_a_log_of_means_and_is_warned_of_a_d_at_chance(images, capsys):
    flags = [*TINY, "--data", "grey.npy", "--steps", "4", "--every", "2"]
    run = Run("DDPM", parse(training_parser("A trainer.", T=2, out="mine"), flags, cpu={}))
    for value, _ in enumerate(run.steps(), start=1):
        assert run.batch().shape == (4, 1, 28, 28)
        gap = torch.tensor([0.0, 1.0 if value < 3 else 0.0, 6.0]), torch.tensor([0.0, 2.0, 3.0])  # sums, counts
        run.log(loss=torch.tensor(float(value)), gap=gap)
    with open("mine/log.csv", newline="") as file:
        rows = [{name: float(cell) for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    assert rows == [{"step": 2, "loss": 1.5, "gap_1": 0.5, "gap_2": 2},
                    {"step": 4, "loss": 3.5, "gap_1": 0, "gap_2": 2}]
    err = capsys.readouterr().err
    assert "step 4: V(real) - V(fake) is 0.000 at t = 1, so D is at chance" in err and "step 2: V" not in err


@pytest.mark.parametrize("method", TRAINERS)
def test_a_model_holds_the_average_of_the_weights_in_half_precision(method, images):
    flags = [*TINY, "--data", "grey.npy", "--steps", "3"]
    saved, raw = {}, {}
    for ema in ("0", "0.999"):
        TRAINERS[method].main([*flags, "--ema", ema, "--out", ema])
        saved[ema] = torch.load(f"{ema}/model.pt", weights_only=True)["weights"]
        parts = torch.load(f"{ema}/checkpoint.pt", weights_only=True)["training"]["parts"]
        raw[ema] = {name: value.half() for name, value in parts["network" if method == "DDPM" else "G"].items()}
    assert all(torch.equal(saved["0"][name], value) for name, value in raw["0"].items())  # no memory: the last weights
    assert all(torch.equal(raw["0.999"][name], value) for name, value in raw["0"].items())
    assert any((saved["0.999"][name] != value).any() for name, value in raw["0.999"].items())


@pytest.mark.parametrize("name", ["sample.py", "toy.py"])
def test_a_script_that_draws_by_matplotlib_works_from_a_notebooks_cell(name, images):
    """!python sample.py ..., where MPLBACKEND names a backend that the virtual environment does not have."""
    flags = {"sample.py": [HOME / "weights/ddgan.pt", HOME / "weights/siddm.pt", "-n", "2"],
             "toy.py": ["--steps", "1", "--batch", "8"]}[name]
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, HOME / name, *flags], capture_output=True, text=True, env=environment,
                          check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("arguments", "named"), [
    ({"sampler": "DDIM"}, "DDIM"),
    ({"variance": "learned"}, "learned"),
    ({"sampler": "ddim", "eta": 2.0}, "2.0"),
    ({"steps": 0}, "0"),
    ({"steps": 1001}, "1001"),
    ({"temperature": 1.5}, "1.5"),
    ({"temperature": 0.5}, "is for generators")])
def test_wrong_arguments_of_a_sampler_are_named_in_a_notebook_too(arguments, named):
    with pytest.raises(cli.BadInput, match=named):
        load(HOME / "weights/ddpm.pt").generate(1, **arguments)


def test_the_samplers_flags_reach_the_diffusion():
    model = load(HOME / "weights/ddpm.pt", "cpu")
    x_T, process = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)), model.diffusion.strided(3)
    for flags, expected in (({"sampler": "ddim"}, lambda: process.ddim(model.eps_theta, x_T)),
                            ({"sampler": "ddim", "eta": 0.5}, lambda: process.ddim(model.eps_theta, x_T, 0.5)),
                            ({"variance": "beta"}, lambda: process.ancestral(model.eps_theta, x_T, "beta")),
                            ({}, lambda: process.ancestral(model.eps_theta, x_T))):
        torch.manual_seed(1)
        drawn = model.sampler(steps=3, **flags)[0](x_T)
        torch.manual_seed(1)
        torch.testing.assert_close(drawn, expected())


@pytest.mark.parametrize("temperature", [0.0, 0.7, None])
def test_the_temperature_reaches_the_chain(temperature):
    model = load(HOME / "weights/ddgan.pt", "cpu")
    x_T = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    drawn = model.sampler(temperature=temperature)[0](x_T)
    torch.manual_seed(1)
    expected = model.diffusion.ddgan(model.network, x_T, model.z_dim, 1.0 if temperature is None else temperature)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("weights", "arguments", "name"), [
    ("ddpm", {}, "ancestral"),
    ("ddpm", {"steps": 3, "variance": "beta"}, "ancestral beta"),
    ("ddpm", {"sampler": "ddim"}, "ddim eta 0"),
    ("ddpm", {"sampler": "ddim", "eta": 0.5}, "ddim eta 0.5"),
    ("ddgan", {}, ""),
    ("ddgan", {"temperature": 0.7}, "temperature 0.7"),
    ("ddgan", {"temperature": 1.0}, ""),
    ("ddgan-1", {"temperature": 0.7}, ""),
    ("ddgan", {"temperature": 0.0}, "temperature 0")])
def test_what_tables_call_a_sampler(weights, arguments, name):
    assert load(HOME / f"weights/{weights}.pt", "cpu").sampler_name(**arguments) == name


def test_from_t_1_there_is_no_noise_for_a_temperature():
    for weights, flags in (("ddgan-1", {}), ("ddgan", {"start": 1, "edit": torch.zeros(1, 1, 28, 28).byte()})):
        with pytest.raises(cli.BadInput, match="no step adds noise"):
            load(HOME / f"weights/{weights}.pt").generate(1, temperature=0.5, **flags)


def test_resuming_from_another_folder_finds_its_images(images, monkeypatch):
    train_ddpm.main([*TINY, "--data", "grey.npy", "--steps", "1", "--out", "run"])
    os.mkdir("elsewhere")
    monkeypatch.chdir("elsewhere")
    train_ddpm.main(["--resume", "--steps", "2", "--out", "../run"])
    os.rename("../grey.npy", "../moved.npy")
    train_ddpm.main(["--resume", "--steps", "3", "--data", "../moved.npy", "--out", "../run"])
    assert load("../run/model.pt").args["step"] == 3


def test_the_moving_average_forgets_the_first_weights_and_then_moves_at_its_decay():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = MovingAverage(network, decay=0.9)
    expected = None
    for n in range(200):
        torch.nn.init.constant_(network.weight, float(n))
        ema.update_parameters(network)
        d = min(0.9, (1 + n) / (10 + n))
        expected = float(n) if expected is None else d * expected + (1 - d) * n
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(199 - 9, abs=0.01)  # the lag of an average of decay 0.9 behind a ramp: d / (1 - d)


def test_every_step_of_a_model_is_a_time_for_denoise():
    model = Model({"method": "DDGAN", "T": 100, "schedule": "vp", "shape": (1, 28, 28),
                   "network": {"z_dim": 0, "width": 8, "mult": (1,), "blocks": 1, "fold": 4}})
    x_0 = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    for i in range(1, 101):
        assert sample.denoise(model, x_0, i / 100, draws=1)[1].shape == (1, 1, 1, 28, 28)
    for s in (0.005, 1e-9):
        with pytest.raises(cli.BadInput, match="multiple of 1/100"):
            sample.denoise(model, x_0, s, draws=1)


# Weights that are not finite, names that stdout has not

def test_weights_that_are_not_finite_are_one_line(images, monkeypatch, capsys):
    saved = torch.load(HOME / "weights/ddgan.pt", weights_only=True)
    saved["weights"] = {name: value * float("nan") for name, value in saved["weights"].items()}
    torch.save(saved, "nan.pt")
    for main in (sample.main, fid.main):
        with pytest.raises(cli.BadInput, match="nan.pt has weights that are NaN"):
            main(["nan.pt"])
    saved["weights"] = {name: torch.full_like(value, 60000.0) for name, value in saved["weights"].items()}
    torch.save(saved, "huge.pt")
    with pytest.raises(cli.BadInput, match="NaN or infinite"):
        sample.main(["huge.pt", "-n", "2"])


def test_an_error_of_the_networks_own_is_not_told_as_nan(monkeypatch):
    model = load(HOME / "weights/ddgan.pt", "cpu")
    monkeypatch.setattr(model.network, "forward", lambda *inputs: (_ for _ in ()).throw(ValueError("my own")))
    with pytest.raises(ValueError, match="my own"):
        model.generate(2)


@pytest.mark.parametrize("name", ["漢字.png", os.fsdecode(b"\xff\xfe.png")])
def test_a_name_that_stdout_cannot_print_loses_no_work(name, images):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HOME / "sample.py", HOME / "weights/ddgan.pt", "-n", "2",
               "--out", name, "--npy", name[:-4] + ".npy"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(name) and np.load(name[:-4] + ".npy").shape == (2, 1, 28, 28)
