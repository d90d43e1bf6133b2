"""A run on the Hugging Face hub: its export for transformers, in one commit."""

import dataclasses
import pathlib
import re
from typing import Any

from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.formats.convert import export
from gpt.formats.directories import LAYOUTS, Path
from gpt.formats.hub import is_repo
from gpt.formats.hub_errors import explained, library
from gpt.formats.model_cache import name_of

# The hub fills a new repository with it.
ATTRIBUTES = '.gitattributes'


@dataclasses.dataclass(frozen=True)
class Upload:
  """The files that `send` puts into a repository.

  Attributes:
    files: {name in the repository: local file}.
    step: completed steps of the weights.
    notes: for the user.
  """

  files: dict[str, pathlib.Path]
  step: int
  notes: list[str]

  @property
  def size(self) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in self.files.values())


def check_repo(repo: str) -> None:
  """UserError unless `repo` has the form owner/name."""
  if not is_repo(repo):
    raise UserError(
      f'--repo={repo} is not of the form owner/name, with letters, digits and '
      '. _ - in both'
    )


def prepare(
  workdir: Path,
  which: str,
  directory: Path,
  *,
  dtype: str = 'f32',
  gguf: str = '',
  license: str = '',
) -> Upload:
  """Exports a run into an empty directory.

  Args:
    dtype: of the safetensors: 'f32', 'f16' or 'bf16'.
    gguf: type of the weights of a GGUF file beside them; '': none.
    license: for the model card, such as 'mit'; '': none is stated.

  Raises:
    UserError: no such run; a model or a directory that cannot be written.
  """
  if license and not re.fullmatch(r'[a-z0-9][a-z0-9.-]*', license):
    raise UserError(
      f'--license={license}: write an identifier of the hub, such as mit or '
      'apache-2.0'
    )
  directory = pathlib.Path(directory)
  _, step, notes = export(workdir, which, 'hf', directory, dtype)
  if gguf:
    name = name_of(str(pathlib.Path(workdir).resolve()))
    path = directory / f'{name}-{gguf.upper()}.gguf'
    found = export(workdir, which, 'gguf', path, gguf)[2]
    notes += [x.replace(f'{directory}/', '') for x in found]
  if license:
    card = directory / 'README.md'
    text = card.read_text(encoding='utf-8')
    text = text.replace('---\n', f'---\nlicense: {license}\n', 1)
    write_atomic(card, text.encode())
  found = sorted(path for path in directory.rglob('*') if path.is_file())
  files = {path.relative_to(directory).as_posix(): path for path in found}
  return Upload(files, step, notes)


def send(
  upload: Upload, repo: str, *, private: bool = False, overwrite: bool = False
) -> str:
  """Makes one commit of all files, in a repository that is made if need be.

  Args:
    repo: 'owner/name'.
    private: of a new repository.
    overwrite: whether a repository that holds files already may be changed.
      Parts of an earlier export that the new one lacks are then removed.

  Returns:
    The address of the repository.

  Raises:
    UserError: no token, no permission, no connection, or a repository that
      holds files. Nothing is published then.
  """
  hub = library()
  where = hub.constants.ENDPOINT
  if hub.constants.HF_HUB_OFFLINE:
    raise UserError('HF_HUB_OFFLINE is set: unset it to publish')
  if not hub.get_token():
    raise UserError(
      f'publishing needs a token that may write: make one on {where}/settings/'
      'tokens, and put it into HF_TOKEN or run `hf auth login`'
    )
  api = hub.HfApi()
  with explained(repo, action='publish to'):
    api.create_repo(repo, private=private, exist_ok=True)
    info = api.model_info(repo)
    held = {file.rfilename for file in info.siblings or []} - {ATTRIBUTES}
    if held and not overwrite:
      raise UserError(
        f'{repo} holds {len(held)} files already, such as {min(held)}: add '
        '--overwrite to replace an earlier export, or choose another --repo'
      )
    add = [
      hub.CommitOperationAdd(name, str(path))
      for name, path in upload.files.items()
    ]
    remove = [
      hub.CommitOperationDelete(name)
      for name in sorted(held - upload.files.keys())
      if is_part(name)
    ]
    _commit(
      api,
      repo_id=repo,
      operations=[*add, *remove],
      commit_message=f'rgpt model at step {upload.step}',
      parent_commit=info.sha,
    )
  return f'{where}/{repo}'


def is_part(name: str) -> bool:
  """Whether a file of a repository is part of an export of ours."""
  top = name.partition('/')[0]
  beside = top == name and name.endswith(('.gguf', '.Modelfile'))
  return beside or top in LAYOUTS['hf'].files


def _commit(api: Any, **arguments: Any) -> None:
  """Uploads and commits; what uploads raise is unwrapped."""
  try:
    api.create_commit(**arguments)
  except (RuntimeError, ValueError) as e:
    if isinstance(e, RuntimeError) and isinstance(e.__cause__, Exception):
      raise e.__cause__ from e
    reason = ' '.join(str(e).split())[:200]
    raise UserError(f'the hub refuses the upload: {reason}') from e
