"""Letters: captions and data of the glyph model, its judge, and ambigrams."""
