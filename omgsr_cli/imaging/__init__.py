"""Read image files into tensors and write tensors to image files, in the formats that people use."""

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
    ImageBands,
    ImageHeader,
    ImageMetadata,
    SourceImage,
    from_samples,
    luma,
    to_samples,
)
from omgsr_cli.imaging.read import probe_image, read_image
from omgsr_cli.imaging.resize import FILTERS, ColorUnderAlpha, ResizedRows, resize, resize_bands
from omgsr_cli.imaging.rows import ExtendedRows, Rows, WholeRows, bands_of, extend
from omgsr_cli.imaging.write import MetadataPolicy, encode_image, write_image

__all__ = [
    "FILTERS",
    "FORMAT_LIMITS",
    "PARTIAL_SUFFIX",
    "ColorUnderAlpha",
    "ExtendedRows",
    "ImageBands",
    "ImageHeader",
    "ImageMetadata",
    "MetadataPolicy",
    "OutputFormat",
    "ResizedRows",
    "Rows",
    "SourceImage",
    "WholeRows",
    "bands_of",
    "check_output",
    "encode_image",
    "extend",
    "format_of_path",
    "from_samples",
    "luma",
    "output_format",
    "output_suffix",
    "probe_image",
    "read_image",
    "read_record",
    "record_of_file",
    "resize",
    "resize_bands",
    "to_samples",
    "write_atomically",
    "write_image",
]
