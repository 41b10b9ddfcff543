"""The KL autoencoder in PyTorch (arXiv 2112.10752) under CompVis' names, and the block of the TAESD family."""

import torch
from torch import nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    """Norm, SiLU, convolution, twice; skip."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head of full width over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = (q @ k.transpose(1, 2) / x.shape[1] ** 0.5).softmax(dim=-1) @ v
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """Half the size, padded at the far end alone, or twice the size."""

    def __init__(self, channels: int, down: bool):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if down else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, channels: int, attends: bool):
        super().__init__()
        self.block_1, self.block_2 = Block(channels, channels), Block(channels, channels)
        self.attn_1 = Attention(channels) if attends else nn.Identity()

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks, then a change of size under the name that the direction has."""

    def __init__(self, inputs: int, outputs: int, blocks: int, resample: str | None):
        super().__init__()
        self.block = nn.ModuleList([Block(inputs if i == 0 else outputs, outputs) for i in range(blocks)])
        self.resample = resample
        if resample:
            self.add_module(resample, Resample(outputs, resample == "downsample"))

    def forward(self, x):
        for block in self.block:
            x = block(x)
        return self.get_submodule(self.resample)(x) if self.resample else x


class Coder(nn.Module):
    """The parts that encoder and decoder share: ends and middle."""

    def __init__(self, config, inputs: int, first: int, last: int, outputs: int):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, first, 3, padding=1)
        self.mid = Middle(config.channels[-1], config.mid_attention)
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, outputs, 3, padding=1)

    def end(self, x):
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(Coder):
    """Image → moments."""

    def __init__(self, config):
        widths = config.channels
        super().__init__(config, config.image_channels, widths[0], widths[-1], 2 * config.latent_channels)
        before = (widths[0], *widths)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            [Level(before[i], widths[i], config.blocks, "downsample" if i < last else None) for i in range(last + 1)]
        )

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.end(self.mid(x))


class Decoder(Coder):
    """Latent → image; `up` is numbered finest level first and used in reverse."""

    def __init__(self, config):
        widths = config.channels
        super().__init__(config, config.latent_channels, widths[-1], widths[0], config.image_channels)
        before = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            [Level(before[i], widths[i], config.blocks + 1, "upsample" if i else None) for i in range(len(widths))]
        )

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.end(x)


class AutoencoderKL(nn.Module):
    """The whole autoencoder, from the same config as ours."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.quant_convs:
            self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
            self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image):
        moments = self.encoder(image)
        if hasattr(self, "quant_conv"):
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latent):
        return self.decoder(self.post_quant_conv(latent) if hasattr(self, "post_quant_conv") else latent)

    def forward(self, image):
        return self.decode(self.encode(image)[0])


class TinyBlock(nn.Module):
    """TAESD's block: three convolutions about the input, to which the pool branch (if any) is added first."""

    def __init__(self, width: int, pool: bool):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        if pool:
            wide = nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width)
            self.pool = nn.Sequential(*wide, nn.ReLU(), nn.Conv2d(4 * width, width, 1, bias=False))

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)
