"""Pictures in and out of files, and sheets of many, by Pillow and ffmpeg. A picture is [h w c] in [-1, 1]."""

from jdiff.images.masks import as_mask, mask_of
from jdiff.images.pixels import Picture, on_white
from jdiff.images.read import Settings, decode, load, load_mask, read_bytes, read_settings
from jdiff.images.shapes import FITS, cropped, fit, square
from jdiff.images.sheet import Sheet, grid, sheet_size, strip
from jdiff.images.values import RANGE, Pictures, as_picture, to_uint8
from jdiff.images.write import LIMITS, check_size, has_video, png, save, save_gif, save_mp4
from jdiff.parts import beside, check_writable

__all__ = [
    "FITS",
    "LIMITS",
    "RANGE",
    "Picture",
    "Pictures",
    "Settings",
    "Sheet",
    "as_mask",
    "as_picture",
    "beside",
    "check_size",
    "check_writable",
    "cropped",
    "decode",
    "fit",
    "grid",
    "has_video",
    "load",
    "load_mask",
    "mask_of",
    "on_white",
    "png",
    "read_bytes",
    "read_settings",
    "save",
    "save_gif",
    "save_mp4",
    "sheet_size",
    "square",
    "strip",
    "to_uint8",
]
