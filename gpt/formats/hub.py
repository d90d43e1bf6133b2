"""Models of the Hugging Face hub: hf://owner/name[@revision][/FILE.gguf].

huggingface_hub (extra `hf`) does the talking and keeps the cache; HF_HOME,
HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there. Only what a
model needs is downloaded, and never a pickle. This module imports no JAX.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Collection
from typing import Any

from gpt import files
from gpt.errors import UserError
from gpt.formats.hub_errors import Unreachable, explained, library

logger = logging.getLogger(__name__)
SCHEME = 'hf://'
MAIN = 'main'
_NAME = r'[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?'
_REPO = re.compile(f'{_NAME}/{_NAME}', re.ASCII)
_REVISION = r'refs/(?:pr|convert)/[\w.-]+|[\w.-]+'
_REFERENCE = re.compile(
  rf'hf://({_REPO.pattern})(?:@({_REVISION}))?(?:/(.+))?', re.ASCII
)
# Beside the weights: configuration, tokenizer, chat template.
SMALL = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'adapter_config.json',
  'meta.json',  # microgpt
)
OURS = re.compile(r'rgpt_tokenizer/[\w.-]+', re.ASCII)
INDEX = 'model.safetensors.index.json'
SHARD = re.compile(r'model-(\d{5})-of-(\d{5})\.safetensors', re.ASCII)
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
# Names that are one path component each, on every system.
PLAIN = re.compile(r'[\w ()+,-][\w. ()+,-]*', re.ASCII)
SHA256 = re.compile('[0-9a-f]{64}')
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reference:
  """The parts of an hf:// address.

  Attributes:
    repo: 'owner/name'.
    revision: a branch, a tag or a commit.
    file: path of a GGUF file in the repository; '' for the model as a whole.
  """

  repo: str
  revision: str = MAIN
  file: str = ''

  def __str__(self) -> str:
    at = '' if self.revision == MAIN else f'@{self.revision}'
    return f'{SCHEME}{self.repo}{at}' + (f'/{self.file}' if self.file else '')


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files of a model on the hub.

  Attributes:
    commit: hash of the revision.
    license: as its model card has it, such as 'apache-2.0'; '' if it has none.
    sizes: bytes of each file that the model needs.
    sha256: of those that the hub keeps apart because they are large.
    missing: bytes that are not in the cache yet.
  """

  commit: str
  license: str
  sizes: dict[str, int]
  sha256: dict[str, str]
  missing: int


def is_reference(what: object) -> bool:
  """Whether `what` is an hf:// address, well formed or not."""
  return str(what).startswith(SCHEME)


def is_repo(name: str) -> bool:
  """Whether `name` has the form owner/name of a repository."""
  return bool(_REPO.fullmatch(name)) and '--' not in name and '..' not in name


def parse(what: str) -> Reference:
  """Reads an hf:// address.

  Raises:
    UserError: it is not of the form hf://owner/name[@revision][/FILE.gguf].
  """
  found = _REFERENCE.fullmatch(what)
  repo, revision, file = found.groups() if found else ('', '', '')
  parts = (file or '').split('/') if file else []
  odd = [part for part in parts if not PLAIN.fullmatch(part)]
  if not is_repo(repo) or odd or '..' in f'{revision}{file}':
    raise UserError(
      f'{what} names no model of the hub: write hf://owner/name, '
      'hf://owner/name@revision or hf://owner/name/FILE.gguf'
    )
  if file and not file.endswith('.gguf'):
    raise UserError(
      f'{what}: only a GGUF file can be named by itself; '
      f'{SCHEME}{repo} stands for the whole model'
    )
  return Reference(repo, revision or MAIN, file or '')


def choose(names: Collection[str], where: str) -> list[str]:
  """The files that a model needs: its weights last.

  Args:
    names: all files of a repository, '/' between folders.
    where: named in errors.

  Raises:
    UserError: no weights that can be read, or too many to choose from.
  """
  weights = [name for name in names if PLAIN.fullmatch(name)]
  single = sorted(n for n in weights if n.endswith('.safetensors'))
  ggufs = sorted(n for n in weights if n.endswith('.gguf'))
  shards = sorted(n for n in weights if SHARD.fullmatch(n))
  small = [name for name in SMALL if name in names]
  small += sorted(name for name in names if OURS.fullmatch(name))
  for name in ('model.safetensors', 'weights.safetensors'):
    if name in names:
      return [*small, name]
  if INDEX in names:
    of = {int(SHARD.fullmatch(name)[2]) for name in shards}  # type: ignore
    if of != {len(shards)}:
      raise UserError(f'{where} lacks some of the files that {INDEX} lists')
    return [*small, INDEX, *shards]
  if len(single) == 1:
    return [*small, *single]
  if len(ggufs) == 1:
    return ggufs
  if ggufs:
    listed = ', '.join(ggufs[:8]) + (', ...' if len(ggufs) > 8 else '')
    raise UserError(
      f'{where} holds {len(ggufs)} GGUF files ({listed}): name one, as in '
      f'{where}/{ggufs[0]}'
    )
  pickles = sorted(n for n in names if n.endswith(PICKLES))
  if pickles:
    raise UserError(
      f'{where} holds pickled weights alone ({pickles[0]}), and a pickle can '
      'run any code: choose a model with safetensors or GGUF weights'
    )
  raise UserError(f'{where} holds no safetensors and no GGUF file')


def download(what: str) -> pathlib.Path:
  """Brings a model into the hub's cache, or finds it there.

  An interrupted download is taken up where it ended. Where the hub cannot be
  reached, a complete copy in the cache is used.

  Args:
    what: hf://owner/name[@revision][/FILE.gguf].

  Returns:
    The directory of the model's files, or its GGUF file.

  Raises:
    UserError: no such model, revision or file; no permission; no network; a
      full disk. What was downloaded by then is kept.
  """
  ref = parse(what)
  hub = library()
  try:
    found = listing(ref)
  except Unreachable as e:
    path = _cached(hub, ref)
    if path is None:
      raise Unreachable(f'{ref} is not in the cache, and {e}') from e
    if not hub.constants.HF_HUB_OFFLINE:
      logger.warning(f'{e}; using the copy in the cache')
    return path
  with explained(ref.repo, ref.revision):
    _check_space(hub, found)
    if found.missing:
      logger.info(
        f'downloading {ref}: {found.missing / 1e6:,.1f} of '
        f'{sum(found.sizes.values()) / 1e6:,.1f} MB'
      )
    path = None
    for name in found.sizes:  # The weights last: with them it is complete.
      if name in found.sha256:
        _fetch_large(hub, ref, found, name)
      path = hub.hf_hub_download(ref.repo, name, revision=ref.revision)
      if found.commit not in path:
        raise UserError(
          f'{ref} has changed on the hub during the download: try again'
        )
  return _result(_snapshot(hub, ref), ref)


def listing(ref: Reference) -> Listing:
  """Asks the hub what a model consists of.

  Raises:
    Unreachable: no answer, or offline mode. UserError: a bad answer.
  """
  hub = library()
  with explained(ref.repo, ref.revision):
    info = hub.HfApi().model_info(
      ref.repo, revision=ref.revision, files_metadata=True
    )
  sizes, sha256 = {}, {}
  for file in info.siblings or []:
    sizes[file.rfilename] = file.size or 0
    if file.lfs:
      # An object since huggingface_hub 0.21, before that a dict.
      sha256[file.rfilename] = file.lfs['sha256']
  if ref.file and ref.file not in sizes:
    ggufs = ', '.join(sorted(n for n in sizes if n.endswith('.gguf'))[:8])
    raise UserError(
      f'{ref}: the repository has no such file'
      + (f'; its GGUF files: {ggufs}' if ggufs else '')
    )
  names = [ref.file] if ref.file else choose(sizes, str(ref))
  sha256 = {name: sha256[name] for name in names if name in sha256}
  if not all(SHA256.fullmatch(digest) for digest in sha256.values()):
    raise UserError(f'{ref}: the hub gives no sha256 of a file')
  blobs = _blobs(hub, ref)
  missing = sum(
    sizes[name] - _bytes_of(blobs, sha256[name])
    for name in names
    if name in sha256
  )
  card = getattr(info, 'card_data', None) or {}
  license = card.get('license') or ''
  return Listing(
    info.sha,
    ', '.join(license) if isinstance(license, list) else str(license),
    {name: sizes[name] for name in names},
    sha256,
    missing,
  )


def _blobs(hub: Any, ref: Reference) -> pathlib.Path:
  """The cache directory of a repository's file contents."""
  folder = f'models--{ref.repo.replace("/", "--")}'
  return pathlib.Path(hub.constants.HF_HUB_CACHE).resolve() / folder / 'blobs'


def _partial(blobs: pathlib.Path, sha256: str) -> pathlib.Path:
  return blobs / f'{sha256}.rgpt-incomplete'


def _bytes_of(blobs: pathlib.Path, sha256: str) -> int:
  """Bytes of a file that are in the cache, complete or not."""
  for path in (blobs / sha256, _partial(blobs, sha256)):
    if path.exists():
      return path.stat().st_size
  return 0


def _check_space(hub: Any, found: Listing) -> None:
  """Raises UserError if the disk cannot hold what is missing."""
  cache = pathlib.Path(hub.constants.HF_HUB_CACHE)
  cache.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(cache).free
  if free < found.missing:
    raise UserError(
      f'the download needs {found.missing / 1e6:,.0f} MB in {cache}, where '
      f'{free / 1e6:,.0f} MB are free: free some space, or set HF_HOME'
    )


def _fetch_large(hub: Any, ref: Reference, found: Listing, name: str) -> None:
  """Downloads one file into the cache, from where an earlier try ended.

  huggingface_hub itself starts a file anew after its process was killed.
  """
  from huggingface_hub.file_download import http_get

  blobs, size, sha256 = _blobs(hub, ref), found.sizes[name], found.sha256[name]
  blob, partial = blobs / sha256, _partial(blobs, sha256)
  if blob.exists():
    return
  blobs.mkdir(parents=True, exist_ok=True)
  with open(partial, 'ab') as file, files.locked(file):
    if blob.exists():  # Another process has just finished it.
      partial.unlink(missing_ok=True)
      return
    if partial.stat().st_size > size:
      file.truncate(0)
    http_get(
      hub.hf_hub_url(ref.repo, name, revision=found.commit),
      file,
      resume_size=partial.stat().st_size,
      headers=hub.utils.build_hf_headers(),
      expected_size=size,
      displayed_filename=name,
    )
    file.flush()
    os.fsync(file.fileno())
    if _sha256(partial) != sha256:
      file.truncate(0)  # Not removed: another process may wait for it.
      raise UserError(f'{ref}: {name} arrived damaged; try again')
    partial.rename(blob)


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def _snapshot(hub: Any, ref: Reference) -> pathlib.Path | None:
  """The directory of a revision in the cache; None if there is none."""
  try:
    path = hub.snapshot_download(
      ref.repo, revision=ref.revision, local_files_only=True, allow_patterns=[]
    )
  except hub.errors.LocalEntryNotFoundError:
    return None
  return pathlib.Path(path)


def _result(directory: pathlib.Path | None, ref: Reference) -> pathlib.Path:
  """The path that `download` returns.

  Raises:
    UserError: the cache does not hold all that the model needs.
  """
  if directory is None:
    raise UserError(f'{ref} is not in the cache')
  if ref.file:
    names = [ref.file]
  else:
    found = sorted(path for path in directory.rglob('*') if path.is_file())
    names = choose(
      [p.relative_to(directory).as_posix() for p in found], str(ref)
    )
  if missing := [n for n in names if not (directory / n).is_file()]:
    raise UserError(f'{ref}: {missing[0]} is not in the cache')
  return directory / names[0] if names[0].endswith('.gguf') else directory


def _cached(hub: Any, ref: Reference) -> pathlib.Path | None:
  """A complete copy of an earlier download; None if there is none."""
  try:
    return _result(_snapshot(hub, ref), ref)
  except UserError:
    return None
