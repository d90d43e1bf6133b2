"""Compiled CPU kernels: building them, loading them, and those of training.

The sources are C++ in gpt/kernels; the decoder's calls are there, too.
"""
