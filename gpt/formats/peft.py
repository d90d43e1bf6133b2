"""Adapters as a directory of the peft library, for a model of transformers.

adapter_config.json           rank, scale and names of the adapted modules
adapter_model.safetensors     base_model.model.NAME.lora_A.weight [rank, in]
                              and .lora_B.weight [out, rank]

NAME is that of the base's class (gpt.formats.architectures): the adapters fit
the base as `launch.export --format=hf` writes it, or the original of an
imported one.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError, explained_writes
from gpt.files import write_atomic
from gpt.formats.architectures import Family
from gpt.formats.architectures.family import MIRRORED, SAME, Row
from gpt.formats.architectures.weights import mirrored
from gpt.formats.directories import LAYOUTS, Path, make_directory
from gpt.formats.huggingface import choose_class
from gpt.formats.tensors import write_tensors
from gpt.model import GPT, GPTConfig
from gpt.runs import base, checkpoint
from gpt.runs.config_file import read_configs
from gpt.runs.load import read_checkpoint
from gpt.tokenizers import load_tokenizer
from gpt.training import lora

WEIGHTS, CONFIG = LAYOUTS['peft'].files


def export_peft(
  workdir: Path, which: str, output: Path, dtype: str, hf_class: str
) -> tuple[str, int, list[str]]:
  """Writes the adapters of a LoRA run; its base is not read.

  Args:
    which: 'best' or 'latest', the preferred checkpoint.
    dtype: a key of tensors.DTYPES.
    hf_class: as of huggingface.choose_class.

  Returns:
    ('best' or 'latest': the checkpoint that was found, its completed steps,
    notes for the user).

  Raises:
    UserError: a run without adapters; a model no class of transformers holds; a
      place that cannot be written to.
  """
  if not base.has_record(workdir):
    raise UserError(
      f'{workdir} holds no adapters (opt.lora_rank is 0): choose --format=hf'
    )
  source = base.read_record(workdir).source
  paths = checkpoint.candidates(workdir, which)
  config, cfg = read_configs(workdir, load_tokenizer(workdir).vocab_size)
  family, note = choose_class(cfg, hf_class)
  if family is None:
    raise UserError(
      'adapters need a class of transformers that holds the model: '
      + note.rpartition('; ')[2]
      + '. --format=hf writes the merged model'
    )
  model = lora.adapted(GPT(cfg), config['opt'])
  assert isinstance(model, lora.Adapted)
  path, (adapters, meta) = checkpoint.first_readable(
    paths, lambda path: read_checkpoint(path, model)
  )
  tensors, ranks = {}, {}
  for name, rank, a, b in modules(family, cfg, adapters):
    tensors[f'base_model.model.{name}.lora_A.weight'] = np.array(a.T)
    tensors[f'base_model.model.{name}.lora_B.weight'] = np.array(b.T)
    # 'layers.0.self_attn.q_proj' -> 'self_attn.q_proj': all layers are alike.
    ranks['.'.join(name.split('.')[-2:])] = rank
  directory = make_directory(output)
  settings = adapter_config(family, model, ranks, source)
  write_tensors(directory / WEIGHTS, tensors, dtype, {'format': 'pt'})
  text = json.dumps(settings, indent=2) + '\n'
  with explained_writes(directory):
    write_atomic(directory / CONFIG, text.encode())
  where = pathlib.Path(source)
  if (where / 'checkpoints').is_dir():
    command = f'launch.export --workdir={where} --format=hf'
    note += f'; its base: python -m {command} --output=DIRECTORY'
  return path.parent.name, int(meta['step']), [note]


def modules(
  family: Family, cfg: GPTConfig, adapters: Mapping[str, Any]
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
  """(module, rank, A [in, rank], B [rank, out]) of every adapted module.

  GPT-2's c_attn holds three of our matrices side by side; its adapter has their
  ranks together, and B is block-diagonal.
  """
  for row in family.tensors:
    for i in range(cfg.n_layer):
      block = adapters[f'block_{i}']
      if '{i}' in row.hf and any(name in block for name in row.ours):
        a, b = _joined(row, cfg, block)
        name = row.hf.replace('{i}', str(i)).removesuffix('.weight')
        yield f'{family.prefix}.{name}', a.shape[1], a, b


def _joined(
  row: Row, cfg: GPTConfig, block: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  H, G, K = cfg.n_head, cfg.kv_heads, cfg.head_dim
  widths = {'wq': H * K, 'wk': G * K, 'wv': G * K}
  if len(row.ours) == 1:
    ab = block[row.ours[0]]
    b = np.asarray(ab['b'])
    if row.layout == MIRRORED:
      b = mirrored(b, K)
    return np.asarray(ab['a']), b
  found = [name for name in row.ours if name in block]
  a = np.concatenate([block[name]['a'] for name in found], 1)
  rank = a.shape[1] // len(found)
  b = np.zeros((a.shape[1], sum(widths[name] for name in row.ours)), a.dtype)
  for j, name in enumerate(found):
    start = sum(widths[x] for x in row.ours[: row.ours.index(name)])
    b[j * rank : (j + 1) * rank, start : start + widths[name]] = block[name][
      'b'
    ]
  return a, b


def adapter_config(
  family: Family, model: lora.Adapted, ranks: Mapping[str, int], source: str
) -> dict[str, Any]:
  """The content of adapter_config.json.

  Args:
    ranks: of each adapted module.
    source: of the base.
  """
  # The scale of a module is its alpha over its rank.
  wide = {name: rank for name, rank in ranks.items() if rank != model.rank}
  scale = model.alpha / model.rank
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': source.removeprefix('hf://'),
    'r': model.rank,
    'lora_alpha': model.alpha,
    'rank_pattern': wide,
    'alpha_pattern': {name: scale * rank for name, rank in wide.items()},
    'target_modules': sorted(ranks),
    'fan_in_fan_out': any(
      row.layout == SAME and 'wo' in row.ours for row in family.tensors
    ),
    'lora_dropout': 0.0,
    'bias': 'none',
    'modules_to_save': None,
    'use_rslora': False,
    'use_dora': False,
    'inference_mode': True,
  }
