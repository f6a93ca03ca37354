"""Files <-> tensors, for images as people have them."""

from omgsr_cli.files.atomic import PARTIAL_SUFFIX, write_atomically
from omgsr_cli.files.records import read_record, record_of_file
from omgsr_cli.imaging.formats import (
    FORMAT_LIMITS,
    OutputFormat,
    check_output,
    format_of_path,
    output_format,
    output_suffix,
)
from omgsr_cli.imaging.image import (
    Picture,
    PictureBands,
    PictureHeader,
    PictureMetadata,
    from_samples,
    luma,
    to_samples,
)
from omgsr_cli.imaging.read import probe_picture, read_picture
from omgsr_cli.imaging.resize import FILTERS, ColorUnderAlpha, ResizedRows, resize, resize_bands
from omgsr_cli.imaging.rows import ExtendedRows, Rows, WholeRows, bands_of, extend
from omgsr_cli.imaging.write import MetadataPolicy, encode_picture, write_picture

__all__ = [
    "FILTERS",
    "FORMAT_LIMITS",
    "PARTIAL_SUFFIX",
    "ColorUnderAlpha",
    "ExtendedRows",
    "MetadataPolicy",
    "OutputFormat",
    "Picture",
    "PictureBands",
    "PictureHeader",
    "PictureMetadata",
    "ResizedRows",
    "Rows",
    "WholeRows",
    "bands_of",
    "check_output",
    "encode_picture",
    "extend",
    "format_of_path",
    "from_samples",
    "luma",
    "output_format",
    "output_suffix",
    "probe_picture",
    "read_picture",
    "read_record",
    "record_of_file",
    "resize",
    "resize_bands",
    "to_samples",
    "write_atomically",
    "write_picture",
]
