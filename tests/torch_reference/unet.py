"""The velocity network in PyTorch: guided diffusion (arXiv 2105.05233) with the facts of the FMBoost reference."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution; the time embedding; norm, SiLU, convolution; skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int, scale_shift: bool):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (1 + scale_shift) * outputs))
        norm, conv = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0.0), conv)
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, embedding):
        h = self.in_layers(x)
        e = self.emb_layers(embedding)[:, :, None, None]
        norm, silu, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        return conv(silu(h)) + self.skip_connection(x)


class Attention(nn.Module):
    """Self-attention in both layouts; `interleaved` reinterprets the memory of (3·heads·dim, positions)."""

    def __init__(self, channels: int, heads: int, dim: int, linear: bool, interleaved: bool):
        super().__init__()
        self.heads, self.dim, self.linear, self.interleaved = heads, dim, linear, interleaved
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * heads * dim, 1)
        self.proj_out = nn.Conv1d(heads * dim, channels, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        n = h * w
        qkv = self.qkv(self.norm(x).reshape(b, c, n))
        if self.interleaved:
            q, k, v = qkv.contiguous().view(b, self.heads, n, 3 * self.dim).chunk(3, dim=-1)
        else:
            q, k, v = qkv.view(b, 3, self.heads, self.dim, n).transpose(-1, -2).unbind(1)
        if self.linear:
            summary = k.softmax(dim=-2).transpose(-1, -2) @ v
            out = (q.softmax(dim=-1) / self.dim**0.5) @ summary
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        if not self.interleaved:
            out = out.transpose(-1, -2)
        return x + self.proj_out(out.contiguous().view(b, -1, n)).view(b, c, h, w)


class Down(nn.Module):
    """Half the size: a convolution of stride 2, or averages."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


class Up(nn.Module):
    """Twice the size: nearest neighbours, then a convolution where it is learned."""

    def __init__(self, channels: int, learned: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """The whole network, from the same config as ours."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, blocks = config.model_channels, config.num_res_blocks
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def block(inputs, outputs, factor):
            layers = [Block(inputs, outputs, embedding, config.use_scale_shift_norm)]
            if factor in config.attention_resolutions:
                layers.append(attention(outputs, config.use_linear_attn))
            return layers

        def attention(channels, linear):
            interleaved = config.attention_layout == "interleaved"
            return Attention(channels, config.num_heads, config.dim_head, linear, interleaved)

        pool = config.pool_factor
        first = width if pool > 1 else config.in_channels
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(first, width, 3, padding=1)])])
        widths = [width * multiple for multiple in config.channel_mult]
        skips, channels = [width], width
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList(block(channels, outputs, 2**level)))
                channels = outputs
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Down(channels, config.conv_resample)]))
                skips.append(channels)
        ends = [Block(channels, channels, embedding, config.use_scale_shift_norm) for _ in range(2)]
        self.middle_block = nn.ModuleList([ends[0], attention(channels, False), ends[1]])
        self.output_blocks = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for index in range(blocks + 1):
                layers = block(channels + skips.pop(), outputs, 2**level)
                channels = outputs
                if level and index == blocks:
                    layers.append(Up(channels, config.conv_resample))
                self.output_blocks.append(nn.ModuleList(layers))
        last = width if pool > 1 else config.out_channels
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, last, 3, padding=1))
        if pool > 1:
            self.pool = nn.ModuleDict({"down_conv": nn.Conv2d(config.in_channels, width, pool, stride=pool)})
            up = nn.ConvTranspose2d(width, config.out_channels, pool, stride=pool)
            self.un_pool = nn.ModuleDict({"up_conv": up})

    def forward(self, x, t, context=None):
        h = x if context is None else torch.cat([x, context], dim=1)
        half = self.config.model_channels // 2
        angles = t[:, None] * 10000.0 ** (-torch.arange(half, device=t.device) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        pooled = self.config.pool_factor > 1
        if pooled:
            h = self.pool["down_conv"](h)
        skips = []
        for layers in self.input_blocks:
            h = _through(layers, h, embedding)
            skips.append(h)
        h = _through(self.middle_block, h, embedding)
        for layers in self.output_blocks:
            h = _through(layers, torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.out(h)
        return self.un_pool["up_conv"](h) if pooled else h


def _through(layers, h, embedding):
    for layer in layers:
        h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
    return h
