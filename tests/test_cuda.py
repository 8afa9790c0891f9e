"""On CUDA without a GPU: torch's FakeTensorMode raises where tensors of two devices meet or a value is waited for."""

import sys

import pytest
import torch
from conftest import HOME
from torch._subclasses.fake_tensor import FakeTensorMode

import train_ddgan
import train_ddpm
import train_siddm
from data import normalize, random_batch
from diffusion import SCHEDULES, Diffusion
from losses import GENERATOR_LOSSES, OBJECTIVES, decoder_nll, gradient_penalty, prior_kl, r1_penalty, weighted_loss
from model import PREDICTIONS, Model
from unet import Critic, Discriminator, Generator, UNet

sys.path.insert(0, str(HOME / "experiments"))
import ablation

SIZES = {"width": 8, "mult": (1, 2), "blocks": 1, "fold": 2}


class Optimizer:
    """Its place in a training step: fake tensors take no fused steps."""

    def zero_grad(self):
        pass

    def step(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    """build(network class, ...) makes a network on a fake GPU; within the test every tensor is fake."""
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, **_: (torch.zeros_like(inputs),))
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, inputs=None: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)  # fake weights cannot be swapped
    with FakeTensorMode():
        def build(kind, **sizes):
            torch.set_default_device("cuda")
            try:
                if kind is Generator:
                    sizes = {"alpha_bar": Diffusion(4, device="cuda").alpha_bar, **sizes}
                return kind(**SIZES, **sizes)
            finally:
                torch.set_default_device(None)

        yield build


def x_0():
    return torch.empty(4, 1, 28, 28, device="cuda")


def on_the_gpu(values):
    """Whether all of a list of tensors, or of a step's dict of tensors and pairs of tensors, are there."""
    values = list(values.values()) if isinstance(values, dict) else values
    tensors = [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]
    return len(tensors) > 0 and all(tensor.device.type == "cuda" for tensor in tensors)


def test_the_mode_notices_two_devices(fake):
    with pytest.raises(RuntimeError, match="device"):
        x_0() + torch.empty(4, 1, 28, 28)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        bool(x_0().sum() > 0)


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_of_the_ddpm_keeps_to_its_device(fake, amp):
    diffusion = Diffusion(4, device="cuda")
    assert on_the_gpu(train_ddpm.train_step(fake(UNet), Optimizer(), x_0(), diffusion, amp))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("generator_loss", GENERATOR_LOSSES.values())
def test_a_step_of_every_objective_keeps_to_its_device(fake, name, generator_loss):
    for T in (1, 4):
        G, D = fake(Generator, z_dim=8), fake(Discriminator, reg=True)
        assert on_the_gpu(train_ddgan.train_step(
            G, D, Optimizer(), Optimizer(), x_0(), Diffusion(T, device="cuda"), 8, OBJECTIVES[name], generator_loss,
            r1=1.0, gp=1.0, drift=1.0, reg=1.0, energy=1.0, amp=True))


def test_a_step_of_siddm_keeps_to_its_device(fake):
    diffusion = Diffusion(4, "cosine", device="cuda")
    assert on_the_gpu(train_siddm.train_step(
        fake(Generator, z_dim=8), fake(Critic), Optimizer(), Optimizer(), x_0(), diffusion, 8))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_batch_keeps_to_its_device(fake, mixed):
    images = torch.empty(9, 3, 28, 28, dtype=torch.uint8, device="cuda")
    assert on_the_gpu([normalize(random_batch(images, 4, mixed))])


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("loss", ["simple", "weighted", "bound"])
def test_a_step_of_the_ablation_keeps_to_its_device(fake, predict, loss):
    network, diffusion = fake(UNet, learned=loss == "bound"), Diffusion(4, device="cuda")
    assert on_the_gpu(ablation.train_step(network, Optimizer(), x_0(), diffusion, predict, loss, amp=True))


def test_penalties_and_the_bounds_terms_keep_to_their_device(fake):
    D, diffusion, x, t = fake(Discriminator), Diffusion(4, device="cuda"), x_0(), torch.full((4,), 2, device="cuda")
    assert on_the_gpu([r1_penalty(D, x, x, t), gradient_penalty(D, x, x, x, t), prior_kl(x, diffusion),
                       weighted_loss(x, x, t, diffusion), decoder_nll(x, x, diffusion.beta[1])])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sample", [
    lambda d, f, G, x: d.ancestral(f, x),
    lambda d, f, G, x: d.ancestral(f, x, "beta", clip=False),
    lambda d, f, G, x: d.ddim(f, x),
    lambda d, f, G, x: d.ddim(f, x, eta=0.5),
    lambda d, f, G, x: d.strided(2).ancestral(f, x),
    lambda d, f, G, x: d.strided(2).ddim(f, x),
    lambda d, f, G, x: d.ddgan(G, x, 8)])
def test_every_sampler_keeps_to_its_device_and_waits_for_nothing(fake, sample, schedule):
    assert on_the_gpu([sample(Diffusion(4, schedule, device="cuda"), fake(UNet), fake(Generator, z_dim=8), x_0())])


@pytest.mark.parametrize("method", ["DDPM", "DDGAN"])
def test_a_models_predictions_keep_to_their_device(fake, method):
    latent = {"z_dim": 8} if method == "DDGAN" else {}
    model = Model({"method": method, "T": 4, "schedule": "vp", "shape": (1, 28, 28), "network": {**SIZES, **latent}})
    model.network, model.diffusion, model.device = (fake({"DDPM": UNet, "DDGAN": Generator}[method], **latent),
                                                    Diffusion(4, device="cuda"), torch.device("cuda"))
    assert on_the_gpu([model.predict_x_0(x_0(), torch.full((4,), 2, device="cuda")), model.sampler()[0](x_0())])
