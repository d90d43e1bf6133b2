"""The type of a model's parameter tree."""

from collections.abc import Mapping
from typing import Any

# {'wte': array, 'block_0': {'wq': array, ...}, ...}, with arrays of JAX or numpy
# or their ShapeDtypeStructs. The values are Any because they may be trees themselves.
Params = Mapping[str, Any]
