"""Exact tiling of AutoencoderKL: layer by layer in strips of rows, with the whole image's statistics.

Every group norm and the attention of the middle block see the whole image, so tiles that are encoded or decoded by
themselves differ from it and show seams. Here a layer is run over the whole image, a strip of rows at a time, before
the next one begins: each convolution is computed once, with the rows around the strip that it needs, and each norm has
the statistics of all rows. The layers between are held in memory up to a bound, and beyond it in a file.

- `storage`: whole layers, in memory or in a file.
- `fields`: layers as something that rows can be read from.
- `network`: walks diffusers' own modules.
"""

from omgsr_cli.models.vae_tiling.network import check_tiling, decode_in_strips, encode_in_strips

__all__ = ["check_tiling", "decode_in_strips", "encode_in_strips"]
