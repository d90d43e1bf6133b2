"""Columns of a slot's cache, read and written where they lie.

A state is donated to every program, so its buffers belong to its holder alone;
copies by numpy take a tenth of the time of a program.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gpt.kernels.calls import KernelState


def read(state: KernelState, slot: int, first: int, n: int) -> np.ndarray:
  """float32[2N, G, n, K]: keys, then values of n columns of a slot."""
  k, v = view(state.k)[slot], view(state.v)[slot]
  panel, S = k.shape[-1], v.shape[-2] * (2 if v.dtype == np.uint32 else 1)
  panels = slice(first // panel, -(-(first + n) // panel))
  start = first - panels.start * panel
  keys = halves(k[:, :, panels]).swapaxes(-1, -2)
  keys = keys.reshape(*keys.shape[:2], -1, keys.shape[-1])
  rows = slice(first // 2, min(-(-(first + n) // 2), S // 2))
  if v.dtype == np.uint32:
    values = halves(v[:, :, rows])[:, :, first - 2 * rows.start :]
  else:
    values = v[:, :, first:]
  return np.concatenate([keys[:, :, start : start + n], values[:, :, :n]])


def write(state: KernelState, slot: int, columns: Sequence[np.ndarray]) -> None:
  """Puts pieces of columns, as `read` returns them, into a slot from 0 on."""
  k, v = view(state.k)[slot], view(state.v)[slot]
  panel = k.shape[-1]
  keys, values = np.split(np.concatenate(columns, axis=2), 2)
  n = keys.shape[2]
  room = [(0, 0), (0, 0), (0, -n % panel), (0, 0)]
  keys = np.pad(keys, room)
  keys = keys.reshape(*keys.shape[:2], -1, panel, keys.shape[-1])
  keys = keys.swapaxes(-1, -2)
  if k.dtype == np.uint32:
    keys = pairs_of(keys)
    values = pairs_of(np.pad(values, [(0, 0), (0, 0), (0, n % 2), (0, 0)]))
  k[:, :, : keys.shape[2]] = keys
  v[:, :, : values.shape[2]] = values


def view(x: jax.Array) -> np.ndarray:
  """The array's own memory; valid until a program takes the array."""
  jax.block_until_ready(x)
  kind = ctypes.c_char * x.nbytes
  memory: Any = kind.from_address(x.unsafe_buffer_pointer())
  return np.frombuffer(memory, x.dtype).reshape(x.shape)


def halves(x: np.ndarray) -> np.ndarray:
  """uint32[.., n, m] pairs of bfloat16 as float32[.., 2n, m]; else x."""
  if x.dtype != np.uint32:
    return x
  out = np.empty((*x.shape[:-2], x.shape[-2], 2, x.shape[-1]), np.uint32)
  out[..., 0, :] = x << 16
  out[..., 1, :] = x & np.uint32(0xFFFF0000)
  return out.view(np.float32).reshape(*x.shape[:-2], -1, x.shape[-1])


def pairs_of(x: np.ndarray) -> np.ndarray:
  """The inverse of `halves`; x holds values of bfloat16."""
  bits = np.ascontiguousarray(x).view(np.uint32)
  return bits[..., ::2, :] >> 16 | bits[..., 1::2, :]
