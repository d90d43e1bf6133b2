"""The entries of a JSON object, checked as they are taken.

    fields = read_fields('W/config.json')
    model = fields.mapping('model')
    n_layer = model.integer('n_layer', 1, 4096)
    theta = model.number('rope_theta', 1, 1e9, default=10_000.0)

Every fault is a UserError that names file, field, what was found and what is
allowed. An entry that is null counts as missing.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gpt.errors import UserError, quoted
from gpt.files import MAX_JSON_BYTES, read_json

REQUIRED: Any = object()
MAX_TEXT = 1 << 20  # Characters; chat templates have tens of thousands.


class Fields:
  """A JSON object and where it stands.

  Every method takes the name of an entry and returns its value, or `default`
  if the entry is missing or null; without a default it must be there.

  Args:
    values: the object.
    where: its file, and the path of names within it, for errors.

  Raises:
    UserError: `values` is no object; by the methods, an entry that is missing
      or not allowed.
  """

  def __init__(self, values: Any, where: str | os.PathLike[str]) -> None:
    if not isinstance(values, Mapping):
      raise UserError(
        f'{where} is {quoted(values)}; allowed: a JSON object {{...}}'
      )
    self.values = values
    self.where = os.fspath(where)

  def __contains__(self, name: str) -> bool:
    return self.values.get(name) is not None

  def fault(self, name: str, allowed: str) -> UserError:
    """The error for an entry that breaks a rule of the caller's own."""
    if name not in self:
      return UserError(f'{self.where}: {name} is missing; needed: {allowed}')
    found = quoted(self.values[name])
    return UserError(f'{self.where}: {name} is {found}; allowed: {allowed}')

  def _take(
    self,
    name: str,
    default: Any,
    good: Callable[[Any], bool],
    allowed: str,
  ) -> Any:
    value = self.values.get(name)
    if value is None and default is not REQUIRED:
      return default
    if value is None or not good(value):
      raise self.fault(name, allowed)
    return value

  def integer(
    self, name: str, low: int, high: int, default: Any = REQUIRED
  ) -> int:
    """A whole number, low <= value <= high."""
    return self._take(
      name,
      default,
      lambda x: type(x) is int and low <= x <= high,
      f'a whole number from {low} to {high}',
    )

  def number(
    self, name: str, low: float, high: float, default: Any = REQUIRED
  ) -> float:
    """A number, low <= value <= high, as a float; never nan."""
    found = self._take(
      name,
      default,
      lambda x: type(x) in (int, float) and low <= x <= high,
      f'a number from {low:g} to {high:g}',
    )
    return found if found is default else float(found)

  def flag(self, name: str, default: Any = REQUIRED) -> bool:
    """true or false."""
    return self._take(
      name, default, lambda x: isinstance(x, bool), 'true or false'
    )

  def text(
    self, name: str, default: Any = REQUIRED, *, most: int = MAX_TEXT
  ) -> str:
    """A string of at most `most` characters, none of them NUL."""
    return self._take(
      name,
      default,
      lambda x: isinstance(x, str) and len(x) <= most and '\0' not in x,
      f'a string of at most {most} characters without NUL',
    )

  def choice(
    self, name: str, allowed: Collection[str], default: Any = REQUIRED
  ) -> str:
    """One of the strings `allowed`."""
    return self._take(
      name,
      default,
      lambda x: isinstance(x, str) and x in allowed,
      ', '.join(map(repr, allowed)),
    )

  def items(
    self,
    name: str,
    default: Any = REQUIRED,
    *,
    of: type | None = None,
    most: int = 1 << 24,
  ) -> list[Any]:
    """An array of at most `most` values, all of the type `of` if given."""
    found = self._take(
      name,
      default,
      lambda x: isinstance(x, list) and len(x) <= most,
      f'an array of at most {most} values',
    )
    if of is not None and found is not default:
      for i, x in enumerate(found):
        if type(x) is not of:
          raise UserError(
            f'{self.where}: {name}[{i}] is {quoted(x)}; allowed: {_NAMES[of]}'
          )
    return found

  def mapping(self, name: str, default: Any = REQUIRED) -> 'Fields':
    """An object, as Fields of its own; `default` is a plain dict."""
    found = self._take(
      name, default, lambda x: isinstance(x, Mapping), 'an object {...}'
    )
    return Fields(found, f'{self.where}: {name}')


_NAMES = {
  str: 'a string',
  int: 'a whole number',
  float: 'a number with a point',
  bool: 'true or false',
  dict: 'an object {...}',
  list: 'an array [...]',
}


def read_fields(
  path: str | os.PathLike[str],
  *,
  max_bytes: int = MAX_JSON_BYTES,
  infinite: bool = False,
) -> Fields:
  """Fields of a JSON file, read by gpt.files.read_json."""
  return Fields(read_json(path, max_bytes=max_bytes, infinite=infinite), path)
