"""The weights of a run that has not been trained: one safetensors file.

    W/checkpoints/latest/STEP/weights.safetensors

An import writes its weights here one tensor at a time, with little memory, and
without the moments of an optimizer: those are zeros until it trains. Matrices
are [in, out], as in the parameter tree; names are 'block_0/wq'.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from gpt.files import replacing
from gpt.formats.tensor_files import LENGTH_BYTES, TensorFiles, read_header
from gpt.model.params import Params
from gpt.runs.config_file import flatten

FILE = 'weights.safetensors'
# By numpy's names. More are not needed: see model.param_dtype.
NAMES = {'float32': 'F32', 'bfloat16': 'BF16'}
ALIGNED = 64  # Bytes; XLA uses arrays that begin at multiples as they are.


def write(directory: str | os.PathLike, params: Params) -> None:
  """Writes the file; raises OSError."""
  flat = {k.replace('.', '/'): x for k, x in flatten(params).items()}
  header: dict[str, Any] = {'__metadata__': {'format': 'np'}}
  end = 0
  for name, x in flat.items():
    header[name] = {
      'dtype': NAMES[x.dtype.name],
      'shape': list(x.shape),
      'data_offsets': [end, end + x.nbytes],
    }
    end += x.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-(len(text) + LENGTH_BYTES) % ALIGNED)
  with replacing(pathlib.Path(directory) / FILE) as file:
    file.write(len(text).to_bytes(LENGTH_BYTES, 'little') + text)
    for x in flat.values():
      file.write(np.ascontiguousarray(x).view(np.uint8).data)


def read(directory: str | os.PathLike) -> dict[str, Any]:
  """The parameter tree, numpy arrays.

  Raises:
    UserError: a file that is missing or damaged.
  """
  files = TensorFiles(read_header(pathlib.Path(directory) / FILE))
  params: dict[str, Any] = {}
  for name in files.shapes:
    *groups, leaf = name.split('/')
    place = params
    for group in groups:
      place = place.setdefault(group, {})
    place[leaf] = files.read(name)
  return params
