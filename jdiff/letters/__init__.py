"""Letters: captions and data of the glyph model, its judge, and ambigrams."""

from jdiff.letters.ambigram import Ambigram as Ambigram
from jdiff.letters.ambigram import ambigram as ambigram
