"""Flags of RandyGPT, microgpt and nanoGPT, and their names here.

An unknown flag that one of them has is answered with ours. docs/migrating.md
holds the same table for readers, and a test compares the two.
"""

import dataclasses
import re
from collections.abc import Collection

from launch import program


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag of another program.

  Attributes:
    owners: the programs that have it.
    here: what to write instead.
    command: the command that takes `here`; '' where `here` names it itself.
  """

  owners: tuple[str, ...]
  here: str
  command: str = 'train'


RANDYGPT, MICROGPT, NANOGPT = 'RandyGPT', 'microgpt', 'nanoGPT'

# Name without dashes, as the other program spells it.
FLAGS = {
  'iters': Flag((RANDYGPT,), '--config.total_steps=N'),
  'resume': Flag(
    (RANDYGPT, MICROGPT),
    'the same command again, which resumes (more steps: '
    '--additional_steps=N; a RandyGPT FILE.bin: python -m launch.import_rgpt '
    '--input=FILE.bin)',
    '',
  ),
  'generate': Flag((RANDYGPT,), '--workdir=RUN --prompt=TEXT', 'generate'),
  'bpe': Flag(
    (RANDYGPT,),
    '--config.data.tokenizer=sentencepiece --config.data.vocab_size=N',
  ),
  'serve': Flag((RANDYGPT,), '--workdir=RUN --host=... --port=...', 'serve'),
  'api-key': Flag((RANDYGPT,), '--api_key=KEY', 'serve'),
  'lr': Flag((RANDYGPT, MICROGPT), '--config.lr=X'),
  'min-lr': Flag((RANDYGPT,), '--config.min_lr=X'),
  'features': Flag((RANDYGPT,), '--config=model_xs (... model_xl)'),
  'input': Flag((MICROGPT,), '--config.data.path=FILE'),
  'output': Flag((MICROGPT,), '--workdir=DIRECTORY'),
  'steps': Flag((MICROGPT,), '--config.total_steps=N'),
  'warmup-steps': Flag(
    (MICROGPT,),
    '--config.opt.schedule=linear_warmup --config.opt.warmup_steps=N',
  ),
  'seed': Flag((MICROGPT,), '--config.seed=N'),
  'chat': Flag((MICROGPT,), '--config=chat_small'),
  'skip-long': Flag((MICROGPT,), '--config.data.skip_long'),
  'n-embd': Flag((MICROGPT,), '--config.model.n_embd=N'),
  'n-head': Flag((MICROGPT,), '--config.model.n_head=N'),
  'n-layer': Flag((MICROGPT,), '--config.model.n_layer=N'),
  'block-size': Flag((MICROGPT,), '--config.model.block_size=N'),
  'batch-size': Flag((MICROGPT,), '--config.batch_size=N'),
  'vocab-size': Flag((MICROGPT,), '--config.data.vocab_size=N'),
  'device': Flag(
    (MICROGPT, NANOGPT),
    'the environment variable JAX_PLATFORMS=cpu (or cuda, METAL); without it '
    'JAX takes the fastest device it finds',
    '',
  ),
  'dtype': Flag((MICROGPT, NANOGPT), '--config.model.dtype=float32|bfloat16'),
  'checkpoint-every': Flag((MICROGPT,), '--config.checkpoint.every=N'),
  'model-dir': Flag((MICROGPT,), '--workdir=DIRECTORY', ''),
  'num-samples': Flag((MICROGPT,), '--num_samples=N', 'generate'),
  'temperature': Flag((MICROGPT,), '--temperature=X', 'generate'),
  'half': Flag((MICROGPT,), '--dtype=f16', 'export'),
  'max_iters': Flag((NANOGPT,), '--config.total_steps=N'),
  'learning_rate': Flag((NANOGPT,), '--config.lr=X'),
  'warmup_iters': Flag((NANOGPT,), '--config.opt.warmup_steps=N'),
  'eval_interval': Flag((NANOGPT,), '--config.eval.every=N'),
  'eval_iters': Flag((NANOGPT,), '--config.eval.windows=N'),
  'out_dir': Flag((NANOGPT,), '--workdir=DIRECTORY', ''),
  'dataset': Flag((NANOGPT,), '--config.data.path=FILES'),
  'start': Flag((NANOGPT,), '--prompt=TEXT', 'generate'),
  'max_new_tokens': Flag((NANOGPT,), '--max_tokens=N', 'generate'),
  # Guesses that fit none of them, but that people make.
  'train-file': Flag((), '--config.data.path=FILES'),
  'data-file': Flag((), '--config.data.path=FILES'),
  'ckpt': Flag((), '--workdir=RUN (and --which=best|latest)', ''),
  'checkpoint': Flag((), '--workdir=RUN (and --which=best|latest)', ''),
  'model': Flag((), '--workdir=RUN', ''),
  'preset': Flag((), '--config=model_l'),
  'epochs': Flag((), '--config.total_steps=N'),
}


def hint(name: str, own: Collection[str] = ()) -> str | None:
  """The answer to an unknown flag; None for one that no program here has.

  Args:
    name: the flag without leading dashes, written with - or _.
    own: names of the flags of the command that was given it.
  """
  flag = _find(name)
  if flag is None:
    return None
  use = program.as_called(flag.here)
  known = all(n in own for n in re.findall(r'--(\w+)', flag.here))
  if flag.command and not known:
    use = f'{program.command(flag.command)} {use}'
  whose = ' and '.join(f"{owner}'s" for owner in flag.owners)
  whose = f'is {whose} name' if whose else 'is not a flag here'
  return f'--{name} {whose}: use {use}'


def _find(name: str) -> Flag | None:
  wanted = name.replace('-', '_')
  for other, flag in FLAGS.items():
    if other.replace('-', '_') == wanted:
      return flag
  return None


def words(text: str) -> list[str]:
  """The flags in an answer: ['--config.lr=X']."""
  return re.findall(r'--[\w.]+(?:=[\w.*]+)?', text)
