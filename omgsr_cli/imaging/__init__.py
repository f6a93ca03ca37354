"""Read image files into tensors and write tensors to image files, in the formats that people use."""

from omgsr_cli.imaging.image import ImageBands, ImageHeader, ImageMetadata, SourceImage, from_samples, luma, to_samples
from omgsr_cli.imaging.read import probe_image, read_image
from omgsr_cli.imaging.resize import FILTERS, ColorUnderAlpha, ResizedRows, resize, resize_bands
from omgsr_cli.imaging.rows import ExtendedRows, Rows, WholeRows, bands_of, extend
from omgsr_cli.imaging.write import FORMAT_LIMITS, check_output, encode_image, output_format, write_image

__all__ = [
    "FILTERS",
    "FORMAT_LIMITS",
    "ColorUnderAlpha",
    "ExtendedRows",
    "ImageBands",
    "ImageHeader",
    "ImageMetadata",
    "ResizedRows",
    "Rows",
    "SourceImage",
    "WholeRows",
    "bands_of",
    "check_output",
    "encode_image",
    "extend",
    "from_samples",
    "luma",
    "output_format",
    "probe_image",
    "read_image",
    "resize",
    "resize_bands",
    "to_samples",
    "write_image",
]
