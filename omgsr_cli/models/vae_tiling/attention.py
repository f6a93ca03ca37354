"""Self-attention over a whole picture, its queries read strip by strip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.models.vae_tiling.fields import Field, Normalised, strips
from omgsr_cli.models.vae_tiling.storage import StoredRows, Workspace

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class Projected:
    """A linear layer over the channels of every position."""

    def __init__(self, source: Field, linear: nn.Linear) -> None:
        self.source, self.linear = source, linear
        self.channels, self.height, self.width = linear.out_features, source.height, source.width

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        return self.source.read_bytes + self.channels * self.width * self.linear.weight.dtype.itemsize

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        projected: Tensor = self.linear(self.source.read(top, bottom).permute(0, 2, 3, 1))
        return projected.permute(0, 3, 1, 2)

    def forget(self, row: int) -> None:
        """As for `Field`."""
        self.source.forget(row)


class Attended:
    """Diffusers' attention of the VAE's middle block: every position sees all others.

    (x + to_out(softmax(Q K^T / sqrt(d)) V)) / rescale_output_factor with Q, K, V of the normalised x; the softmax is
    over all keys at once, for some of the queries at a time.
    Source: LDM, arXiv:2112.10752, Eq. 3 and its published autoencoder.

    Keys and values of the whole picture lie on the device: 2 C values for each of the layer's positions.

    Args:
        source: what is attended to, and added again.
        attention: of diffusers, with a group norm.
        workspace: bounds the queries that are computed together.
    """

    def __init__(self, source: StoredRows, attention: Attention, workspace: Workspace) -> None:
        self.source, self.attention = source, attention
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self._workspace = workspace
        normalised = Normalised(source, attention.group_norm, hold=True)
        self._queries = Projected(normalised, attention.to_q)
        positions = source.height * source.width
        self._kept_bytes = 2 * positions * attention.to_k.out_features * source.dtype.itemsize
        self._place = workspace.reserve(self._kept_bytes)
        self._keys: Tensor | None = self._whole(Projected(normalised, attention.to_k))
        self._values: Tensor | None = self._whole(Projected(normalised, attention.to_v))

    def _whole(self, field: Projected) -> Tensor:
        """All positions of a field, (heads, positions, d)."""
        whole, start = None, 0
        for rows in strips(field, self._workspace):
            tokens = _tokens(rows)
            if whole is None:
                whole = tokens.new_empty(field.height * field.width, field.channels)
            whole[start : start + len(tokens)] = tokens
            start += len(tokens)
        assert whole is not None
        return self._heads(whole)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(len(tokens), self.attention.heads, -1).transpose(0, 1)

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        return self._queries.read_bytes + 3 * self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        assert self._keys is not None
        assert self._values is not None
        queries = self._heads(_tokens(self._queries.read(top, bottom)))
        seen = [
            F.scaled_dot_product_attention(some[None], self._keys[None], self._values[None])[0]
            for some in torch.split(queries, self._together(), dim=1)
        ]
        tokens = torch.cat(seen, dim=1).transpose(0, 1).reshape(queries.shape[1], -1)
        # The second part of to_out is dropout, which does nothing here.
        rows: Tensor = self.attention.to_out[0](tokens).view(1, bottom - top, self.width, -1).permute(0, 3, 1, 2)
        if self.attention.residual_connection:
            rows = rows + self.source.read(top, bottom)
        return rows.div(self.attention.rescale_output_factor)

    def _together(self) -> int:
        """How many queries at a time; CPUs have a kernel that never holds all products, elsewhere they may be held."""
        if self._workspace.device.type == "cpu":
            return self.height * self.width
        products = 2 * 4 * self.attention.heads * self.height * self.width
        return max(1, self._workspace.strip_bytes // products)

    def forget(self, row: int) -> None:
        """As for `Field`."""
        self.source.forget(row)
        if row == self.height:
            self._keys = self._values = None
            if self._place is not None:
                self._workspace.give_back(self._kept_bytes, self._place)


def _tokens(rows: Tensor) -> Tensor:
    """(1, C, rows, W) to (rows * W, C)."""
    return rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1])
