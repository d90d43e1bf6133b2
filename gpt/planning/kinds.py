"""Kinds of accelerators: peak rates and memory, as their makers state them.

Sources: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, L4 and the
GeForce RTX 4090 (Ada whitepaper), and the DGX A100, H100, H200 and B200 user
guides for links between nodes; Google Cloud's pages on TPU v5e, v5p and v6e.
"""

import dataclasses
import re

from gpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
  """One device of a kind.

  Attributes:
    name: as --kind has it. backend: of gpt.devices.backend_name.
    match: a part of the name JAX gives the device.
    flops: bfloat16 products with float32 sums, dense, FLOP/s.
    memory: bytes. bandwidth: of that memory, bytes/s.
    per_node: devices that `link` connects.
    link: bytes/s from a device to its neighbours, in one direction.
    network: bytes/s of a device's share of its node's network.
  """

  name: str
  backend: str
  match: str
  flops: float
  memory: float
  bandwidth: float
  per_node: int
  link: float
  network: float


T, G = 1e12, 1e9
KINDS = {
  kind.name: kind
  for kind in (
    Kind('a100', 'cuda', 'A100', 312 * T, 80 * G, 2.04 * T, 8, 300 * G, 25 * G),
    Kind('h100', 'cuda', 'H100', 989 * T, 80 * G, 3.35 * T, 8, 450 * G, 50 * G),
    Kind('h200', 'cuda', 'H200', 989 * T, 141 * G, 4.8 * T, 8, 450 * G, 50 * G),
    Kind('b200', 'cuda', 'B200', 2250 * T, 180 * G, 8 * T, 8, 900 * G, 50 * G),
    Kind('l4', 'cuda', 'L4', 121 * T, 24 * G, 0.3 * T, 1, 32 * G, 3 * G),
    Kind(
      'rtx4090', 'cuda', '4090', 165 * T, 24 * G, 1.01 * T, 1, 32 * G, 3 * G
    ),
    # A TPU's links reach its whole slice.
    Kind(
      'v5e', 'tpu', 'v5 lite', 197 * T, 16 * G, 0.82 * T, 256, 100 * G, 3 * G
    ),
    Kind('v5p', 'tpu', 'v5p', 459 * T, 95 * G, 2.77 * T, 8960, 300 * G, 3 * G),
    Kind('v6e', 'tpu', 'v6', 918 * T, 32 * G, 1.64 * T, 256, 200 * G, 3 * G),
  )
}


def find(name: str) -> Kind:
  """The kind of --kind. Raises UserError."""
  if name.lower() not in KINDS:
    raise UserError(f'--kind={name} is not known; allowed: {", ".join(KINDS)}')
  return KINDS[name.lower()]


def of_device(device_kind: str) -> Kind | None:
  """The kind of a jax.Device, by its device_kind; None if it is unknown."""
  for kind in KINDS.values():
    if re.search(rf'\b{kind.match}\b', device_kind):
      return kind
  return None
