"""The type of a model's parameter tree."""

from collections.abc import Mapping
from typing import Any

# {'wte': array, 'block_0': {'wq': array, ...}, ...}, of JAX or numpy arrays or
# their ShapeDtypeStructs. Any, because a value is an array or another tree.
Params = Mapping[str, Any]
