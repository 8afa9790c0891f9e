"""Every script through its real command line, on real data, at a tiny size."""

import csv
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import HOME, has_fashion_mnist

import data
import features
import fid
import losses
import run as run_module
import train_ddgan
import train_ddpm
from diffusion import Diffusion
from model import PREDICTIONS, Model, load
from sample import denoise
from unet import Discriminator, preset

TINY = ["--preset", "cpu", "--width", "8", "--batch", "8", "--device", "cpu"]
SCRIPT = {"DDPM": "train_ddpm.py", "DDGAN": "train_ddgan.py", "SIDDM": "train_siddm.py"}

if not has_fashion_mnist():
    pytest.skip("Fashion-MNIST is not on this machine (apt-get install dataset-fashion-mnist)", allow_module_level=True)


@pytest.fixture
def run(monkeypatch, capsys):
    """run("fid.py", ...) -> (exit status, stdout, stderr) of the script as a user starts it, in this interpreter."""

    def run(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capsys.readouterr()
        try:
            runpy.run_path(str(HOME / script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return status, *capsys.readouterr()

    monkeypatch.chdir(HOME)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a tiny run of each method."""
    folder = tmp_path_factory.mktemp("runs")
    for method, script in SCRIPT.items():
        command = [sys.executable, script, *TINY, "--T", "4", "--steps", "6", "--every", "3", "--out", folder / method]
        subprocess.run(command, cwd=HOME, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("loss", ["simple", "weighted"])
def test_every_parameterisation_and_loss_of_the_ddpm_trains_and_samples(predict, loss, tmp_path, run):
    status, _, _ = run("experiments/ablation.py", *TINY, "--T", "6", "--steps", "40", "--every", "20",
                       "--predict", predict, "--loss", loss, "--out", tmp_path)
    first, last = (float(row["loss"]) for row in log_of(tmp_path))
    assert status == 0 and last < first
    samples = {}
    for variance in ("beta", "beta_tilde"):
        assert run("sample.py", tmp_path / "model.pt", "-n", 4, "--variance", variance, "--out", tmp_path / "a.png",
                   "--npy", tmp_path / "a.npy")[0] == 0
        samples[variance] = np.load(tmp_path / "a.npy")
    assert (samples["beta"] != samples["beta_tilde"]).any()
    model = load(tmp_path / "model.pt")
    with model.autocast():  # a mean has more digits than bfloat16, whatever the hardware would like
        assert predict != "mean" or not torch.is_autocast_enabled("cpu")
    with model.autocast(True):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("predict", ["eps", "mean"])
def test_the_bound_with_a_learned_variance_trains_and_is_evaluated_and_sampled_with_it(predict, tmp_path, run):
    status, _, err = run("experiments/ablation.py", *TINY, "--T", "6", "--steps", "120", "--every", "60",
                         "--lr", "0.0003", "--predict", predict, "--loss", "bound", "--out", tmp_path)
    first, last = (float(row["loss"]) for row in log_of(tmp_path))
    assert status == 0 and last < first, err
    status, out, _ = run("experiments/bound.py", tmp_path / "model.pt", "--n", "4")
    assert status == 0 and out.splitlines()[1].split()[-1] == "learned" and float(out.splitlines()[-2].split()[-1]) > 0
    model = load(tmp_path / "model.pt")
    own, beta = (model.generate(4, **flags) for flags in ({}, {"variance": "beta"}))
    assert (own != beta).any()
    model.network.register_forward_hook(
        lambda network, inputs, output: torch.cat([output[:, :1], torch.ones_like(output[:, 1:])], dim=1))
    torch.testing.assert_close(model.generate(4).float(), beta.float(), rtol=0, atol=1)  # v = 1 is beta_t


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_perfect_network_samples_its_image_whatever_it_predicts(predict):
    small = {"width": 8, "mult": (1,), "blocks": 1, "fold": 4}
    model = Model({"method": "DDPM", "T": 6, "schedule": "vp", "shape": (1, 28, 28), "predict": predict,
                   "network": small})
    x_0, process = torch.rand(2, 1, 28, 28) - 0.5, model.diffusion
    perfect = {"eps": lambda x_t, t: process.eps_from_x_0(x_t, x_0, t), "x_0": lambda x_t, t: x_0,
               "mean": lambda x_t, t: process.posterior(x_0, x_t, t)[0]}
    model.network = perfect[predict]  # one output for each channel: no learned variance
    for flags in ({"steps": 3}, {"steps": 3, "variance": "beta"}, {"sampler": "ddim", "steps": 3}):
        sampler, _ = model.sampler(**flags)
        torch.testing.assert_close(sampler(torch.randn_like(x_0)), x_0, rtol=0, atol=1e-5)


def wait_for(path, process):
    deadline = time.time() + 120
    while not path.exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)


def log_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", SCRIPT)
def test_a_run_leaves_a_model_a_checkpoint_a_log_and_grids(runs, method):
    folder = runs / method
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "model.pt", "log.csv",
                                                  "samples-000003.png", "samples-000006.png"}
    assert [row["step"] for row in log_of(folder)] == ["3", "6"]
    assert (folder / "samples-000006.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("method", "number"), [
    ("DDPM", signal.SIGINT),  # Ctrl-C
    ("DDGAN", signal.SIGTERM),
    ("SIDDM", signal.SIGHUP)])  # a closed terminal
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
        method, number, tmp_path, run, monkeypatch):
    flags = [*TINY, "--T", "4", "--steps", "30", "--every", "10"]
    calls, batch = [], run_module.Run.batch

    def interrupted(self):
        calls.append(1)
        if len(calls) == 14:
            signal.raise_signal(number)
        return batch(self)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "batch", interrupted)
        status, _, message = run(SCRIPT[method], *flags, "--out", tmp_path / "cut")
    assert status == 128 + number and "stopped at step 14; continue with --resume" in message
    assert "Traceback" not in message and [row["step"] for row in log_of(tmp_path / "cut")] == ["10"]

    assert run(SCRIPT[method], "--resume", "--out", tmp_path / "cut")[0] == 0
    assert run(SCRIPT[method], *flags, "--out", tmp_path / "whole")[0] == 0
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole") and len(log_of(tmp_path / "whole")) == 3
    cut, whole = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("cut", "whole"))
    assert cut["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(cut["weights"][name], whole["weights"][name]) for name in whole["weights"])


def test_a_run_killed_without_warning_resumes_from_its_last_checkpoint(tmp_path, run, monkeypatch):
    flags = [*TINY, "--T", "4", "--steps", "60", "--every", "20"]
    process = subprocess.Popen([sys.executable, "train_ddgan.py", *flags, "--out", tmp_path / "cut"], cwd=HOME,
                               stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "cut" / "checkpoint.pt", process)
    process.kill()
    process.wait()
    step = torch.load(tmp_path / "cut/checkpoint.pt", weights_only=True)["training"]["step"]
    calls, batch = [], run_module.Run.batch
    monkeypatch.setattr(run_module.Run, "batch", lambda self: calls.append(1) or batch(self))
    assert run("train_ddgan.py", "--resume", "--out", tmp_path / "cut")[0] == 0
    assert len(calls) == 60 - step < 60
    assert [row["step"] for row in log_of(tmp_path / "cut")] == ["20", "40", "60"]
    assert not list(tmp_path.glob("cut/.*"))  # nor anything half-written


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    calls, batch = [], run_module.Run.batch

    def breaking(self):
        calls.append(1)
        return batch(self) * (float("nan") if len(calls) == 7 else 1)

    monkeypatch.setattr(run_module.Run, "batch", breaking)
    with pytest.raises(SystemExit) as end:
        train_ddpm.main([*TINY, "--T", "4", "--steps", "50", "--every", "5", "--out", str(tmp_path)])
    assert "loss is nan" in end.value.code and "last good step" in end.value.code and "\n" not in end.value.code
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["training"]["step"] == 5 and all(w.isfinite().all() for w in saved["weights"].values())


def test_sampling_writes_the_grid_and_the_raw_images_and_says_what_it_cost(runs, tmp_path, run):
    npy, png = tmp_path / "s.npy", tmp_path / "s.png"
    status, out, _ = run("sample.py", runs / "DDGAN/model.pt", "-n", 10, "--batch", 4, "--npy", npy, "--out", png)
    assert status == 0 and "4 network evaluations per image" in out and "images/s" in out
    images = np.load(npy)
    assert images.shape == (10, 1, 28, 28) and images.dtype == np.uint8 and png.read_bytes()[:4] == b"\x89PNG"


def test_several_checkpoints_make_one_figure_and_the_same_seed_the_same_images(runs, tmp_path, run):
    arrays = []
    for i in range(2):
        status, out, _ = run("sample.py", runs / "DDPM/model.pt", runs / "DDPM/checkpoint.pt",
                             "--sampler", "ddim", "--steps", 2, "--eta", 0.5,
                             "-n", 3, "--npy", tmp_path / f"{i}.npy", "--out", tmp_path / "rows.png")
        assert status == 0 and out.count("2 network evaluations") == 2
        arrays.append(np.load(tmp_path / f"{i}.npy"))
    assert arrays[0].shape == (6, 1, 28, 28) and (arrays[0] == arrays[1]).all()
    # model.pt holds the weights of checkpoint.pt in float16: the same images within a few grey levels
    assert np.abs(arrays[0][:3].astype(int) - arrays[0][3:]).mean() < 2


def test_in_a_mixed_list_each_model_gets_the_samplers_flags_of_its_method(runs, tmp_path, run):
    mixed = ("sample.py", runs / "DDPM/model.pt", runs / "DDGAN/model.pt", "-n", 2, "--out", tmp_path / "rows.png")
    status, out, _ = run(*mixed, "--sampler", "ddim", "--steps", 2)
    assert status == 0 and "ddim 2: 2 network" in out and "DDGAN js, T = 4: 4 network" in out
    status, out, _ = run(*mixed, "--sampler", "ddim", "--steps", 2, "--temperature", 0.5)
    assert status == 0 and "ddim 2: 2 network" in out and "DDGAN js, T = 4, temperature 0.5: 4 network" in out
    one_step = HOME / "weights/ddgan-1.pt"
    status, out, _ = run("sample.py", one_step, *mixed[2:], "--temperature", 0.5)
    assert status == 0 and "DDGAN js, T = 1: 1 network" in out and "T = 4, temperature 0.5: 4 network" in out


def test_one_noisy_image_has_one_mean_and_many_denoisings(runs, tmp_path, run):
    models = [runs / method / "model.pt" for method in SCRIPT]
    assert run("sample.py", *models, "--denoise", 0.75, "-n", 3, "--out", tmp_path / "d.png")[0] == 0
    assert (tmp_path / "d.png").read_bytes()[:4] == b"\x89PNG"
    x_0 = data.load("fashion-mnist", "test", HOME / "data")[:3]
    for method, several in (("DDPM", False), ("DDGAN", True)):
        x_t, predicted = denoise(load(HOME / f"weights/{method.lower()}.pt"), x_0, 0.75, 2)
        assert x_t.shape == (3, 1, 28, 28) and predicted.shape == (3, 2, 1, 28, 28)
        assert (predicted[:, 0] != predicted[:, 1]).any() == several


def test_what_is_denoised_is_x_0_noised_to_t_by_2_and_the_same_for_every_model():
    x_0 = data.load("fashion-mnist", "test", HOME / "data")[:3]
    model, told = load(HOME / "weights/ddgan.pt", "cpu"), []
    model.network.register_forward_pre_hook(lambda network, inputs: told.append(inputs[-1]))
    x_t, _ = denoise(model, x_0, 0.75, 2, seed=5)
    torch.manual_seed(5)
    noised = Diffusion(4).q_sample(data.normalize(x_0), torch.full((3,), 3), torch.randn(x_0.shape))
    assert torch.equal(x_t, data.to_uint8(noised)) and torch.equal(told[0], torch.full((6,), 3))
    assert torch.equal(denoise(load(HOME / "weights/ddpm.pt", "cpu"), x_0, 0.75, 1, seed=5)[0], x_t)  # one schedule


def test_bound_prints_the_bound_and_the_terms_that_it_is_the_sum_of(runs, run):
    status, out, _ = run("experiments/bound.py", runs / "DDPM" / "model.pt", "--n", 4)
    _, _, *terms, total, error = (line.split() for line in out.splitlines())
    assert status == 0 and [term[0] for term in terms] == ["L_0", "L_1..L_3", "L_T"] and float(error[-1]) > 0
    assert terms[0][1] != terms[0][2]  # L_0 has beta_tilde_2 in the first column, beta_1 in the second
    for column in (1, 2):  # rounding of four numbers
        assert float(total[column]) == pytest.approx(sum(float(term[column]) for term in terms), abs=3e-4)
    status, _, err = run("experiments/bound.py", runs / "DDGAN" / "model.pt")
    assert status == 2 and "a DDGAN has no likelihood" in err and err.count("\n") == 1


def test_scoring_a_checkpoint_and_its_images_gives_the_same_fid(runs, tmp_path, run):
    table = tmp_path / "fid.csv"
    common = ["--features", "fashion", "--samples", 40, "--reference", "test", "--csv", table]
    assert run("sample.py", runs / "DDGAN/model.pt", "-n", 40, "--npy", tmp_path / "s.npy",
               "--out", tmp_path / "s.png")[0] == 0
    status, _, err = run("fid.py", runs / "DDGAN/model.pt", tmp_path / "s.npy", *common, "--plot", tmp_path / "fid.png")
    assert status == 0, err
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert ([row["method"] for row in rows] == ["DDGAN js", "images"]
            and rows[0]["T"] == "4" and rows[0]["features"] == "fashion")
    assert rows[0]["fid"] == rows[1]["fid"] and float(rows[0]["fid"]) > 1
    assert (tmp_path / "fid.png").read_bytes()[:4] == b"\x89PNG"


BAD = {
    "unknown preset": (["train_ddpm.py", "--preset", "tpu"], "tpu"),
    "unknown objective": (["train_ddgan.py", "--objective", "chi"], "chi"),
    "resuming with another objective": (["train_ddgan.py", "--out", "{runs}/DDGAN", "--resume", "--objective", "kl"],
                                        "--objective kl"),
    "unknown device": (["train_ddpm.py", "--device", "quantum"], "quantum"),
    "width no multiple of 8": (["train_ddpm.py", "--width", "20", "--out", "{tmp}/new"], "20"),
    "a DDGAN flag for the DDPM trainer": (["train_ddpm.py", "--r1", "0.1"], "--r1"),
    "resuming another method's run": (["train_ddpm.py", "--out", "{runs}/DDGAN", "--resume"],
                                      "which this trainer lacks"),
    "a device without arithmetic": (["train_ddpm.py", "--device", "meta"], "meta"),
    "one name for both outputs": (["sample.py", "{runs}/DDPM/model.pt", "--out", "{tmp}/a", "--npy", "{tmp}/a"],
                                  "{tmp}/a"),
    "a text as checkpoint": (["sample.py", "README.md"], "README.md"),
    "resuming with another T": (["train_ddgan.py", "--out", "{runs}/DDGAN", "--resume", "--T", "3"], "--T 3"),
    "an output that cannot be written": (["train_ddpm.py", "--out", "{tmp}/file/run"], "file/run"),
    "a truncated data file": (["train_ddpm.py", "--out", "{tmp}/new", "--root", "{tmp}/truncated"], "{tmp}/truncated"),
    "no checkpoint": (["sample.py", "{tmp}/none.pt"], "none.pt"),
    "an unreadable checkpoint": (["sample.py", "{tmp}/file"], "file"),
    "a truncated checkpoint": (["sample.py", "{tmp}/cut.pt"], "cut.pt"),
    "a foreign checkpoint": (["sample.py", "{tmp}/foreign.pt"], "foreign.pt"),
    "a DDPM flag on a DDGAN": (["sample.py", "{runs}/DDGAN/model.pt", "--sampler", "ddim"], "--sampler ddim"),
    "steps for a DDGAN and a SIDDM": (["sample.py", "{runs}/DDGAN/model.pt", "{runs}/SIDDM/model.pt", "--steps", "2"],
                                      "--steps 2"),
    "more steps than T": (["sample.py", "{runs}/DDPM/model.pt", "--steps", "5"], "--steps 5"),
    "a temperature for a DDPM": (["sample.py", "{runs}/DDPM/model.pt", "--temperature", "0.5"], "--temperature 0.5"),
    "a temperature that is none": (["sample.py", "{runs}/DDGAN/model.pt", "--temperature", "2"], "--temperature"),
    "eta without DDIM": (["sample.py", "{runs}/DDPM/model.pt", "--eta", "0.5"], "--eta 0.5"),
    "variance with DDIM": (["sample.py", "{runs}/DDPM/model.pt", "--sampler", "ddim", "--variance", "beta"],
                           "--variance beta"),
    "a batch of no fours": (["train_ddgan.py", *TINY, "--batch", "6", "--out", "{tmp}/w"], "--batch 6"),
    "(6) with one step": (["experiments/ablation.py", *TINY, "--T", "1", "--loss", "weighted", "--out", "{tmp}/w"],
                          "--T 2"),
    "the bound of one image": (["experiments/bound.py", "{runs}/DDPM/model.pt", "--n", "1"], "at least 2"),
    "samples with --denoise": (["sample.py", "{runs}/DDGAN/model.pt", "--denoise", "0.5", "--npy", "{tmp}/x.npy"],
                               "--npy"),
    "a table of nothing": (["fid.py", "--csv", "{tmp}/none.csv", "--table"], "--csv"),
    "a time between two steps": (["sample.py", "{runs}/DDGAN/model.pt", "--denoise", "0.3", "--out", "{tmp}/d.png"],
                                 "--denoise 0.3"),
    "unknown sampler": (["sample.py", "{runs}/DDPM/model.pt", "--sampler", "euler"], "euler"),
    "a folder as output": (["sample.py", "{runs}/DDPM/model.pt", "--out", "{tmp}"], "{tmp}"),
    "an .npy under a file": (["sample.py", "{runs}/DDPM/model.pt", "--npy", "{tmp}/file/x.npy"], "x.npy"),
    "a foreign checkpoint to score": (["fid.py", "{tmp}/foreign.pt", "--features", "fashion"], "foreign.pt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(name, runs, tmp_path, run):
    (tmp_path / "file").write_text("not a checkpoint")
    torch.save({"state_dict": {"w": torch.zeros(3)}}, tmp_path / "foreign.pt")
    (tmp_path / "cut.pt").write_bytes((runs / "DDGAN/model.pt").read_bytes()[:5000])
    raw = tmp_path / "truncated/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for file in data.IDX_FILES:
        (raw / file).write_bytes(b"\0\0\x08\x03")
    before = contents(tmp_path) | contents(runs)

    (script, *args), named = BAD[name]
    status, _, err = run(script, *(a.format(runs=runs, tmp=tmp_path) for a in args))
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    assert named.format(tmp=tmp_path) in err
    assert contents(tmp_path) | contents(runs) == before


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_r1_is_added_at_every_16th_step_16_times_as_large(tmp_path, monkeypatch):
    p = torch.zeros((), requires_grad=True)
    monkeypatch.setattr(train_ddgan, "r1_penalty", lambda D, x_prev, x_t, t: p + 0)
    train_ddgan.main([*TINY, "--r1", "0.5", "--steps", "33", "--out", str(tmp_path / "run")])
    assert p.grad.item() == pytest.approx(3 * 16 * 0.5 / 2)  # at steps 0, 16, 32


def test_every_objective_trains_with_its_recipe_and_its_flags_can_be_given(tmp_path, run):
    for name in losses.OBJECTIVES:
        assert run("train_ddgan.py", *TINY, "--steps", "5", "--every", "5", "--objective", name, "--lr-d", "0.003",
                   "--out", tmp_path / name)[0] == 0
        args = torch.load(tmp_path / name / "model.pt", weights_only=True)["args"]
        recipe = train_ddgan.recipe(name, 4) | {"lr_d": 0.003, "objective": name}
        assert {flag: args[flag] for flag in recipe} == recipe


def test_the_regulariser_makes_ddgans_discriminator_denoise_the_real_images(tmp_path, run):
    assert run("train_ddgan.py", *TINY, "--reg", "50", "--lr-d", "0.003", "--steps", "60", "--every", "60",
               "--out", tmp_path)[0] == 0
    D = Discriminator(**preset("cpu", 8), reg=True)
    D.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["training"]["parts"]["D"])
    x_0, diffusion = data.normalize(data.load("fashion-mnist", "test", HOME / "data")[:64]), Diffusion(4)
    t = torch.ones(64, dtype=torch.int64)
    x_prev, x_t = diffusion.q_pair(x_0, t)
    error = (D.predict_x_0(x_prev, x_t, t) - x_0).square().mean()
    assert error < 0.6 * x_0.var()  # at t = 1 x_{t-1} is x_0 itself; untrained it is above 1


@pytest.mark.parametrize(("flags", "r1"), [((), 0.5), (("--r1", "0.03"), 0.03), (("--objective", "wasserstein"), 0)])
def test_one_step_has_its_own_recipe_also_when_resumed(flags, r1, tmp_path, run):
    assert run("train_ddgan.py", *TINY, "--T", "1", "--steps", "3", "--out", tmp_path, *flags)[0] == 0
    assert run("train_ddgan.py", "--resume", "--out", tmp_path)[0] == 0
    assert torch.load(tmp_path / "model.pt", weights_only=True)["args"]["r1"] == r1


def test_the_gradient_penalty_is_added_at_every_step_with_its_published_weight(tmp_path, monkeypatch):
    p = torch.zeros((), requires_grad=True)
    monkeypatch.setattr(train_ddgan, "gradient_penalty", lambda D, x_prev, x_prev_fake, x_t, t: p + 0)
    train_ddgan.main([*TINY, "--objective", "wasserstein", "--steps", "3", "--out", str(tmp_path / "run")])
    assert p.grad.item() == pytest.approx(3 * 10)


@pytest.mark.parametrize(("name", "flags"), [("ddpm", {"sampler": "ddim", "steps": 10}), ("ddgan", {}), ("ddgan-1", {}),
                                           ("siddm", {})])
def test_the_shipped_samples_are_near_the_data_and_show_no_lattice_of_folded_pixels(name, flags):
    def power(images, k):  # at k/28 cycles a pixel across, down, and both
        spectrum = torch.fft.fft2(data.normalize(images)[:, 0]).abs().square().mean(0)
        return torch.stack([spectrum[0, k], spectrum[k, 0], spectrum[k, k]])

    samples = load(HOME / f"weights/{name}.pt").generate(300, **flags)
    real = data.load("fashion-mnist", "train", HOME / "data")[:6000]
    classifier = features.load_features("fashion")
    # 12: here they have 3 to 6, and five kinds of garments only have 31
    moments = [moment for images in (real, samples) for moment in features.statistics_of(classifier, images)]
    assert fid.frechet_distance(*moments) < 12
    # a lattice of 2 x 2 has half a cycle a pixel, and nothing at the frequency beside it, which speckle raises, too
    speckle = (power(samples, 13) / power(real, 13)).clamp(min=1)
    # 1.5: 300 images leave a standard error of about 15 %; the lattice that pixel_shuffle left in G was a factor of 5
    assert (power(samples, 14) < 1.5 * speckle * power(real, 14)).all()


def test_the_benchmark_measures_every_step_and_a_fid():
    command = [sys.executable, "experiments/benchmark.py", "--batch", "4", "--repeats", "1", "--images", "8",
               "--device", "cpu"]
    out = subprocess.run(command, cwd=HOME, check=True, capture_output=True, text=True).stdout
    # a machine with bfloat16 has a row of float32 besides
    default = [line for line in out.splitlines() if ", float32" not in line]
    assert all(sum(f"preset {name}" in line for line in default) == 4 for name in ("cpu", "gpu"))
    ours = next(line for line in out.splitlines() if line.startswith("ours ")).split()
    assert float(ours[6]) > 0  # its FID


def test_shares_of_the_test_set_are_a_tenth_each_and_a_models_sum_to_one(runs, run, monkeypatch):
    drawn = []
    monkeypatch.setattr(Model, "generate", lambda *args, generate=Model.generate, **flags: (
        drawn.append(flags) or generate(*args, **flags)))
    status, out, _ = run("experiments/shares.py", runs / "DDGAN/model.pt", runs / "DDPM/model.pt", "--steps", 2,
                         "--temperature", 0.5)
    assert drawn == [{"temperature": 0.5}, {"steps": 2}]
    real, *made = ([float(cell) for cell in line.split()[:11]] for line in out.splitlines()[1:])
    assert status == 0 and real == pytest.approx([10] * 10 + [0], abs=1.5)  # the classifier errs on 7 % of them
    for *shares, off in made:
        assert sum(shares) == pytest.approx(100, abs=0.6)  # ten roundings
        assert off == pytest.approx(sum(max(a - b, 0) for a, b in zip(shares, real)), abs=0.6)
