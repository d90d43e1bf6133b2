"""A family of models: transformers' names on one side, ours on the other.

Two tables state everything, and both directions are derived from them: `keys`
relates entries of config.json to options of GPTConfig, `tensors` relates the
tensors of its files to our parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError
from gpt.formats.architectures import features, rope
from gpt.model import GPTConfig
from gpt.model.config import option_names
from gpt.model.options import FUNCTION, SHAPE

# How a file stores a tensor, beside ours.
OUT_IN = 'out_in'  # A Linear's matrix, [out, in]; ours is [in, out].
SAME = 'same'  # As ours: tables, vectors, and GPT-2's Conv1D [in, out].
# [out, in], the second half of each head negated: NanoChat's RoPE rotates the
# other way, and mirroring one axis of each rotated pair reverses a rotation.
MIRRORED = 'mirrored'

# Files use these for the tanh form of GELU; 'gelu' is the exact function.
ACTIVATIONS = {
  'relu2': 'relu2',
  'relu': 'relu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu_new': 'gelu',
  'gelu_fast': 'gelu',
}
GATED_ACTIVATIONS = {'silu': 'swiglu', 'swish': 'swiglu'}


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(GPTConfig)}


@dataclasses.dataclass(frozen=True)
class Key:
  """An entry of config.json and the option of the same meaning.

  Attributes:
    hf, ours: the two names.
    default: what the class assumes where the entry is missing.
    values: {their value: ours}; None: the values are the same. The first one
      with our value is written.
    null: our value where the entry is null, and the one written as null; None:
      null counts as missing. 0 is our 'derived from others'.
    resolved: attribute of GPTConfig that has the value in force; '': `ours`.
  """

  hf: str
  ours: str
  default: Any
  values: Mapping[str, str] | None = None
  null: Any = None
  resolved: str = ''

  def read(self, config: Mapping[str, Any], where: str) -> Any:
    """Our value of a config.json; UserError if it has no equivalent."""
    value = config.get(self.hf, self.default)
    if value is None:
      value = self.default if self.null is None else self.null
    if self.values is not None:
      if not isinstance(value, str) or value not in self.values:
        raise UserError(
          f'{where}: {self.hf} is {features.quoted(value)}{_exact(value)}, '
          f'which rgpt does not support; allowed: {", ".join(self.values)}'
        )
      return self.values[value]
    kind = type(self.default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number if kind is float else type(value) is kind):
      needed = {int: 'a whole number', float: 'a number', bool: 'true or false'}
      raise UserError(
        f'{where}: {self.hf} is {features.quoted(value)}; {needed[kind]} is '
        'needed'
      )
    return kind(value)

  def write(self, cfg: GPTConfig) -> Any:
    """Their value of a model."""
    value = getattr(cfg, self.resolved or self.ours)
    if self.values is not None:
      return next(name for name, ours in self.values.items() if ours == value)
    return None if self.null is not None and value == self.null else value


def _exact(value: Any) -> str:
  return ' (exact GELU)' if value == 'gelu' else ''


@dataclasses.dataclass(frozen=True)
class Row:
  """A tensor of the files and the parameters it holds.

  Attributes:
    hf: its name without the base model's prefix; '{i}' stands for the layer.
    ours: names of parameters; several are joined along the output axis.
    layout: OUT_IN, SAME or MIRRORED.
    outside: whether the prefix is never put before the name (the head).
  """

  hf: str
  ours: tuple[str, ...]
  layout: str = SAME
  outside: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
  """A model class of transformers.

  Attributes:
    model_type, hf_class: its names in config.json.
    prefix: of the base model's tensors in files of the whole model.
    keys: entries of config.json that are options.
    fixed: entries with the only value we can read; also written.
    written: entries that are written and never read.
    biases: entries that each switch on a part of our `bias`: all or none.
    holds: option -> the values the class can represent; None: any. Of an
      unlisted SHAPE or FUNCTION option it holds the default alone.
    tensors: the rows of its files.
    buffers: regular expression of tensors that hold no weights.
    rotary: whether config.json has RoPE's entries, of rope.py.
    even: whether the class needs n_embd to be a multiple of n_head.
  """

  model_type: str
  hf_class: str
  prefix: str
  keys: tuple[Key, ...]
  holds: Mapping[str, tuple[Any, ...] | None]
  tensors: tuple[Row, ...]
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  biases: tuple[str, ...] = ()
  buffers: str = r'.*\brotary_emb\.inv_freq'
  rotary: bool = True
  even: bool = True

  def read_config(
    self, config: Mapping[str, Any], where: str
  ) -> dict[str, Any]:
    """config.json -> all options of a model, and its vocab_size.

    Args:
      where: the file, for errors.

    Raises:
      UserError: a feature that rgpt lacks, or a wrong value.
    """
    for name, value in self.fixed.items():
      if config.get(name, value) != value:
        raise UserError(
          f'{where}: {name} is {features.quoted(config[name])}, which rgpt '
          f'does not support; allowed: {features.quoted(value)}'
        )
    options = {
      name: allowed[0]
      for name, allowed in self.holds.items()
      if allowed is not None and len(allowed) == 1
    }
    options |= {key.ours: key.read(config, where) for key in self.keys}
    if self.biases:
      options['bias'] = features.one_for_all(config, self.biases, where)
    if self.rotary:
      options |= rope.read_rope(config, where)
    try:
      cfg = GPTConfig(**options)
    except UserError as e:
      raise UserError(f'{where}: {e}') from e
    names = option_names(SHAPE, FUNCTION)
    kept = {name: getattr(cfg, name) for name in ('vocab_size', *names)}
    return {**kept, 'init_std': cfg.init_std, 'dropout': cfg.dropout}

  def write_config(self, cfg: GPTConfig) -> dict[str, Any]:
    """Entries of config.json about the model; `cfg` is one it holds."""
    config = {'model_type': self.model_type, 'architectures': [self.hf_class]}
    config |= {key.hf: key.write(cfg) for key in self.keys}
    config |= dict.fromkeys(self.biases, cfg.bias)
    if self.rotary:
      config |= rope.write_rope(cfg)
    return config | dict(self.fixed) | dict(self.written)

  def misfits(self, cfg: GPTConfig) -> list[str]:
    """Options the class cannot represent, each as a reason."""
    return [
      f'model.{name} is {getattr(cfg, name)!r}, not '
      + ' or '.join(repr(x) for x in self.allowed(name, cfg) or ())
      for name in option_names(SHAPE, FUNCTION)
      if not self.fits(name, getattr(cfg, name), cfg)
    ] + (
      [f'model.n_embd {cfg.n_embd} is no multiple of n_head {cfg.n_head}']
      if self.even and cfg.n_embd % cfg.n_head
      else []
    )

  def fits(self, name: str, value: Any, cfg: GPTConfig) -> bool:
    """Whether the class can represent a value of an option."""
    allowed = self.allowed(name, cfg)
    return allowed is None or value in allowed

  def allowed(self, name: str, cfg: GPTConfig) -> tuple[Any, ...] | None:
    """The values of an option it can represent; None: any."""
    if name in self.holds:
      return self.holds[name]
    if name == 'head_dim':
      return (cfg.n_embd // cfg.n_head,)
    return (_DEFAULTS[name],)
