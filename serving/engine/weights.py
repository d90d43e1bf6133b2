"""Weights on the device, with a fingerprint that identifies them."""

import dataclasses

import jax

from gpt.model.params import Params
from gpt.runs.load import LoadedModel, params_sha256


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """One set of weights; a job keeps the set it started with.

  Attributes:
    params: tree of arrays on the device.
    fingerprint: differs between sets; clients see it as system_fingerprint.
  """

  params: Params
  fingerprint: str


def to_device(loaded: LoadedModel) -> Weights:
  """Copies the params of a loaded model to the first device."""
  fingerprint = params_sha256(loaded.params)[:12]
  params = jax.device_put(loaded.params, jax.devices()[0])
  return Weights(params, f'rgpt-{loaded.step}-{fingerprint}')
