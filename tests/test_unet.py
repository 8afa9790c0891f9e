"""Claims of sections 3.1 and 3.2 about the networks."""

import pytest
import torch

from diffusion import Diffusion
from unet import PRESETS, Attention, Critic, Discriminator, Generator, UNet, embed_time, minibatch_stddev, preset

ALPHA_BAR = Diffusion(4).alpha_bar
SMALL = {"width": 16, "mult": (1, 2), "blocks": 1}


def waken(network):
    """Give the layers that start at zero random weights, as a step of training would."""
    for name, p in network.named_parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("channels, size", [(1, (28, 28)), (3, (32, 32)), (2, (8, 12))])
def test_shapes_in_are_shapes_out(fold, channels, size):
    x, t, z = torch.randn(4, channels, *size), torch.tensor([1, 2, 3, 4]), torch.randn(4, 8)
    sizes = {**SMALL, "channels": channels, "fold": fold}
    assert UNet(**sizes)(x, t).shape == x.shape
    x_0 = Generator(ALPHA_BAR, z_dim=8, **sizes, size=size)(x, z, t)
    assert x_0.shape == x.shape and x_0.abs().max() <= 1
    assert Discriminator(**sizes, size=size)(x, x, t).shape == (4,)
    V, C, x_0 = Critic(**sizes)(x, t)
    assert V.shape == (4,) and C.shape == x_0.shape == x.shape
    assert Generator(ALPHA_BAR, z_dim=0, **sizes, size=size)(x, torch.randn(4, 0), t).shape == x.shape


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_runs(name):
    x, t = torch.randn(4, 1, 28, 28), torch.ones(4, dtype=torch.int64)
    assert UNet(**preset(name))(x, t).shape == Generator(ALPHA_BAR, **preset(name))(x, torch.randn(4, 100), t).shape
    assert Discriminator(**preset(name))(x, x, t).shape == (4,)
    assert preset(name, 16)["width"] == 16 and preset(name)["width"] == PRESETS[name]["width"]


def test_every_input_counts():
    """D sees x_{t-1}, x_t and t; G sees x_t, z and t; each sample only its own, or its four's."""
    x, y, z = torch.randn(8, 1, 28, 28), torch.randn(8, 1, 28, 28), torch.randn(8, 8)
    t = torch.ones(8, dtype=torch.int64)
    D, G = waken(Discriminator(**SMALL)), waken(Generator(ALPHA_BAR, z_dim=8, **SMALL))
    critic = waken(Critic(**SMALL))
    outputs = [lambda *inputs, i=i: critic(*inputs)[i] for i in range(3)]
    for network, inputs in ((D, (x, y, t)), (G, (x, z, t)), *((output, (x, t)) for output in outputs)):
        before = network(*inputs)
        for i, changed in enumerate(inputs):
            changed = changed.clone()
            changed[0] += 1
            after = network(*inputs[:i], changed, *inputs[i + 1:])
            assert (after[0] - before[0]).abs().max() > 1e-4, i
            others = slice(4 if network is D else 1, None)
            torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-5)


def test_z_takes_the_place_of_x_t_where_x_t_is_noise_and_no_variance_is_lost():
    G, inputs = Generator(ALPHA_BAR, **SMALL), []
    G.down.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for t in range(1, 5):
        G(torch.randn(40, 1, 28, 28), torch.randn(40, 100), torch.full((40,), t))
    x_t, image_of_z = torch.stack(inputs).var(dim=(1, 3, 4)).T  # (4, 2) -> 2 x (4,)
    torch.testing.assert_close(x_t + image_of_z, torch.ones(4), rtol=0, atol=0.05)
    torch.testing.assert_close(x_t, ALPHA_BAR[1:] / (ALPHA_BAR[1:] + 0.05 * (1 - ALPHA_BAR[1:])), rtol=0.05, atol=0.01)
    assert x_t[0] > 0.9 and x_t[-1] < 0.01


def test_attention_begins_as_its_input_and_a_bias():
    h, attention = torch.randn(2, 16, 7, 7), Attention(16)
    torch.testing.assert_close(attention(h), h + attention.out.bias[:, None, None])


def test_attention_is_a_softmax_over_all_positions():
    x, attention = torch.randn(2, 16, 3, 5), waken(Attention(16))
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)  # 3 x (B, C, H*W)
    weights = (q.mT @ k / 16**0.5).softmax(2)
    torch.testing.assert_close(attention(x), x + attention.out((v @ weights.mT).view_as(x)))


def test_c_psi_is_a_correction_of_x_prev():
    critic, x_prev = Critic(**SMALL), torch.randn(4, 1, 28, 28)
    torch.nn.init.zeros_(critic.out.weight)
    torch.nn.init.zeros_(critic.out.bias)
    V, C, x_0 = critic(x_prev, torch.tensor([1, 2, 3, 4]))
    assert torch.equal(C, x_prev) and not V.any() and not x_0.any()


def test_all_parameters_of_each_network_are_trained():
    x, z, t = torch.randn(4, 1, 28, 28), torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    for network, inputs in ((UNet(**SMALL), (x, t)),
                            (UNet(**SMALL, learned=True), (x, t)),
                            (Generator(ALPHA_BAR, z_dim=8, **SMALL), (x, z, t)),
                            (Discriminator(**SMALL), (x, x, t)),
                            (Critic(**SMALL), (x, t))):
        outputs = waken(network)(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.square().sum() for output in outputs).backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, idle


def test_embedding_of_time_tells_all_steps_apart():
    e = embed_time(torch.arange(1, 1001), 64)
    assert e.shape == (1000, 64) and e.abs().max() <= 1
    distances = torch.cdist(e, e) + 10 * torch.eye(1000)
    assert distances.min() > 0.1


def test_minibatch_stddev_is_that_of_each_four_and_0_for_copies():
    h = torch.randn(8, 3, 5, 5)
    h[4:] = h[4]
    told = minibatch_stddev(h)
    assert told.shape == (8, 1, 5, 5)
    torch.testing.assert_close(told[:4], h[:4].std(0, unbiased=False).mean().expand(4, 1, 5, 5))
    assert (told[4:] <= 1.1e-4).all()  # the root of the 1e-8 that keeps its gradient finite
    with pytest.raises(ValueError, match="a batch of 6: D compares images 4 by 4, so give a multiple of 4"):
        minibatch_stddev(h[:6])


def test_the_discriminator_sees_that_images_are_alike():
    x, t, D = torch.randn(4, 1, 28, 28), torch.ones(4, dtype=torch.int64), Discriminator(**SMALL)
    copies = x[:1].expand(4, -1, -1, -1)
    assert abs(D(x, x, t)[0] - D(copies, copies, t)[0]) > 1e-3
