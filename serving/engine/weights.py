"""Weights on the device, with a fingerprint that identifies them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from gpt.model.params import Params
from gpt.runs.load import LoadedModel, params_sha256
from serving.engine.programs import Programs


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """One set of weights; a job keeps the set it started with.

  Attributes:
    params: tree of arrays on the device.
    fingerprint: differs between sets; clients see it as system_fingerprint.
  """

  params: Params
  fingerprint: str


def to_device(
  loaded: LoadedModel,
  base: Params | None = None,
  placed: Weights | None = None,
) -> Weights:
  """Copies the params of a loaded model to the first device.

  Args:
    base, placed: a base and its copy on the device; arrays that `loaded`
      shares with the base are not copied again.
  """
  fingerprint = f'rgpt-{loaded.step}-{params_sha256(loaded.params)[:12]}'
  device = jax.devices()[0]
  if placed is None:
    return Weights(jax.device_put(loaded.params, device), fingerprint)
  params = jax.tree.map(
    lambda x, old, copy: copy if x is old else jax.device_put(x, device),
    loaded.params,
    base,
    placed.params,
  )
  return Weights(params, fingerprint)


def prepared(
  programs: Programs,
  weights: Weights,
  adapters: Mapping[str, Weights] | None = None,
) -> tuple[Weights, dict[str, Weights]]:
  """Weights and adapters as the programs take them: seconds of work."""
  known: dict[tuple, Any] = {}

  def one(found: Weights) -> Weights:
    params = programs.prepare(found.params, known)
    return dataclasses.replace(found, params=params)

  first = one(weights)
  return first, {name: one(found) for name, found in (adapters or {}).items()}
