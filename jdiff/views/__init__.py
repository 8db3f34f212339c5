"""Views of an image, which keep independent Gaussian noise unchanged, and components, which add up to the image.

Lengths are in pixels at 64 pixels a side. They are scaled by the shorter side of the image, so one value fits both
stages.
"""

from collections.abc import Callable

from jax.tree_util import Partial

from jdiff.types import View
from jdiff.views.components import bands as bands
from jdiff.views.components import color as color
from jdiff.views.components import grayscale as grayscale
from jdiff.views.components import high_pass as high_pass
from jdiff.views.components import low_and_high as low_and_high
from jdiff.views.components import low_pass as low_pass
from jdiff.views.components import motion as motion
from jdiff.views.components import motion_res as motion_res
from jdiff.views.components import rest as rest
from jdiff.views.components import scale as scale
from jdiff.views.components import unmasked as unmasked
from jdiff.views.failing import blurred as blurred
from jdiff.views.failing import inner_circle_bilinear as inner_circle_bilinear
from jdiff.views.failing import white_balance as white_balance
from jdiff.views.permutations import flip as flip
from jdiff.views.permutations import identity as identity
from jdiff.views.permutations import inner_circle as inner_circle
from jdiff.views.permutations import jigsaw as jigsaw
from jdiff.views.permutations import mirror as mirror
from jdiff.views.permutations import negate as negate
from jdiff.views.permutations import patch_permute as patch_permute
from jdiff.views.permutations import permutation as permutation
from jdiff.views.permutations import pixel_permute as pixel_permute
from jdiff.views.permutations import rotate_180 as rotate_180
from jdiff.views.permutations import rotate_ccw as rotate_ccw
from jdiff.views.permutations import rotate_cw as rotate_cw
from jdiff.views.permutations import skew as skew
from jdiff.views.permutations import square_hinge as square_hinge

VIEWS: dict[str, Callable[..., View]] = {
    "identity": identity,
    "flip": flip,
    "mirror": mirror,
    "rotate_cw": rotate_cw,
    "rotate_ccw": rotate_ccw,
    "rotate_180": rotate_180,
    "negate": negate,
    "skew": skew,
    "patch_permute": patch_permute,
    "pixel_permute": pixel_permute,
    "jigsaw": jigsaw,
    "inner_circle": inner_circle,
    "square_hinge": square_hinge,
}
FAILING: dict[str, Callable[..., View]] = {
    "white_balance": white_balance,
    "blur": blurred,
    "inner_circle_bilinear": inner_circle_bilinear,
}
FACTORISATIONS: dict[str, Callable[..., tuple[Partial, ...]]] = {
    "low and high": low_and_high,
    "three bands": bands,
    "grey and colour": lambda: (grayscale(), color()),
    "motion": lambda: (motion(), motion_res()),
    "scale": lambda: (scale(0.3), scale(0.7)),
}
