"""Letters: the captions, the data and the judges of the letters model, and ambigrams."""

from jdiff.letters.ambigrams import Ambigram as Ambigram
from jdiff.letters.ambigrams import ambigram as ambigram
