"""Publish a model on the Hugging Face hub.

    python -m launch.publish --workdir=runs/chat --repo=ann/chat --dry_run
    python -m launch.publish --workdir=runs/chat --repo=ann/chat --gguf=q8_0

What goes up is what `launch.export --format=hf` writes: safetensors, tokenizer
and model card; with --gguf also a GGUF file, for llama.cpp and Ollama. It is
one commit: all or nothing. --dry_run lists the files and sends nothing; it
needs no token and no network. Otherwise put a token that may write into
HF_TOKEN. Extra: hf.
"""

import tempfile

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags

WORKDIR = common_flags.workdir('Directory of the run.')
REPO = flags.DEFINE_string(
  'repo', None, 'Repository on the hub, owner/name; made if it is missing.'
)
WHICH = common_flags.which()
DTYPE = flags.DEFINE_enum(
  'dtype', 'f32', ['f32', 'f16', 'bf16'], 'Type of the weights.'
)
GGUF = flags.DEFINE_enum(
  'gguf',
  None,
  ['f32', 'f16', 'bf16', 'q8_0'],
  'Adds a GGUF file with weights of this type.',
)
LICENSE = flags.DEFINE_string(
  'license', '', 'License for the model card, such as mit or apache-2.0.'
)
PRIVATE = flags.DEFINE_bool(
  'private', False, 'Make a new repository visible to its owner alone.'
)
OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace the earlier export that a repository holds.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'List what would be published; send nothing.'
)


def main(_: list[str]) -> None:
  workdir, repo = WORKDIR.value, REPO.value
  if not workdir or not repo:
    raise UserError('--workdir=DIRECTORY and --repo=OWNER/NAME are needed')
  from gpt.formats import publish  # JAX, after the flags.

  publish.check_repo(repo)
  with tempfile.TemporaryDirectory(prefix='rgpt-publish-') as directory:
    upload = publish.prepare(
      workdir,
      WHICH.value,
      directory,
      dtype=DTYPE.value,
      gguf=GGUF.value or '',
      license=LICENSE.value,
    )
    for note in upload.notes:
      print(note)
    for name, path in upload.files.items():
      print(f'{path.stat().st_size:15,}  {name}')
    total = f'{len(upload.files)} files, {upload.size:,} bytes'
    if DRY_RUN.value:
      seen = 'private' if PRIVATE.value else 'public'
      print(f'{total} would go to {repo} ({seen}); nothing was sent')
      return
    address = publish.send(
      upload, repo, private=PRIVATE.value, overwrite=OVERWRITE.value
    )
  print(f'published {total} at {address}')


if __name__ == '__main__':
  cli.run(main)
