"""Run recipes from a cold start over seeds: docs/results.md.

    python -m launch.bench.recipes --recipe=speedrun_1min --seeds=1,2,3
    python -m launch.bench.recipes --recipe=speedrun_1min --ablate
    python -m launch.bench.recipes --recipe=speedrun_1min --ablate --only=GELU
    python -m launch.bench.recipes --recipe=model_l --change=lr=3e-3 --seeds=1
    python -m launch.bench.recipes --recipe=nanogpt_cpu          (the peer)
    python -m launch.bench.recipes --draw=loss.png

Each run is a process with an empty compilation cache. Its wall time is that of
the whole process, so keep the machine otherwise idle. A run already in --output
is not repeated. The last line is a JSON object. --draw plots the first run of
each recipe in --output, without ablations.
"""

import json
import pathlib
import re
import statistics
import sys
from collections.abc import Sequence

from absl import flags

from gpt.errors import UserError
from gpt.runs import metrics
from gpt.runs.config_file import differences, read_config
from launch import cli, config_flag
from launch.bench import cold, machine

RECIPE = flags.DEFINE_string('recipe', '', 'A file of configs, or nanogpt_cpu.')
SEEDS = flags.DEFINE_list('seeds', ['1', '2', '3'], 'Seeds; one run each.')
ABLATE = flags.DEFINE_bool(
  'ablate', False, 'One run per option added or removed, with the first seed.'
)
CHANGE = flags.DEFINE_multi_string(
  'change', [], 'key=value: overrides the recipe, like --config.key=value.'
)
ONLY = flags.DEFINE_list('only', [], 'Options to --ablate; default: all.')
OUTPUT = flags.DEFINE_string('output', 'runs/recipes', 'Directory of the runs.')
DRAW = flags.DEFINE_string('draw', '', 'PNG file to plot loss by wall time to.')

PEER = 'nanogpt_cpu'
PLAIN = {
  'opt.name': 'adamw',
  'lr': 3e-3,
  'model.pos': 'learned',
  'model.qk_norm': False,
  'model.final_norm': False,
  'model.logit_softcap': 0.0,
  'model.zero_init': False,
}
ABLATIONS = {
  # Removed from the recipe.
  '- Muon': {'opt.name': 'adamw', 'lr': 3e-3},
  '- RoPE': {'model.pos': 'learned'},
  '- QK-norm': {'model.qk_norm': False},
  '- final norm': {'model.final_norm': False},
  '- softcap': {'model.logit_softcap': 0.0},
  '- zero-init': {'model.zero_init': False},
  # Changed in or added to the recipe.
  'momentum 0.95': {'opt.muon_momentum': 0.95},
  '3 Newton-Schulz steps': {'opt.muon_steps': 3},
  'decay over 40 %': {'opt.decay_fraction': 0.4},
  'decay over 90 %': {'opt.decay_fraction': 0.9},
  'dropout 0.05': {'model.dropout': 0.05},
  'ReLU': {'model.mlp': 'relu'},
  'GELU': {'model.mlp': 'gelu'},
  'SwiGLU': {'model.mlp': 'swiglu'},
  'one key/value head': {'model.n_kv_head': 1},
  'tied embeddings': {'model.tied_embeddings': True},
  'embedding norm': {'model.embed_norm': True},
  'EMA 0.99': {'opt.ema_decay': 0.99},
  # The plain architecture with AdamW, and one addition each.
  'plain': PLAIN,
  'plain + Muon': {
    k: v for k, v in PLAIN.items() if k not in ('opt.name', 'lr')
  },
  'plain + RoPE': {**PLAIN, 'model.pos': 'rope'},
  'plain + QK-norm': {**PLAIN, 'model.qk_norm': True},
  'plain + final norm': {**PLAIN, 'model.final_norm': True},
  'plain + softcap': {**PLAIN, 'model.logit_softcap': 15.0},
  'plain + zero-init': {**PLAIN, 'model.zero_init': True},
}


def command(
  recipe: str, seed: str, workdir: pathlib.Path, changes: Sequence[str]
) -> list[str]:
  """The command line of a run."""
  if recipe == PEER:
    return [
      sys.executable,
      '-m',
      'launch.bench.peers.nanogpt_cpu',
      f'--workdir={workdir}',
      f'--seed={seed}',
    ]
  return [
    sys.executable,
    '-m',
    'launch.train',
    f'--config=configs/{recipe}.py',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    '--config.eval.full_at_end=true',
    *(f'--config.{change}' for change in changes),
  ]


def run(
  recipe: str, seed: str, name: str = '', changes: Sequence[str] = ()
) -> dict:
  """Trains from a cold start, unless --output has the run; its results."""
  label = name.replace('- ', 'no ').replace('+', 'and')
  label = re.sub(r'[^\w.]+', '_', label)
  label = '-'.join(filter(None, (recipe, label, seed)))
  workdir = pathlib.Path(OUTPUT.value) / label
  if row := cold.finished(workdir):
    if recipe != PEER:
      check_settings(recipe, workdir, changes)
    return row
  made_from = machine.commit()
  wall = cold.wall_seconds(command(recipe, seed, workdir, changes))
  end = metrics.read_lines(workdir)[-1]
  numbers = {
    key.removeprefix('full_final_'): value
    for key, value in end.items()
    if key.startswith('full_final_')
  }
  row = {
    'recipe': recipe,
    'name': name,
    'seed': int(seed),
    'wall_s': wall,
    'steps': end['step'],
    'commit': made_from,
    'machine': machine.facts(),
    **numbers,
  }
  (workdir / cold.RESULT).write_text(json.dumps(row))
  return row


def check_settings(
  recipe: str, workdir: pathlib.Path, changes: Sequence[str]
) -> None:
  """UserError if the recipe has changed since a finished run was made."""
  now = config_flag.load_config(f'configs/{recipe}.py')
  chosen = {'seed', 'eval.full_at_end'} | {x.split('=')[0] for x in changes}
  for key, (old, new) in differences(read_config(workdir), now).items():
    if key not in chosen:
      raise UserError(
        f'{workdir} was made with {key} {old!r}, the recipe has {new!r} now: '
        'remove it to repeat the run'
      )


def show_head() -> None:
  """Prints the header of the table."""
  print(
    f'{"run":26s}{"seed":>5s}{"wall s":>8s}{"steps":>7s}{"nats":>9s}'
    f'{"bits/byte":>11s}'
  )


def show(rows: list[dict]) -> None:
  """Prints rows of the table."""
  for row in rows:
    print(
      f'{row["name"] or row["recipe"]:26s}{row["seed"]:5d}{row["wall_s"]:8.1f}'
      f'{row["steps"]:7d}{row["nats_per_token"]:9.4f}'
      f'{row["bits_per_byte"]:11.4f}'
    )


def short_names(runs: list[tuple[str, str]]) -> list[str]:
  """Names for a figure: the recipe, and what sets it apart from its siblings.

  Args:
    runs: (recipe, its changes as 'key=value key=value').

  Returns:
    'model_l lr 1e-3' rather than 'model_l data.path=shakespeare lr=1e-3', where
    all runs of model_l changed data.path alike.
  """
  changes = [dict(x.split('=', 1) for x in name.split()) for _, name in runs]
  names = []
  for (recipe, _), own in zip(runs, changes):
    siblings = [c for (r, _), c in zip(runs, changes) if r == recipe]
    words = [
      f'{own[key]} steps'
      if key == 'total_steps'
      else f'{key.rpartition(".")[2]} {own[key]}'
      for key in own
      if any(c.get(key) != own[key] for c in siblings)
    ]
    names.append(' '.join([recipe, ', '.join(words)]).strip())
  return names


def draw(path: str) -> None:
  """Plots validation loss by wall time of every recipe's first run."""
  from gpt.reports import plots

  found = {}  # The first seed of each recipe and change.
  for file in sorted(pathlib.Path(OUTPUT.value).glob(f'*/{cold.RESULT}')):
    row = json.loads(file.read_text())
    key = row['recipe'], row['name']
    if row['name'] not in ABLATIONS and key not in found:
      found[key] = row['wall_s'], metrics.read_lines(file.parent)
  if not found:
    raise UserError(f'no finished run in {OUTPUT.value}: run a --recipe first')
  runs = dict(zip(short_names(list(found)), found.values()))
  plots.write_png(path, lambda axes: plots.loss_by_time(axes, runs))
  print(f'wrote {path}')


def main(_):
  if DRAW.value:
    draw(DRAW.value)
    return
  if not RECIPE.value:
    raise UserError('--recipe=NAME of a file in configs is needed')
  changes = CHANGE.value
  if (ABLATE.value or changes) and RECIPE.value == PEER:
    raise UserError(
      f'--ablate and --change are for our options; {PEER} has none of them'
    )
  if ABLATE.value and changes:
    raise UserError('--ablate changes one option at a time: leave out --change')
  if unknown := set(ONLY.value) - set(ABLATIONS):
    raise UserError(
      f'--only={",".join(sorted(unknown))}: the options are '
      f'{", ".join(ABLATIONS)}'
    )
  if not any(SEEDS.value):
    raise UserError('--seeds=1,2,3: at least one is needed')
  if ONLY.value and not ABLATE.value:
    raise UserError('--only chooses options to --ablate: give both')
  print(machine.line())
  show_head()
  rows = []
  if ABLATE.value:
    rows.append(run(RECIPE.value, SEEDS.value[0]))
    show(rows)
    for name in ONLY.value or ABLATIONS:
      options = [f'{key}={value}' for key, value in ABLATIONS[name].items()]
      rows.append(run(RECIPE.value, SEEDS.value[0], name, options))
      show(rows[-1:])
  else:
    for seed in SEEDS.value:
      rows.append(run(RECIPE.value, seed, ' '.join(changes), changes))
      show(rows[-1:])
  own = [row for row in rows if row['name'] not in ABLATIONS]
  losses = [row['nats_per_token'] for row in own]
  print(
    json.dumps(
      {
        'recipe': RECIPE.value,
        'machine': machine.facts(),
        'seeds': len(own),
        'wall_s': statistics.mean(row['wall_s'] for row in own),
        'nats_per_token': statistics.mean(losses),
        'std': statistics.stdev(losses) if len(losses) > 1 else None,
        'bits_per_byte': statistics.mean(row['bits_per_byte'] for row in own),
        'ablations': {
          r['name']: r['nats_per_token'] for r in rows if r['name'] in ABLATIONS
        },
      }
    )
  )


if __name__ == '__main__':
  cli.run(main)
