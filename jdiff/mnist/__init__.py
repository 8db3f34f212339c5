"""Digits: their data, and the coloured and captioned ones of the mini model."""
