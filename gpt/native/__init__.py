"""Builds and loads compiled CPU kernels, and has those of training.

The C++ of training is here; the decoder has a package of its own, gpt/kernels,
whose vectors, products and threads both use.
"""
