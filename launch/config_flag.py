"""The flag --config=FILE.py and its overrides (--config.lr=1e-5).

ml_collections answers most mistakes in them with a traceback. So they are
checked here first, against the keys and types of the config file, and handed
over in one canonical form.
"""

import difflib
import importlib.util
import os
import pathlib
import re
import traceback
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from gpt.errors import UserError
from gpt.model.config import option_names
from gpt.model.options import FUNCTION, RUNTIME, SHAPE
from gpt.runs.config_file import flatten, plain
from launch.suggest import closest, did_you_mean

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # --help lists them under the launcher.

# Flag name -> default path, keys of the file in use, whether one was named;
# and the arguments config_flags gets to see.
_defaults: dict[str, str | None] = {}
_keys: dict[str, dict] = {}
_named: dict[str, bool] = {}
_argv: list[str] = []
# Flags that are short for a --config or one of its keys, once defined.
SHORT = {'budget': 'config=configs/budget.py:', 'data': 'config.data.path='}
_short: list[str] = []


def define(
  default: str | None = None, name: str = 'config'
) -> flags.FlagHolder:
  """Defines `--config=FILE.py[:argument]` and its overrides.

  Args:
    default: path of the config used when none is given; None: one must be.
    name: the flag's name.

  Returns:
    A flag holder; its value is a locked, typed ConfigDict. Paths that do not
    exist in the working directory are looked up beside the configs package.
  """
  _defaults[name] = default
  return config_flags.DEFINE_config_file(
    name,
    None,
    f'Config file, and --{name}.KEY=VALUE for any key in it.'
    + (f' Default: {default}.' if default else ''),
    lock_config=True,
    sys_argv=_argv,
  )


def define_short() -> None:
  """Defines --budget=TIME and --data=FILES beside --config."""
  for name, help in {
    'budget': 'Wall time, such as 90s, 10m or 8h: short for '
    '--config=configs/budget.py:TIME, which chooses all else.',
    'data': 'Text files or globs: short for --config.data.path=FILES.',
  }.items():
    flags.DEFINE_string(name, None, help)
    _short.append(name)


def _spelt_out(args: list[str]) -> list[str]:
  """Arguments with --budget and --data replaced by what they stand for.

  Raises:
    UserError: --budget beside --config.
  """
  end = args.index('--') if '--' in args else len(args)
  found, queue = [], args[:end]
  while queue:
    word = queue.pop(0)
    flag, equals, value = word.partition('=')
    name = flag.lstrip('-')
    if flag not in (f'-{name}', f'--{name}') or name not in _short:
      found.append(word)
      continue
    if not equals:
      if not queue:
        raise UserError(f'--{name} needs a value: --{name}=...')
      value = queue.pop(0)
    if name == 'budget' and any(
      re.match('--?config(=|$)', other) for other in args[:end]
    ):
      raise UserError(
        '--budget chooses the whole config: leave out --config, or write '
        f'--config=configs/budget.py:{value}'
      )
    found.append(f'--{SHORT[name]}{value}')
  return found + args[end:]


def is_named(name: str = 'config') -> bool:
  """Whether the command line has --config=FILE."""
  return _named[name]


def of_run(saved: dict | None, name: str = 'config') -> ConfigDict:
  """The config of a command whose run may exist already.

  Args:
    saved: the run's own configuration (nested dicts), or None.
    name: a config flag with a default.

  Returns:
    Locked: the run's configuration where there is one and no --config was
    given, else the flag's; with the overrides of the command line.
  """
  if saved is None or _named[name]:
    return FLAGS[name].value
  # Keys that are newer than the run have their defaults.
  config = load_config(_defaults[name])
  try:
    config.update(saved)
  except (TypeError, ValueError, KeyError) as e:
    raise UserError(
      f'the config.json of the run has a value of the wrong type: {e}'
    ) from e
  config.update_from_flattened_dict(FLAGS[name].override_values)
  return config.lock()


def take_over_model(config: ConfigDict, saved: dict) -> None:
  """Sets what decides which weights fit: options of the model, the tokenizer.

  What the command line sets stays.

  Args:
    saved: the configuration of a run, nested dicts.
  """
  names = option_names(SHAPE, FUNCTION)
  keys = [*(f'model.{name}' for name in names), 'data.tokenizer']
  given, known = flatten(saved), flatten(plain(config))
  for key in keys:
    if key in given and key in known and not is_given(key):
      config.update_from_flattened_dict({key: given[key]})


def chosen_keys(defaults: str, name: str = 'config') -> dict[str, object]:
  """{'lr': 1e-4, ...}: what --config=FILE and overrides set.

  Args:
    defaults: path of a config; keys of FILE that have its values are not set,
      nor are those of its model's shape.
  """
  given, usual = (
    flatten(plain(config))
    for config in (FLAGS[name].value, load_config(defaults))
  )
  free = {f'model.{name}' for name in option_names(RUNTIME)}
  shape = {k for k in given if k.startswith('model.') and k not in free}
  changed = {
    k: v for k, v in given.items() if usual.get(k) != v and k not in shape
  }
  return changed | dict(FLAGS[name].override_values)


def is_given(key: str, name: str = 'config') -> bool:
  """Whether the command line has --config.KEY=..."""
  return key in FLAGS[name].override_values


def canonical(program: str, args: list[str]) -> list[str]:
  """Arguments with every config flag checked and in its canonical form.

  Raises:
    UserError: a config file, a key or a value that cannot be used.
  """
  args = _spelt_out(args)
  for name, default in _defaults.items():
    args = _canonical(args, name, default)
  _argv[:] = [program, *args]
  return args


def overrides() -> set[str]:
  """{'config.lr', ...}: every override that the config files in use allow."""
  return {f'{name}.{key}' for name, keys in _keys.items() for key in keys}


def is_override(name: str) -> bool:
  """Whether a flag is of the form config.KEY or noconfig.KEY."""
  return any(
    name.removeprefix('no').startswith(f'{flag}.') for flag in _defaults
  )


def load_config(path: str) -> ConfigDict:
  """The ConfigDict of `FILE.py` or `FILE.py:argument`.

  Raises UserError if there is no such file or its get_config() fails.
  """
  path, _, argument = str(path).partition(':')
  file = find_config(path)
  spec = importlib.util.spec_from_file_location('_rgpt_config', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_config = module.get_config
    config = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except Exception as e:
    here = [
      f'line {frame.lineno}: '
      for frame in traceback.extract_tb(e.__traceback__)
      if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    line = here[-1] if here else ''
    text = ' '.join(str(e).split())
    raise UserError(
      f'config file {path} failed: {line}{type(e).__name__}: {text}'
    ) from e
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'config file {path}: get_config() returned '
      f'{type(config).__name__}, not a ConfigDict'
    )
  return config


def find_config(path: str) -> str:
  """The file of a path or of a preset's name.

  `path` itself, else relative to the directory that holds `configs`, else
  `configs/PATH.py`.

  Raises:
    UserError: there is none; it names the closest.
  """
  package = pathlib.Path(configs.__file__).parent
  candidates = [path, package.parent / path]
  if re.fullmatch(r'\w+', path):
    candidates.append(package / f'{path}.py')
  for candidate in candidates:
    if os.path.isfile(candidate) and str(candidate).endswith('.py'):
      return str(candidate)
  if os.path.exists(path):
    raise UserError(f'config file {path!r} is not a Python file (FILE.py)')
  presets = sorted(
    file.stem for file in package.glob('*.py') if file.name != '__init__.py'
  )
  close = nearest_preset(pathlib.Path(path).stem, presets)
  if re.fullmatch(r'\w*', path):  # Answered in the form that was used.
    raise UserError(
      f'no preset {path!r}.{f" Did you mean {close}?" if close else ""}\n'
      f'  there are: {", ".join(presets)}'
    )
  raise UserError(
    f'no config file {path!r}.'
    + (f' Did you mean {package.name}/{close}.py?' if close else '')
    + '\n  there are: '
    + ', '.join(f'{package.name}/{name}.py' for name in presets)
  )


def nearest_preset(name: str, presets: list[str]) -> str:
  """The preset meant by `name`: 'xs' is model_xs; '' if none is near."""
  words = [p for p in presets if name in p.split('_')]
  parts = [p for p in presets if name and name in p]
  spelt = difflib.get_close_matches(name, presets, 1)
  return min(words or spelt or parts, key=len, default='')


def _canonical(args: list[str], name: str, default: str | None) -> list[str]:
  """Checked arguments: `--config=FILE --config.KEY=VALUE ...`, then the rest.

  config_flags wants the file before its overrides; people write any order.
  """
  path = _find_config_path(args, name)
  _named[name] = path is not None
  path = path or default
  if path is None:
    if any(re.match(rf'--?(no)?{name}\.', word) for word in args):
      raise UserError(f'--{name}.KEY=VALUE needs --{name}=FILE beside it')
    return list(args)
  config = load_config(path)
  keys = flatten(config.to_dict())
  if default is not None and path != default:
    usual = flatten(load_config(default).to_dict())
    _check_keys(keys, usual, path, default)
    # A key that is still to be chosen has the type of its usual value.
    keys = {k: usual[k] if x is None else x for k, x in keys.items()}
  _keys[name] = keys
  file, colon, argument = path.partition(':')
  checked = [f'--{name}={find_config(file)}{colon}{argument}']
  others = []
  queue = list(args)
  while queue:
    word = queue.pop(0)
    if word == '--':
      others += [word, *queue]
      break
    flag, equals, value = word.partition('=')
    if flag in (f'-{name}', f'--{name}'):
      if not equals:
        queue.pop(0)
      continue
    match = re.fullmatch(rf'--?(no)?{re.escape(name)}\.(.*)', flag)
    if not match:
      others.append(word)
      continue
    negated, key = match.groups()
    _check_key(name, key, keys, path)
    if isinstance(keys[key], bool) and not equals:
      value = 'false' if negated else 'true'
    elif negated:
      raise UserError(f'{word}: only a switch can be negated with "no"')
    elif not equals:
      if not queue:
        raise UserError(f'{word} needs a value: {word}=...')
      value = queue.pop(0)
    value = _check_value(f'--{name}.{key}', value, keys[key])
    checked.append(f'--{name}.{key}={value}')
  return checked + others


def _find_config_path(args: list[str], name: str) -> str | None:
  """The last FILE given as --config=FILE or --config FILE."""
  path = None
  for i, word in enumerate(args):
    if word == '--':
      break
    flag, equals, value = word.partition('=')
    if flag in (f'-{name}', f'--{name}'):
      path = value if equals else (args[i + 1] if i + 1 < len(args) else '')
      if not path or path.startswith('--'):
        raise UserError(f'--{name} needs a file: --{name}=configs/FILE.py')
  return path


def _check_keys(keys: dict, known: dict, path: str, default: str) -> None:
  """A config file must have exactly the keys of the default one."""
  for key in keys:
    if key not in known:
      hint = did_you_mean(closest(key, known))
      raise UserError(f'config file {path} sets an unknown key {key!r}{hint}')
  absent = sorted(known.keys() - keys.keys())
  if absent:
    raise UserError(
      f'config file {path} lacks {", ".join(absent[:4])}: start from '
      f'get_config() of {default}'
    )


def _check_key(name: str, key: str, keys: dict, path: str) -> None:
  if key in keys:
    return
  group = [k for k in keys if k.startswith(f'{key}.')]
  if group:
    raise UserError(
      f'--{name}.{key} is a group; set its keys one by one: '
      + ', '.join(f'--{name}.{k}' for k in group)
    )
  near = [f'--{name}.{k}' for k in closest(key, keys)]
  raise UserError(
    f'no config key {key!r} in {path}{did_you_mean(near)}'
    + ('' if near else f'\n  keys: {", ".join(keys)}')
  )


def _check_value(flag: str, text: str, default: object) -> str:
  """`text` if it is a value of the type of `default`; else UserError."""

  def refuse(expected: str) -> NoReturn:
    raise UserError(f'{flag}={text}: expected {expected} (it is {default!r})')

  if isinstance(default, bool):
    value = {'t': 'true', '1': 'true', 'f': 'false', '0': 'false'}
    value = value.get(text.lower(), text.lower())
    return value if value in ('true', 'false') else refuse('true or false')
  if isinstance(default, int):
    try:
      return str(int(text))
    except ValueError:
      integer = re.fullmatch(r'\d+(\.\d*)?e\d+|\d+\.0*', text.lower())
      if integer and float(text).is_integer() and float(text) < 1e15:
        refuse(f'an integer; write {int(float(text))}')
      refuse('an integer')
  if isinstance(default, float):
    try:
      if float(text) == float(text):
        return text
    except ValueError:
      pass
    refuse('a number')
  return text
