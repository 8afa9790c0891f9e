"""fid.py: the distance is eq. (28), the features are those of published FIDs, and no damaged file is ever trusted."""
import argparse
import csv
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import HOME as HERE
from conftest import needs_data
from PIL import Image

import cli
import data
import features
import fid
from model import Model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian(d, n=None, decay=1.0):
    """Mean and covariance of n (default 3 d) random vectors whose standard deviations fall as i^-decay."""
    vectors = torch.randn(n or 3 * d, d, dtype=torch.float64) * torch.arange(1, d + 1) ** -decay + torch.randn(d)
    return vectors.mean(0), vectors.T.cov().reshape(d, d)


def noise(n, channels=1, size=28):
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)


# The distance. Tolerances: float64 rounding of d ~ 100 terms; where sqrtm is the judge, its own error is the larger.


@pytest.mark.parametrize("d", [1, 10, 100])
def test_frechet_distance_is_28_with_scipys_matrix_root(d):
    (mu, sigma), (mu_, sigma_) = gaussian(d), gaussian(d)
    m, s, m_, s_ = (values.numpy() for values in (mu, sigma, mu_, sigma_))
    root = scipy.linalg.sqrtm(s)
    printed = ((m - m_) ** 2).sum() + np.trace(s + s_ - 2 * scipy.linalg.sqrtm(root @ s_ @ root))
    assert fid.frechet_distance(mu, sigma, mu_, sigma_) == pytest.approx(printed, rel=1e-8)


def test_equal_covariances_leave_the_distance_of_the_means():
    (mu, sigma), (mu_, _) = gaussian(50), gaussian(50)
    assert fid.frechet_distance(mu, sigma, mu_, sigma) == pytest.approx(((mu - mu_) ** 2).sum().item(), rel=1e-10)


def test_commuting_covariances_leave_the_distance_of_the_standard_deviations():
    Q = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0]
    s, s_ = torch.rand(2, 50, dtype=torch.float64)
    mu = torch.zeros(50, dtype=torch.float64)
    distance = fid.frechet_distance(mu, Q * s**2 @ Q.T, mu, Q * s_**2 @ Q.T)
    assert distance == pytest.approx(((s - s_) ** 2).sum().item(), rel=1e-10)


@pytest.mark.parametrize("n", [20, 1000])
def test_distance_is_zero_for_identical_inputs(n):
    mu, sigma = gaussian(100, n)
    assert fid.frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-6 * sigma.trace().item())


def test_distance_is_symmetric():
    a, b = gaussian(100), gaussian(100, 30)
    assert fid.frechet_distance(*a, *b) == pytest.approx(fid.frechet_distance(*b, *a), rel=1e-8)


@pytest.mark.parametrize(("n", "n_"), [(30, 40), (30, 500), (2, 3)])
def test_distance_is_right_with_fewer_images_than_features(n, n_):
    """With Sigma = X^T X and Sigma' = Y^T Y the trace of the root is the sum of the singular values of X Y^T.

    rel 1e-6: the root of eigenvalues that are 0 up to 1e-16 is 0 up to 1e-8, about a hundred times.
    """
    X, Y = (torch.randn(m, 100, dtype=torch.float64) for m in (n, n_))
    mu, mu_ = X.mean(0), Y.mean(0)
    A, B = (X - mu) / (n - 1) ** 0.5, (Y - mu_) / (n_ - 1) ** 0.5
    exact = ((mu - mu_) ** 2).sum() + (A**2).sum() + (B**2).sum() - 2 * torch.linalg.svdvals(A @ B.T).sum()
    assert fid.frechet_distance(mu, A.T @ A, mu_, B.T @ B) == pytest.approx(exact.item(), rel=1e-6)


@needs_data
def test_distance_is_pytorch_fids():
    """2048 features of 5,000 real images each, from a random layer."""
    theirs = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    layer = torch.randn(28 * 28, 2048) / 28
    train, test = (data.load("fashion-mnist", "train", HERE / "data")[:5000],
                   data.load("fashion-mnist", "test", HERE / "data")[:5000])
    moments = [part for images in (train, test) for part in features.moments(
        torch.relu(data.normalize(chunk).flatten(1) @ layer) for chunk in images.split(500))]
    others = theirs.calculate_frechet_distance(*(part.numpy() for part in moments))
    assert fid.frechet_distance(*moments) == pytest.approx(others, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_streamed_moments_are_numpys_whatever_the_batch(batch):
    """float32 features, as networks make them, with an offset of 1e4 standard deviations that naive sums would feel."""
    rows = torch.randn(300, 20) + 1e4
    mu, sigma = features.moments(rows.split(batch))
    exact = rows.double().numpy()
    np.testing.assert_allclose(mu, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-12)


# The features.


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A weights file of the published one's layout, 95 MB, with random contents through which the images still show."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    runpy.run_path(str(HERE / "experiments/benchmark.py"))["random_inception"](path)
    yield path
    path.unlink()


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_inception_features_are_those_of_pytorch_fid(random_inception, monkeypatch, channels, size):
    port = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    monkeypatch.setattr(port, "load_state_dict_from_url", lambda *_, **__: torch.load(random_inception))
    images = noise(2, channels, size)
    for block, dims in enumerate(features.DIMS["inception"]):
        (ours, logits), = features.extract(features.load_features("inception", random_inception, dims=dims), images)
        with torch.inference_mode():
            theirs = port.InceptionV3([block]).eval()(images.expand(-1, 3, -1, -1) / 255)[0].mean((2, 3))
        assert ours.shape == (2, dims) and logits.shape == (2, 1008)
        assert (theirs[0] - theirs[1]).norm() > 1e-3 * theirs.norm()  # else equality would say little
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_other_inception_weights_are_not_called_inception(random_inception):
    network = features.load_features("inception", random_inception)
    assert network.label == f"inception-{network.key[:8]}"
    assert next(features.extract(network, noise(1)))[0].shape == (1, 2048)


def test_features_of_every_dims_are_means_over_the_image_and_the_logits_are_the_same():
    images = noise(4)
    logits = features.load_features("fashion").network(data.normalize(images))
    for dims in features.DIMS["fashion"]:
        network = features.load_features("fashion", dims=dims)
        (found, classes), = features.extract(network, images)
        assert found.shape == (4, dims) and network.label == ("fashion" if dims == 128 else f"fashion-{dims}")
        torch.testing.assert_close(classes, logits)
    with pytest.raises(cli.BadInput, match="--dims 100: .* 32, 64, 128"):
        features.load_features("fashion", dims=100)


def test_inceptions_logits_have_no_bias(random_inception):
    network = features.load_features("inception", random_inception).network
    assert not network[-1].bias.any() and torch.load(random_inception)["fc.bias"].any()


def test_inception_score_is_1_for_one_class_and_10_for_ten():
    pure = 50 * torch.eye(10).repeat(100, 1)
    assert fid.inception_score(pure[:1].expand(1000, 10)) == pytest.approx(1)  # one class only
    assert fid.inception_score(torch.zeros(1000, 10)) == pytest.approx(1)  # each image for all classes
    assert fid.inception_score(pure) == pytest.approx(10)
    assert fid.inception_score(pure[:4]) == pytest.approx(1)  # each split has one image


def test_inception_score_is_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.metric_isc", reason="torch-fidelity is not installed")
    logits = 3 * torch.randn(1000, 10)
    value = theirs.isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"]
    assert fid.inception_score(logits) == pytest.approx(float(value), rel=1e-6)


def test_a_classifier_trained_anew_is_not_called_fashion(tmp_path, monkeypatch):
    assert features.load_features("fashion").label == "fashion"
    monkeypatch.setattr(features, "CLASSIFIER", tmp_path / "classifier.pt")
    torch.save(features.fashion_classifier().state_dict(), features.CLASSIFIER)
    network = features.load_features("fashion")
    assert network.label == f"fashion-{network.key[:8]}"


def test_fashion_features_are_what_the_last_layer_sees():
    classifier, images = features.fashion_classifier().eval(), noise(3)
    classifier.load_state_dict(torch.load(features.CLASSIFIER))
    (found, _), = features.extract(features.load_features("fashion"), images)
    assert found.shape == (3, 128)
    with torch.inference_mode():
        torch.testing.assert_close(classifier[-1](found), classifier(data.normalize(images)))
    assert features.CLASSIFIER.stat().st_size < 1.5e6


@needs_data
def test_fashion_features_notice_what_an_eye_does():
    """2,000 images each: other real ones are nearer than slightly noisy ones, these nearer than pure noise."""
    train, test = (data.load("fashion-mnist", "train", HERE / "data")[:2000],
                   data.load("fashion-mnist", "test", HERE / "data")[:2000])
    noisy = data.to_uint8(data.normalize(train) + 0.1 * torch.randn(train.shape))  # an eye sees 0.1 as a fine grain
    network = features.load_features("fashion")
    reference = features.statistics_of(network, train)
    real, noisy, pure = (fid.frechet_distance(*reference, *features.statistics_of(network, images))
                         for images in (test, noisy, noise(2000)))
    assert 3 * real < noisy < pure / 3


@needs_data
def test_classifier_is_as_good_as_the_readme_says():
    """On 2,000 test images at least 92 %: what training prints for all 10,000, less three standard errors (1.6 %)."""
    classifier = features.fashion_classifier().eval()
    classifier.load_state_dict(torch.load(features.CLASSIFIER))
    images, labels = data.load("fashion-mnist", "test", HERE / "data", labels=True)
    with torch.inference_mode():
        predicted = torch.cat([classifier(data.normalize(chunk)).argmax(1) for chunk in images[:2000].split(100)])
    assert (predicted == labels[:2000]).double().mean() > 0.92


# Precision, recall, and what the finite number of samples does.


def test_precision_and_recall_are_those_of_every_pair_taken_one_by_one():
    real, made = torch.randn(60, 5) + 100, 1.5 * torch.randn(40, 5) + 100  # far from 0, as features are

    def share(points, by):
        radii = [sorted((a - b).norm() for b in by)[3] for a in by]  # [0] is the distance to itself
        return sum(any((point - b).norm() <= radius for b, radius in zip(by, radii)) for point in points) / len(points)

    slow = share(made, real), share(real, made)
    assert 0 < slow[0] < 1 and 0 < slow[1] < 1
    assert fid.precision_recall(real, made, block=7) == pytest.approx(slow, abs=1e-12)


def test_precision_and_recall_where_they_are_known():
    left, right = torch.randn(500, 8), torch.randn(500, 8) + 50
    real = torch.cat([left, right])
    assert fid.precision_recall(real, real.clone()) == (1, 1)
    assert fid.precision_recall(real, real + 1000) == (0, 0)
    precision, recall = fid.precision_recall(real, left.repeat(2, 1) + 1e-3 * torch.randn(1000, 8))  # half of the modes
    assert precision == 1 and recall == pytest.approx(0.5, abs=0.02)
    precision, recall = fid.precision_recall(left, torch.cat([left[:250] + 1e-3, right[:250]]))  # half of them invented
    assert precision == 0.5 and recall > 0.9


def test_bootstrap_spread_is_the_standard_deviation_over_fresh_samples():
    mu, sigma = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    fresh = [torch.randn(1000, 10) + 0.2 for _ in range(40)]
    true = torch.tensor([fid.frechet_distance(mu, sigma, *features.moments([made])) for made in fresh]).std().item()
    estimates = [fid.bootstrap_spread(mu, sigma, made) for made in fresh]
    # a deviation from 40 draws is known to 11 % itself
    assert sum(estimates) / len(estimates) == pytest.approx(true, rel=0.4)


# The cache of the reference's statistics.


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a bit flipped":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif how == "empty":
        path.write_bytes(b"")
    else:  # another key, or values that no statistics have
        with np.load(path) as cache:
            kept = dict(cache)
        kept |= {"foreign": {"key": "another"}, "NaN": {"mu": np.full(128, np.nan)}, "shape": {"sigma": np.eye(3)},
                 "few": {"neighbours": np.zeros((3, 128), np.float32)}}[how]
        np.savez(path, **kept)


@pytest.mark.parametrize("how", ["truncated", "a bit flipped", "empty", "foreign", "NaN", "shape", "few"])
def test_damaged_cache_is_rebuilt(tmp_path, capsys, how):
    network, images = features.load_features("fashion"), noise(20)
    mu, sigma, neighbours = features.reference_statistics(network, images, tmp_path)
    path, = tmp_path.iterdir()
    good = path.read_bytes()
    damage(path, how)
    again = features.reference_statistics(network, images, tmp_path)
    assert torch.equal(again[0], mu)
    assert torch.equal(again[1], sigma)
    assert torch.equal(again[2], neighbours)
    assert path.read_bytes()[:5000] == good[:5000]
    assert "rebuilding" in capsys.readouterr().err


def test_cache_spares_the_network_and_knows_its_images_and_weights(tmp_path):
    network, images = features.load_features("fashion"), noise(20)
    mu, *_ = features.reference_statistics(network, images, tmp_path)
    without_network = network._replace(network=None)  # raises if it is asked for features
    assert torch.equal(features.reference_statistics(without_network, images, tmp_path)[0], mu)
    for others in ((without_network._replace(key="retrained"), images), (without_network, noise(20))):
        with pytest.raises(AttributeError):
            features.reference_statistics(*others, tmp_path)


# The command line.


def save(path, images):
    np.save(path, images.numpy())
    return str(path)


def run(monkeypatch, folder, *flags):
    """fid.py's command line in this process (starting torch takes seconds), in folder, on the small features."""
    monkeypatch.chdir(folder)
    cli.script(lambda: fid.main(["--features", "fashion", "--device", "cpu", *map(str, flags)]))


@pytest.fixture
def folder(tmp_path):
    """A folder with 40 images to score, 50 to compare them with, and an untrained model of each method."""
    save(tmp_path / "images.npy", noise(40))
    save(tmp_path / "real.npy", noise(50))
    sizes = {"width": 8, "mult": (1, 2), "blocks": 1}
    for method, T, flags, more in (("DDPM", 30, {}, {}), ("DDGAN", 1, {"objective": "hellinger"}, {"z_dim": 4})):
        args = {"method": method, "T": T, "schedule": "vp", "data": "fashion-mnist", "shape": (1, 28, 28), **flags,
                "network": sizes | more}
        (tmp_path / method).mkdir()
        torch.save({"args": args, "weights": Model(args).network.state_dict()}, tmp_path / method / "model.pt")
    return tmp_path


def test_several_counts_score_the_first_so_many_of_the_same_images(folder, monkeypatch, capsys):
    def fids(*flags):
        run(monkeypatch, folder, "images.npy", "--reference", "real.npy", "--samples", *flags)
        return [float(line.split("FID ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]

    both = fids(20, 30)
    assert both == pytest.approx([*fids(20), *fids(30)], abs=2e-4) and both[0] != both[1]  # four digits are printed
    assert fids(20, 30, "--seed", 1)[0] != both[0]  # 20 of the 40 at random


def test_all_images_are_taken_and_fewer_are_drawn_at_random_with_the_seed(folder, monkeypatch, capsys):
    """A sorted file: its first half is black.

    All of it, or a random half, is equally far from itself; its first half is not.
    """
    sorted_images = torch.cat([noise(60) // 8, noise(60)])
    save(folder / "sorted.npy", sorted_images)
    save(folder / "half.npy", sorted_images[:60])
    scores = []
    for source, more in (("sorted.npy", ()), ("sorted.npy", ("--samples", 60)),
                         ("sorted.npy", ("--samples", 60, "--seed", 1)), ("half.npy", ())):
        run(monkeypatch, folder, source, "--reference", "sorted.npy", *more)
        scores.append(float(capsys.readouterr().out.split("FID ")[1].split()[0]))
    assert scores[0] == 0 and scores[1] != scores[2] and max(scores[1:3]) < scores[3] / 3


def test_folders_and_arrays_of_any_layout_and_a_runs_folder_are_sources(folder, monkeypatch, capsys):
    images = noise(40)
    save(folder / "flat.npy", images[:, 0])
    save(folder / "channels.npy", images)
    (folder / "pictures").mkdir()
    for i, image in enumerate(images[:, 0].numpy()):
        Image.fromarray(image).save(folder / "pictures" / f"{i:03d}.png")
    run(monkeypatch, folder, "flat.npy", "channels.npy", "pictures", "DDGAN", "--reference", "pictures",
        "--samples", 40)
    lines = capsys.readouterr().out.splitlines()
    assert (all("FID 0.0000" in line and "-0.0000" not in line for line in lines[:3])
            and lines[3].startswith("DDGAN/model.pt"))


def test_models_of_different_data_need_one_reference(folder, monkeypatch, capsys):
    saved = torch.load(folder / "DDGAN/model.pt", weights_only=True)
    saved["args"]["data"] = "real.npy"
    torch.save(saved, folder / "mine.pt")
    run(monkeypatch, folder, "mine.pt", "--samples", 20)  # the default reference is what it was trained on
    assert "reference real train" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, folder, "mine.pt", "DDGAN/model.pt", "--samples", 20)
    assert "fashion-mnist and real.npy" in capsys.readouterr().err


def test_a_table_in_a_folder_that_is_not_there_yet_is_made(folder, monkeypatch):
    run(monkeypatch, folder, "images.npy", "--reference", "real.npy", "--csv", "new/deep/fid.csv")
    assert len(fid.read_csv("new/deep/fid.csv")) == 1


def test_a_table_to_which_several_processes_add_loses_no_row(tmp_path):
    code = ("import sys, fid; row = dict.fromkeys(fid.COLUMNS, '1'); "
            "[fid.add_to_csv('fid.csv', row | {'name': f'{sys.argv[1]}-{i}'}) for i in range(20)]")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i)], cwd=tmp_path,
                                  env=os.environ | {"PYTHONPATH": str(HERE)}) for i in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len({row["name"] for row in fid.read_csv(tmp_path / "fid.csv")}) == 60


@pytest.mark.parametrize("row", [
    "images,images",
    ",".join(["x"] * 30),
    ",".join(["x"] * 16),
    "a,b,,,,,,40,,,,,,,,",
    "a,b,4,2.0,,f,r,40,0,,1,1,1,1,1,1"])
def test_a_damaged_table_is_one_line(folder, monkeypatch, capsys, row):
    (folder / "bad.csv").write_text(",".join(fid.COLUMNS) + "\n" + row + "\n")
    for flag in (("--table",), ("--plot", "fid.png")):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, folder, "--csv", "bad.csv", *flag)
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_name_that_no_encoding_holds_is_kept_in_the_table(folder, monkeypatch, capsys):
    name = os.fsdecode(b"\xff\xfe \n$x$.npy")
    save(folder / name, noise(40))
    run(monkeypatch, folder, name, "--reference", "real.npy", "--csv", "fid.csv", "--table")
    assert [row["name"] for row in fid.read_csv("fid.csv")] == [Path(name).stem]


def test_a_folder_of_pictures_is_taken_even_where_it_is_called_as_a_data_set_is(folder, monkeypatch, capsys):
    (folder / "mnist").mkdir()
    for i, (image,) in enumerate(noise(5).numpy()):
        Image.fromarray(image).save(folder / "mnist" / f"{i}.png")
    run(monkeypatch, folder, "mnist", "--reference", "real.npy")
    assert "mnist: FID" in (told := capsys.readouterr().out) and "samples 5" in told


def test_a_table_in_the_folder_of_a_training_run_is_refused_with_its_result_told(folder, monkeypatch, capsys):
    monkeypatch.setattr(cli.locked_folder.__wrapped__, "__defaults__", (0.2,))  # seconds, not a minute
    with cli.locked_folder(folder / "run"), pytest.raises(SystemExit) as stopped:
        run(monkeypatch, folder, "real.npy", "--reference", "real.npy", "--csv", "run/fid.csv")
    told = capsys.readouterr()
    assert stopped.value.code == 2 and "real.npy: FID 0.0000" in told.out
    assert told.err.splitlines()[-1].endswith("choose another folder") and not (folder / "run" / "fid.csv").exists()


def test_speed_up_is_over_the_ddpm_of_1000_steps(capsys):
    row = dict.fromkeys(fid.COLUMNS, "1")
    fid.print_table([row | {"seconds": "0.0"},
                     row | {"method": "DDPM", "steps": "1000", "seconds": "0.0", "sampler": "ancestral"}])
    capsys.readouterr()
    ddpm = row | {"method": "DDPM", "steps": "1000", "seconds": "500", "sampler": "ancestral"}
    fid.print_table([row | {"method": "DDGAN", "steps": "4", "seconds": "2"}, ddpm,
                     ddpm | {"sampler": "ddim eta 0", "seconds": "250"}])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines[1:4]] == [["2", "250.0"], ["500", "1.0"], ["250", "2.0"]]


def test_real_command_scores_an_npy_and_says_with_what(folder):
    flags = ["images.npy", "--features", "fashion", "--reference", "real.npy"]
    done = subprocess.run([sys.executable, HERE / "fid.py", *flags], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    line, = done.stdout.splitlines()
    value = float(line.split("FID ")[1].split()[0])
    network = features.load_features("fashion")
    made, real = (features.statistics_of(network, data.load(str(folder / name))) for name in ("images.npy", "real.npy"))
    assert value == pytest.approx(fid.frechet_distance(*real, *made), rel=1e-4, abs=1e-3)
    for said in ("features fashion", "reference real", "samples 40"):
        assert said in line


def test_every_column_of_a_result_is_what_its_name_says(folder, monkeypatch, capsys):
    made = torch.cat([data.load(str(folder / "real.npy"))[:20], noise(20) // 3])  # half of them real, half dark
    monkeypatch.setattr(Model, "generate", lambda self, n, *args, **flags: time.sleep(0.2) or made[:n])
    run(monkeypatch, folder, "DDGAN", "--reference", "real.npy", "--samples", 40, "--csv", "fid.csv")
    row, = fid.read_csv("fid.csv")
    network = features.load_features("fashion")
    x, logits = map(torch.cat, zip(*features.extract(network, made)))
    mu, sigma, real = features.reference_statistics(network, data.load("real.npy"), folder / "cache")
    precision, recall = fid.precision_recall(real[:40], x)
    expected = {"fid": fid.frechet_distance(mu, sigma, *features.moments([x])), "precision": precision,
                "recall": recall, "spread": fid.bootstrap_spread(mu, sigma, x),
                "inception_score": fid.inception_score(logits)}
    assert precision != recall
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-3, abs=6e-5), name
    assert 1000 * 0.2 / 40 <= float(row["seconds"]) < 50  # for 1,000 images


@needs_data
def test_the_reference_is_the_split_that_is_named():
    for name, n in (("train", 60_000), ("test", 10_000)):
        assert len(fid.load_reference(argparse.Namespace(reference=name, root=HERE / "data"), [])[1]) == n


def test_the_table_names_the_temperature_that_the_images_were_drawn_at(folder, monkeypatch):
    common = ["--reference", "real.npy", "--samples", 20, "--csv", "fid.csv"]
    for flags in ([], ["--temperature", 0.5]):
        run(monkeypatch, folder, HERE / "weights/ddgan.pt", *common, *flags)
    with open("fid.csv", newline="") as file:
        hot, cold = csv.DictReader(file)
    assert (hot["sampler"], cold["sampler"]) == ("", "temperature 0.5") and hot["fid"] != cold["fid"]


def test_flags_of_a_sampler_need_a_model(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, folder, "images.npy", "--reference", "real.npy", "--temperature", 0.5)
    assert "--temperature 0.5: there is no model" in capsys.readouterr().err


def test_csv_collects_the_rows_of_every_run_and_plot_draws_them(folder, monkeypatch, capsys):
    common = ["--reference", "real.npy", "--samples", 20, "--csv", "fid.csv", "--seed", 3]
    run(monkeypatch, folder, "images.npy", "DDGAN/model.pt", *common)
    run(monkeypatch, folder, "DDPM/model.pt", "--sampler", "ddim", "--steps", 2, *common)
    with open("fid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == fid.COLUMNS
    assert [[row[c] for c in ("name", "method", "T", "steps", "sampler", "seed")] for row in rows] == [
        ["images", "images", "", "", "", "3"],  # 20 of the 40, by the seed
        ["DDGAN", "DDGAN hellinger", "1", "1", "", "3"],
        ["DDPM", "DDPM", "30", "2", "ddim eta 0", "3"]]
    assert {(row["features"], row["reference"], row["samples"]) for row in rows} == {("fashion", "real", "20")}
    printed = capsys.readouterr().out
    assert all(f"FID {row['fid']} +- {row['spread']}" in printed for row in rows)
    run(monkeypatch, folder, "--csv", "fid.csv", "--table")
    heads, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads[-7:] == ["FID", "+-", "precision", "recall", "IS", "s/1000", "speed-up"]
    assert [line[0] for line in lines[:3]] == ["images", "DDGAN", "DDPM"]
    assert f"{float(rows[2]['recall']):.3f}" in lines[2]
    run(monkeypatch, folder, "--csv", "fid.csv", "--plot", "fid.png")
    assert Path("fid.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir()) == ["DDGAN", "DDPM", "data", "fid.csv", "fid.png", "images.npy", "real.npy"]


def test_plot_joins_all_step_counts_of_a_model_and_all_T_of_a_method(tmp_path):
    row = dict.fromkeys(fid.COLUMNS, "") | {"features": "fashion", "reference": "train", "samples": "500"}
    results = [("DDPM", 1000, 10, "ddim eta 0"), ("DDPM", 1000, 1000, "ddim eta 0"), ("DDPM", 1000, 1000, "ancestral"),
               ("DDGAN js", 1, 1, ""), ("DDGAN js", 4, 4, "")]
    rows = [row | {"method": method, "T": str(T), "steps": str(steps), "sampler": sampler, "fid": str(value)}
            for value, (method, T, steps, sampler) in enumerate(results)]
    figure = fid.plot(tmp_path / "fid.png", rows)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert drawn == {"DDPM, T = 1000, ddim eta 0": [[10, 0], [1000, 1]], "DDPM, T = 1000, ancestral": [[1000, 2]],
                     "DDGAN js": [[1, 3], [4, 4]]}


@pytest.mark.parametrize(("flags", "names"), [
    (["float.npy"], ["float.npy", "float32", "uint8 (N, H, W)"]),
    (["shape.npy"], ["shape.npy", "(1, 32, 32)", "(1, 28, 28)"]),
    (["text.npy"], ["text.npy", "uint8 (N, H, W)"]),
    (["cut.npy"], ["cut.npy", "uint8 (N, H, W)"]),
    (["missing.npy"], ["missing.npy", "neither a data set", "can be found"]),
    (["three.npy", "--samples", "4"], ["three.npy", "3 images", "4 or more"]),
    (["images.npy", "--reference", "three.npy"], ["three.npy", "3 images", "4 or more"]),
    (["images.npy", "--plot", "images.npy"], ["images.npy", "written over"]),
    (["images.npy", "--csv", "new.csv", "--plot", "new.csv"], ["new.csv", "written over"]),
    (["x" * 300 + ".npy"], ["xxx", "neither a data set"]),
    (["colour.npy", "--reference", "colour.npy"], ["--features fashion", "(3, 32, 32)", "inception"]),
    (["four.npy", "--reference", "four.npy", "--features", "inception"], ["(4, 8, 8)", "1 or 3 channels"]),
    (["images.npy", "--samples", "41"], ["images.npy", "40 images", "41", "--samples 40"]),
    (["images.npy", "--samples", "3"], ["--samples", "3", "at least 4"]),
    (["images.npy", "--reference", "validation"], ["validation", "neither a data set"]),
    (["own/model.pt", "--reference", "test"], ["--reference test", "my-pictures has no test images", "give a folder"]),
    (["text.pt"], ["text.pt", "model.pt"]),
    (["DDGAN/model.pt", "--steps", "2"], ["--steps 2", "DDGAN"]),
    (["images.npy", "--csv", "text.npy/fid.csv"], ["text.npy/fid.csv", "another"]),
    (["images.npy", "--csv", "foreign.csv"], ["foreign.csv", "epoch", "another"]),
    (["images.npy", "--plot", "DDPM"], ["DDPM", "another path"]),
    (["--csv", "none.csv", "--plot", "fid.png"], ["nothing to draw", "fid.png"]),
    (["images.npy", "--features", "inception", "--inception-weights", "missing.pth"],
     ["missing.pth", "--inception-weights FILE", "--features fashion"]),
    (["images.npy", "--features", "inception", "--inception-weights", features.CLASSIFIER],
     [str(features.CLASSIFIER), "--inception-weights FILE", "--features fashion"]),
    (["images.npy", "--features", "inception", "--inception-weights", "cut.pth"],
     ["cut.pth", "--inception-weights FILE", "--features fashion"]),
    (["images.npy", "--features", "vgg"], ["vgg", "fashion"]),
    ([], ["nothing to do"]),
])
def test_bad_input_is_one_line_that_names_the_way_out(folder, monkeypatch, capsys, random_inception, flags, names):
    save(folder / "float.npy", noise(40).float())
    save(folder / "shape.npy", noise(40, 1, 32)[:, 0])
    save(folder / "three.npy", noise(3))
    save(folder / "colour.npy", noise(40, 3, 32))
    save(folder / "four.npy", noise(40, 4, 8))
    (folder / "cut.npy").write_bytes((folder / "images.npy").read_bytes()[:-100])
    (folder / "text.npy").write_text("not an array")
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "foreign.csv").write_text("epoch,loss\n1,0.5\n")
    own = torch.load(folder / "DDGAN" / "model.pt", weights_only=True)
    own["args"]["data"] = "/home/me/my-pictures"
    (folder / "own").mkdir()
    torch.save(own, folder / "own" / "model.pt")
    if "cut.pth" in flags:
        (folder / "cut.pth").write_bytes(random_inception.read_bytes()[:1_000_000])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, folder, "--samples", 20, "--reference", "real.npy", *flags)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for name in names:
        assert name in err
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "fid"}
    assert kept == before


def test_a_data_folder_that_cannot_be_written_only_costs_the_cache(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    mu, *_ = features.reference_statistics(features.load_features("fashion"), noise(20), tmp_path / "file" / "fid")
    assert mu.shape == (128,) and "not kept" in capsys.readouterr().err


@needs_data
def test_the_classifier_is_trained_and_the_scale_of_the_fid_printed_on_a_few_images(tmp_path, monkeypatch, capsys):
    few = {split: [part[:300] for part in data.load("fashion-mnist", split, HERE / "data", labels=True)]
           for split in ("train", "test")}
    fake = lambda name, split="train", root="data", labels=False: few[split] if labels else few[split][0]
    monkeypatch.setattr(features, "load", fake)
    monkeypatch.setattr(features, "CLASSIFIER", tmp_path / "new.pt")
    assert features.train_classifier() > 0.3  # chance is 0.1
    features.fashion_classifier().load_state_dict(torch.load(tmp_path / "new.pt", weights_only=True))
    monkeypatch.undo()
    monkeypatch.setattr(data, "load", fake)
    fid_scale = runpy.run_path(str(HERE / "experiments/fid_scale.py"))["main"]
    fid_scale.__globals__["HOME"] = tmp_path
    fid_scale([])
    distances = [float(line.split(" (")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(distances) == 7 and distances[1:4] == sorted(distances[1:4])  # more noise is further away


def test_damaged_classifier_and_unreachable_inception_name_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CLASSIFIER", tmp_path / "classifier.pt")
    torch.save({"0.weight": torch.zeros(3)}, features.CLASSIFIER)
    with pytest.raises(cli.BadInput, match=r"classifier.pt.*python features.py.*git checkout weights"):
        features.load_features("fashion")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(features, "INCEPTION", "http://127.0.0.1:9/inception-6726825d.pth")  # nobody listens there
    with pytest.raises(cli.BadInput, match=r"inception-6726825d.pth.*--inception-weights FILE.*--features fashion"):
        features.load_features("inception")
