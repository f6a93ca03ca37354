"""Exact tiling of AutoencoderKL: layer by layer in strips of rows, with the statistics of the complete image.

Group norms and the attention of the middle block depend on the complete image, so tiles that are encoded or decoded
independently differ from it and show seams. Here each layer is computed for the complete image, one strip of rows at a
time, before the next layer. Each convolution is computed once, with the rows around the strip that it needs, and each
norm uses the statistics of all rows. Intermediate layers are stored in memory up to a limit, and beyond it in a file.

- `storage`: stores complete layers, in memory or in a file.
- `fields`: layers whose rows can be read.
- `network`: traverses the modules of diffusers.
"""

from omgsr_cli.models.vae_tiling.network import check_tiling, decode_in_strips, encode_in_strips

__all__ = ["check_tiling", "decode_in_strips", "encode_in_strips"]
