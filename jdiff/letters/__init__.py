"""Letters: captions and data of the glyph model, its judge, and ambigrams."""

from jdiff.letters.ambigrams import Ambigram as Ambigram
from jdiff.letters.ambigrams import ambigram as ambigram
