"""Self-attention over a complete image, with its queries read strip by strip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.models.base import Workspace
from omgsr_cli.models.vae_tiling.fields import Field, Normalised, store, strips
from omgsr_cli.models.vae_tiling.storage import StoredRows

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class Projected:
    """A linear layer that is applied to the channels of every position."""

    def __init__(self, source: Field, linear: nn.Linear) -> None:
        self.source, self.linear = source, linear
        self.channels, self.height, self.width = linear.out_features, source.height, source.width

    @property
    def read_bytes(self) -> int:
        """See `Field`."""
        return self.source.read_bytes + self.channels * self.width * self.linear.weight.dtype.itemsize

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        projected: Tensor = self.linear(self.source.read(top, bottom).permute(0, 2, 3, 1))
        return projected.permute(0, 3, 1, 2)

    def forget(self, row: int) -> None:
        """See `Field`."""
        self.source.forget(row)


class Attended:
    """The attention in the middle block of diffusers' VAE: every position attends to all positions.

    (x + to_out(softmax(Q K^T / sqrt(d)) V)) / rescale_output_factor, with Q, K, V of the normalised x. The softmax is
    over all keys, for some of the queries at a time.
    Source: LDM, arXiv:2112.10752, Eq. 3 and its published autoencoder.

    Keys and values of the complete image, 2 C values per position, stay on the device if they fit. Otherwise they are
    stored like other layers, and read a few rows at a time.

    Args:
        source: the input, which is also the residual.
        attention: diffusers' module, with a group norm.
        workspace: limits the memory.
    """

    def __init__(self, source: StoredRows, attention: Attention, workspace: Workspace) -> None:
        self.source, self.attention = source, attention
        self.channels, self.height, self.width = source.channels, source.height, source.width
        normalised = Normalised(source, attention.group_norm, hold=True)
        self._queries = Projected(normalised, attention.to_q)
        keys, values = Projected(normalised, attention.to_k), Projected(normalised, attention.to_v)
        size = 2 * source.height * source.width * keys.channels * source.dtype.itemsize
        place = workspace.reserve(size)
        self._seen: _Whole | _InRows
        if place == workspace.device:
            self._seen = _Whole(keys, values, attention.heads, workspace, size)
        else:
            if place is not None:
                workspace.give_back(size, place)
            self._seen = _InRows(store(keys, workspace), store(values, workspace), attention.heads, workspace)

    @property
    def read_bytes(self) -> int:
        """See `Field`."""
        return self._queries.read_bytes + 3 * self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        queries = _heads(_tokens(self._queries.read(top, bottom)), self.attention.heads)
        seen = [self._seen.by(some) for some in torch.split(queries, self._seen.together, dim=1)]
        tokens = torch.cat(seen, dim=1).transpose(0, 1).reshape(queries.shape[1], -1)
        # to_out[1] is dropout, which has no effect in inference.
        rows: Tensor = self.attention.to_out[0](tokens).view(1, bottom - top, self.width, -1).permute(0, 3, 1, 2)
        if self.attention.residual_connection:
            rows = rows + self.source.read(top, bottom)
        return rows.div(self.attention.rescale_output_factor)

    def forget(self, row: int) -> None:
        """See `Field`."""
        self.source.forget(row)
        if row == self.height:
            self._seen.free()


_MOST_PRODUCTS_BYTES = 1 << 31
"""MPS aborts the process for a buffer of twice this size."""


class _Whole:
    """Keys and values of all positions on the device.

    Args:
        keys, values: fields that are computed immediately.
        heads: number of attention heads.
        workspace: workspace in which their memory is reserved.
        size: number of reserved bytes.
    Attributes:
        together: number of queries that are processed at a time.
    """

    def __init__(self, keys: Projected, values: Projected, heads: int, workspace: Workspace, size: int) -> None:
        self._workspace, self._size = workspace, size
        self._keys: Tensor | None = self._compute(keys, heads)
        self._values: Tensor | None = self._compute(values, heads)
        # The kernel for CPUs never stores all products; kernels for other devices may.
        products = 0 if workspace.device.type == "cpu" else 2 * 4 * heads * keys.height * keys.width
        room = min(workspace.strip_bytes, _MOST_PRODUCTS_BYTES)
        self.together = max(1, room // products) if products else keys.height * keys.width

    def _compute(self, field: Projected, heads: int) -> Tensor:
        """Compute all positions, (heads, positions, d)."""
        whole, start = None, 0
        for rows in strips(field, self._workspace):
            tokens = _tokens(rows)
            if whole is None:
                whole = tokens.new_empty(field.height * field.width, field.channels)
            whole[start : start + len(tokens)] = tokens
            start += len(tokens)
        assert whole is not None
        return _heads(whole, heads)

    def by(self, queries: Tensor) -> Tensor:
        """Attend from (heads, n, d) queries to all positions; returns (heads, n, d)."""
        assert self._keys is not None
        assert self._values is not None
        return F.scaled_dot_product_attention(queries[None], self._keys[None], self._values[None])[0]

    def free(self) -> None:
        """Release the reserved memory."""
        if self._keys is not None:
            self._keys = self._values = None
            self._workspace.give_back(self._size, self._workspace.device)


class _InRows:
    """Keys and values as stored layers; the softmax processes a few of their rows at a time.

    When a larger product occurs, the sums of earlier rows are scaled down, so that all are relative to the largest.
    Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867, Algorithm 3.

    Args:
        keys, values: stored layers of all positions.
        heads: number of attention heads.
        workspace: limits the memory of the products.
    Attributes:
        together: largest number of queries that are processed at a time.
    """

    def __init__(self, keys: StoredRows, values: StoredRows, heads: int, workspace: Workspace) -> None:
        self._keys, self._values, self._heads, self._workspace = keys, values, heads, workspace
        # A product, its exponential and one temporary value, in float32.
        self._row_bytes = 3 * 4 * heads * keys.width

    @property
    def together(self) -> int:
        """The number of queries that attend to one row of the layer within the memory of a strip."""
        return max(1, self._workspace.strip_bytes // self._row_bytes)

    def by(self, queries: Tensor) -> Tensor:
        """Same as `_Whole.by`."""
        scaled = queries.float() * queries.shape[-1] ** -0.5
        largest = scaled.new_full((*scaled.shape[:2], 1), -torch.inf)
        total, seen = torch.zeros_like(largest), torch.zeros_like(scaled)
        count = max(1, self._workspace.strip_bytes // (self._row_bytes * queries.shape[1]))
        for top in range(0, self._keys.height, count):
            bottom = min(top + count, self._keys.height)
            keys, values = (
                _heads(_tokens(layer.read(top, bottom)).float(), self._heads) for layer in (self._keys, self._values)
            )
            products = scaled @ keys.transpose(1, 2)
            larger = torch.maximum(largest, products.amax(-1, keepdim=True))
            shares, kept = products.sub_(larger).exp_(), (largest - larger).exp()
            total = total * kept + shares.sum(-1, keepdim=True)
            seen = seen * kept + shares @ values
            largest = larger
        return (seen / total).to(queries.dtype)

    def free(self) -> None:
        """Release both layers."""
        self._keys.forget(self._keys.height)
        self._values.forget(self._values.height)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """Reshape (positions, C) to (heads, positions, C / heads)."""
    return tokens.view(len(tokens), heads, -1).transpose(0, 1)


def _tokens(rows: Tensor) -> Tensor:
    """Reshape (1, C, rows, W) to (rows * W, C)."""
    return rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1])
