"""Networks of many kinds, small and in float64, each with inputs; what a kernel of all of them must cope with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pl_robust.models import SIREN, LeNet, preact_resnet18

Entry = tuple[nn.Module, Tensor]
N = 5

UNKNOWN = {
    "cross_attention": {"attention.in_proj_weight", "attention.in_proj_bias"},  # split for queries and keys
    "language_model": {"positions.weight"},  # looked up once for all samples
    "multiples": {"gain"},  # of a whole matrix
    "scales_and_shifts": {"scalar", "shift"},  # among their uses, a sum of the two
    "shuffled": {"first.weight", "first.bias"},
    "two_orders": {"first.weight", "first.bias", "second.weight", "second.bias"},
    "experts": {"first.weight", "first.bias", "second.weight", "second.bias"},
    "parametrized": {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "3.parametrizations.weight.original",
    },
    "odd_layers": {"prelu.weight", "matrix", "power", "column", "bilinear.weight", "weight"},
    "custom_function": {"weight"},
    "normed_alone": {"weight", "bias"},
    "fourier": {"scale", "shift"},
    "inner_vmap": {"first.bias"},  # a vector of functorch's as bias
    "hooked": {"0.weight"},  # of which a hook takes the sum
    "no_batch_axis": {"weight", "offset"},
}
"""The parameters in whose use there is nothing to be known."""


class Lambda(nn.Module):
    """Parts, and a function of them and of the input."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def images(*shape: int) -> Tensor:
    return torch.randn(N, *shape)


def tokens(length: int = 6, vocabulary: int = 9) -> Tensor:
    return torch.randint(vocabulary, (N, length))


def _settled(net: nn.Module) -> nn.Module:
    """Give norms running statistics, weights and biases that are not those of the start."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and part.running_mean is not None:
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(part, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) and part.weight is not None:
            nn.init.normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias)
    return net


def lenet() -> Entry:
    return LeNet(3, num_classes=3, image_size=8, activation="gelu"), images(3, 8, 8)


def resnet() -> Entry:
    """torchvision's, of three stages of one block each."""
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.layer4, net.fc = nn.Identity(), nn.Linear(256, 3)
    return net, images(3, 16, 16)


def preact_resnet() -> Entry:
    return preact_resnet18(width=2, num_classes=3), images(3, 8, 8)


def vision_transformer() -> Entry:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(8, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3)
    nn.init.normal_(net.heads[0].weight)  # it begins with zeros, behind which there is no gradient
    return net, images(3, 8, 8)


def transformer(batch_first: bool = True) -> Entry:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 7, batch_first=batch_first), 2, enable_nested_tensor=False
    )

    def run(net: Any, x: Tensor) -> Tensor:
        out = net.encoder(x if batch_first else x.transpose(0, 1))
        pooled: Tensor = net.head(out[:, 0] if batch_first else out[0])
        return pooled

    return Lambda(run, encoder=encoder, head=nn.Linear(4, 3)), images(N, 4)  # as many tokens as samples


def cross_attention() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.attention(net.query.expand(len(x), -1, -1), x, x)[0]
        return out.flatten(1)

    return Lambda(run, attention=nn.MultiheadAttention(4, 2, batch_first=True), query=parameter(1, 2, 4)), images(6, 4)


def siren() -> Entry:
    return SIREN(2, 3, hidden_features=6, num_layers=4, w0=20.0, hidden_w0=10.0), images(2)


def multiples() -> Entry:
    """Parameters multiplied by numbers on their way: 0-dimensional tensors, learned ones, one after another."""

    def run(net: Any, x: Tensor) -> Tensor:
        out = F.conv2d(x, -2.0 * net.conv.weight, net.conv.bias * 3).tanh().flatten(1)
        out = out @ (2 * (0.7 * net.weight).T) + 0.3 * net.shift
        out = F.linear(out.tanh(), net.gain * net.weight.T, torch.tensor(0.5).double() * net.bias) + net.bias
        scaled: Tensor = net.head(out.tanh()) * net.scalar
        return scaled

    return Lambda(
        run,
        conv=nn.Conv2d(2, 3, 3),
        weight=parameter(5, 12),
        shift=parameter(5),
        gain=parameter(),
        bias=parameter(12),
        head=nn.Linear(12, 3),
        scalar=parameter(),
    ), images(2, 4, 4)


def tied_mlp() -> Entry:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    net[4].bias = net[0].bias
    return net, images(4)


def transposed_tie() -> Entry:
    """An autoencoder whose decoder is the encoder's transpose."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(net.encoder(x))
        out: Tensor = hidden @ net.encoder.weight
        return F.linear(hidden, net.encoder.weight.t()) + out

    return Lambda(run, encoder=nn.Linear(4, 3)), images(4)


def convolutions() -> Entry:
    """Groups, strides, dilations, all kinds of padding, no bias, in one to three dimensions."""
    flat = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, (3, 2), padding=(2, 1), dilation=(2, 1), groups=6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular", bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", stride=(1, 2)),
        nn.Conv2d(4, 2, 1),
        nn.Flatten(2),
        nn.Conv1d(2, 4, 4, padding="same", dilation=2),
        nn.Tanh(),
        nn.Conv1d(4, 2, 3, stride=3, groups=2),
        nn.Unflatten(2, (2, 1, -1)),
        nn.Conv3d(2, 3, (2, 1, 3), padding=(1, 0, 1)),
        nn.Flatten(),
        nn.Linear(18, 3),
    )
    return flat, images(4, 7, 8)


def transposed_convolutions() -> Entry:
    net = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 3, (2, 3), dilation=(2, 1), bias=False),
        nn.Tanh(),
        nn.Flatten(2),
        nn.ConvTranspose1d(3, 2, 4, stride=3, dilation=2, output_padding=1),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
    )
    return net, images(4, 3, 3)


def norms() -> Entry:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1),
        nn.InstanceNorm2d(4, affine=True),
        nn.GELU(),
        nn.LayerNorm([4, 3, 3]),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.BatchNorm1d(6),
        nn.GELU(),
        nn.LayerNorm(6, bias=False),
        nn.GroupNorm(3, 6),
        *([nn.RMSNorm(6)] if hasattr(nn, "RMSNorm") else []),
        nn.Linear(6, 3),
    )
    return net, images(2, 5, 5)


def frozen_parts() -> Entry:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )
    net[0].requires_grad_(False)
    net[1].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    net[6].weight.requires_grad_(False)
    return net, images(2, 5, 5)


def embedding() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.head(torch.tanh(net.embedding(x).mean(1)))
        return out

    return Lambda(run, embedding=nn.Embedding(9, 4, padding_idx=3), head=nn.Linear(4, 3)), tokens()


def language_model() -> Entry:
    """Token and position embeddings; the decoder is the token embedding."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = net.embedding(x) + net.positions(torch.arange(x.shape[1]))
        return F.linear(torch.tanh(hidden).mean(1), net.embedding.weight, net.bias)

    return Lambda(run, embedding=nn.Embedding(4, 5), positions=nn.Embedding(6, 5), bias=parameter(4)), tokens(6, 4)


def residual_in_place() -> Entry:
    """In-place ReLUs and sums, behind layers whose output they overwrite."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = F.relu_(net.norm(net.first(x)))
        hidden = hidden + F.relu(net.second(hidden), inplace=True)
        rows = net.third(hidden.flatten(2).transpose(1, 2))  # a view of what the layer computes
        rows.sin_()
        rows += 1
        rows[:, 0].mul_(2)
        out: Tensor = net.head(rows.mean(1))
        return out

    return Lambda(
        run,
        first=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        second=nn.Conv2d(4, 4, 3, padding=1),
        third=nn.Linear(4, 5),
        head=nn.Linear(5, 3),
    ), images(2, 4, 4)


def called_often() -> Entry:
    """One convolution and one linear layer used at three depths and in two sizes."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(net.conv(x))
        hidden = torch.tanh(net.conv(F.avg_pool2d(hidden, 2)))
        hidden = torch.tanh(net.conv(hidden)).flatten(2)
        out: Tensor = net.linear(net.linear(hidden).tanh().transpose(1, 2).mean(2)).tanh()
        out = net.linear(out.mean(1, keepdim=True).expand(-1, 4)) * net.scale + net.linear.bias
        return out

    return Lambda(run, conv=nn.Conv2d(3, 3, 3, padding=1), linear=nn.Linear(4, 4), scale=parameter(4)), images(3, 4, 4)


def scales_and_shifts() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        hidden = net.scale * net.conv(x) - net.shift + net.scalar
        hidden = torch.cat([net.extra.expand(len(x), -1, -1, -1), net.rows.repeat(len(x), 1, 1, 1), hidden], 2)
        hidden = torch.add(hidden.tanh(), net.columns, alpha=0.5) * 2 - (net.scalar + net.shift) * 0.1
        return torch.sub(hidden.sum(-1).flatten(1), net.shift.flatten().repeat(15), alpha=3)[:, ::9]

    return Lambda(
        run,
        conv=nn.Conv2d(2, 3, 1, bias=False),
        scale=parameter(3, 1, 1),
        shift=parameter(1, 3, 1, 1),
        scalar=parameter(),
        extra=parameter(1, 3, 1, 4),
        rows=parameter(1, 3, 10, 4),
        columns=parameter(1, 4),
    ), images(2, 4, 4)


def time_first() -> Entry:
    """Linear layers over [T, n, d] and [T n, d], where T = n: the first dimension is not the samples'."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = net.first(x.transpose(0, 1)).tanh()
        hidden = net.norm(net.second(hidden.reshape(-1, 4)).tanh()).view(N, -1, 4)
        out: Tensor = net.third(hidden[0] + 0.1 * hidden[1])
        return out

    return Lambda(
        run, first=nn.Linear(3, 4), second=nn.Linear(4, 4), norm=nn.LayerNorm(4), third=nn.Linear(4, 3)
    ), images(N, 3)


def folded_frames() -> Entry:
    """A convolution of all frames of all films at once."""

    def run(net: Any, x: Tensor) -> Tensor:
        frames = torch.tanh(net.norm(net.conv(x.flatten(0, 1))))
        out: Tensor = net.head(frames.mean((2, 3)).view(len(x), -1))
        return out

    return Lambda(run, conv=nn.Conv2d(2, 3, 3, padding=1), norm=nn.BatchNorm2d(3), head=nn.Linear(6, 3)), images(
        2, 2, 4, 4
    )


def shuffled() -> Entry:
    """A layer that sees the samples in another order than the network, as packed sequences do."""

    def run(net: Any, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        hidden = net.first(x[order]).tanh()[order.argsort()]
        out: Tensor = net.second(hidden)
        return out

    return Lambda(run, first=nn.Linear(3, 4), second=nn.Linear(4, 3)), images(3)


def two_orders() -> Entry:
    """A layer that sees the samples twice, backwards the second time, of which only the second output knows."""

    def run(net: Any, x: Tensor) -> Tensor:
        there, back = net.first(torch.cat([x, x.flip(0)])).tanh().chunk(2)
        return torch.stack([net.second(there)[:, 0], net.second(back)[:, 1].flip(0)], 1)

    return Lambda(run, first=nn.Linear(3, 4), second=nn.Linear(4, 2)), images(3)


def experts() -> Entry:
    """Tokens go to one of three experts each, those of all samples together; none goes to the third."""

    def run(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        chosen = rows[:, 0] > 0
        out = torch.zeros(len(rows), 4, dtype=x.dtype)
        out[chosen] = net.first(rows[chosen])
        out[~chosen] = net.second(rows[~chosen])
        out[rows[:, 0] > 99] = net.idle(rows[rows[:, 0] > 99])
        logits: Tensor = net.head(out.tanh().view(len(x), -1, 4).mean(1))
        return logits

    return Lambda(
        run, first=nn.Linear(3, 4), second=nn.Linear(3, 4), idle=nn.Linear(3, 4), head=nn.Linear(4, 3)
    ), images(6, 3)


def gru() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.head(net.rnn(x)[0][:, -1])
        return out

    return Lambda(run, rnn=nn.GRU(3, 4, 2, batch_first=True), head=nn.Linear(4, 3)), images(4, 3)


def lstm() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.head(net.rnn(x)[0].mean(1))
        return out

    rnn = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    return Lambda(run, rnn=rnn, head=nn.Linear(8, 3)), images(4, 3)


def parametrized() -> Entry:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
        nn.Tanh(),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(12, 5)),
        nn.Tanh(),
        nn.Linear(5, 3),
    )
    return net, images(2, 4, 4)


def odd_layers() -> Entry:
    """Layers without a known structure beside known ones."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = net.prelu(net.linear(x))
        hidden = hidden + torch.einsum("noi,ni->no", net.matrix[None] * hidden[:, None, :1], hidden).tanh()
        hidden = hidden / (1 + net.power.square()) + torch.outer(hidden[:, 0], net.column[:, 0])
        out: Tensor = net.bilinear(hidden, x) + (net.weight @ hidden.T).T
        return out

    return Lambda(
        run,
        linear=nn.Linear(3, 4),
        prelu=nn.PReLU(),
        matrix=parameter(4, 4),
        power=parameter(4),
        column=parameter(4, 1),
        bilinear=nn.Bilinear(4, 3, 3),
        weight=parameter(3, 4),
    ), images(3)


class Cube(torch.autograd.Function):
    """x³ times a weight, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.variable = weight  # as autograd's own leaves name theirs
        return x**3 * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return 3 * x**2 * weight * gradients[0], (x**3 * gradients[0]).sum(0)


def custom_function() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        cubes: Tensor = Cube.apply(net.first(x), net.weight)
        out: Tensor = net.second(cubes)
        return out

    return Lambda(run, first=nn.Linear(3, 4), weight=parameter(4), second=nn.Linear(4, 3)), images(3)


def normed_alone() -> Entry:
    """Batch norm over the tokens of each sample, by statistics of these."""

    def run(net: Any, x: Tensor) -> Tensor:
        rows = [F.batch_norm(sample, None, None, net.weight, net.bias, training=True) for sample in net.first(x)]
        out: Tensor = net.second(torch.stack(rows).tanh().mean(1))
        return out

    return Lambda(run, first=nn.Linear(3, 4), weight=parameter(4), bias=parameter(4), second=nn.Linear(4, 3)), images(
        6, 3
    )


def fourier() -> Entry:
    """Real parameters in complex arithmetic."""

    def run(net: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x) * net.scale + net.shift
        out: Tensor = net.linear(torch.fft.irfft(spectrum, n=x.shape[1]))
        return out

    return Lambda(run, scale=parameter(3), shift=parameter(3), linear=nn.Linear(4, 3)), images(4)


def energy() -> Entry:
    """The force of a learned energy: a gradient in the forward, through the same weights."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        potential = net.last(torch.tanh(net.second(torch.tanh(net.first(x))))).sum()
        (force,) = torch.autograd.grad(potential, x, create_graph=True)
        return force

    return Lambda(run, first=nn.Linear(3, 5), second=nn.Linear(5, 5), last=nn.Linear(5, 1)), images(3)


def inner_vmap() -> Entry:
    def run(net: Any, x: Tensor) -> Tensor:
        hidden: Tensor = torch.func.vmap(net.first)(x.transpose(0, 1))
        out: Tensor = net.second(hidden.tanh().mean(0))
        return out

    return Lambda(run, first=nn.Linear(3, 4), second=nn.Linear(4, 3)), images(N, 3)


def checkpointed() -> Entry:
    from torch.utils.checkpoint import checkpoint

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = checkpoint(nn.Sequential(net.first, nn.Tanh(), net.second), x, use_reentrant=False)
        out: Tensor = net.third(torch.tanh(hidden))
        return out

    return Lambda(run, first=nn.Linear(3, 4), second=nn.Linear(4, 4), third=nn.Linear(4, 3)), images(3)


def hooked() -> Entry:
    """Forward hooks that change what a layer takes and gives."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    net[0].register_forward_pre_hook(lambda layer, given: (2 * given[0],))
    net[0].register_forward_hook(lambda layer, given, out: out.sin_() * layer.weight.sum())
    net[2].register_forward_hook(lambda layer, given, out: out + given[0].sum(1, keepdim=True))
    return net, images(3)


def separate_heads() -> Entry:
    """Each output has its own branch, one of them is constant, and a layer is used by none."""

    def run(net: Any, x: Tensor) -> Tensor:
        return torch.cat([net.first(x), net.second(x.tanh()), torch.ones(len(x), 1, dtype=x.dtype)], 1)

    return Lambda(run, first=nn.Linear(3, 1), second=nn.Linear(3, 1), unused=nn.Linear(3, 3)), images(3)


def one_output() -> Entry:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)), images(3)


def no_batch_axis() -> Entry:
    """Constants of the parameters' size, made before a sample is seen."""

    def run(net: Any, x: Tensor) -> Tensor:
        weight = net.weight * 2 + net.offset
        return F.linear(x, weight, net.offset.sum(1))

    return Lambda(run, weight=parameter(N, 3), offset=parameter(N, 3)), images(3)  # as many rows as samples


BUILDERS: dict[str, Callable[[], Entry]] = {
    build.__name__: build
    for build in (
        lenet,
        resnet,
        preact_resnet,
        vision_transformer,
        transformer,
        cross_attention,
        siren,
        multiples,
        tied_mlp,
        transposed_tie,
        convolutions,
        transposed_convolutions,
        norms,
        frozen_parts,
        embedding,
        language_model,
        residual_in_place,
        called_often,
        scales_and_shifts,
        time_first,
        folded_frames,
        shuffled,
        two_orders,
        experts,
        gru,
        lstm,
        parametrized,
        odd_layers,
        custom_function,
        normed_alone,
        fourier,
        energy,
        inner_vmap,
        checkpointed,
        hooked,
        separate_heads,
        one_output,
        no_batch_axis,
    )
} | {"transformer_time_first": lambda: transformer(batch_first=False)}


def build(name: str) -> Entry:
    """A network of the zoo in eval mode and its inputs, always the same ones."""
    torch.manual_seed(0)
    net, x = BUILDERS[name]()
    return _settled(net).double().eval(), x.double() if x.is_floating_point() else x
