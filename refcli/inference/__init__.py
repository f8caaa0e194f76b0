"""Answering expressions about images: requests, decoding, prediction, postprocessing, output folders."""
