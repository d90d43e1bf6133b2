"""Metadata of the model's options: their kinds and the formats that hold them.

This module imports no JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# What a different value of an option means for a set of weights.
SHAPE = 'shape'  # Other weight shapes: comparing shapes is enough.
FUNCTION = 'function'  # Another function, perhaps with the same shapes.
INIT = 'init'  # Other initial weights only.
RUNTIME = 'runtime'  # None of these: how it is computed, or dropout.
KINDS = (SHAPE, FUNCTION, INIT, RUNTIME)

FORMATS: tuple[str, ...] = ('rgpt', 'microgpt', 'hf')
# Format -> the values that it can represent.
Holds = Mapping[str, tuple[Any, ...] | None]
ANY = None  # In `Option.holds`: every value.
HF_ONLY: Holds = {'hf': ANY}
EVERYWHERE: Holds = dict.fromkeys(FORMATS, ANY)


@dataclasses.dataclass(frozen=True)
class Option:
  """Metadata of a field of GPTConfig.

  Attributes:
    kind: one of KINDS.
    holds: format -> the values it can represent (ANY: all). An unlisted format
      holds the default of a SHAPE or FUNCTION option alone, and of other
      options none at all: they are left out of its files. The 'hf' format
      writes the options that list it, and hf_code implements them.
    label: name in tables (model cards); '' leaves the option out.
    phrase: text in a line of prose, formatted with all options by name; ''
      leaves the option out.
    always: described even at its default value.
  """

  kind: str
  holds: Holds
  label: str
  phrase: str
  always: bool


def option(
  kind: str,
  default: Any = dataclasses.MISSING,
  *,
  holds: Holds | None = None,
  label: str | None = None,
  phrase: str | None = None,
  always: bool = False,
) -> Any:
  """A dataclass field with an `Option`; arguments are those of `Option`.

  Without `label` and `phrase` SHAPE and FUNCTION options are described by
  name, INIT and RUNTIME options not at all.
  """
  described = kind in (SHAPE, FUNCTION)
  if phrase is None:
    switch = default is False
    phrase = '{name}' if switch else '{name} {value}'
    phrase = phrase if described else ''
  if label is None:
    label = '{name}' if described else ''
  found = Option(kind, dict(holds or {}), label, phrase, always)
  return dataclasses.field(default=default, metadata={'option': found})
