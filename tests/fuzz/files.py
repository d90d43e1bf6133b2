"""Real files of runs, tokenizers and texts, small, and how each is read."""

import gzip
import json

import jax
import numpy as np

from configs import smoke
from gpt.data import conversations, record, token_cache, token_files
from gpt.data.pieces import iter_pieces
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.model import GPT, GPTConfig
from gpt.planning import outcome
from gpt.planning import record as plan
from gpt.planning.record import Target
from gpt.reports.html import report
from gpt.runs import base, checkpoint, config_file, info, load, metrics, samples
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_meta import options_of
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.record import read_run as read_run_record
from gpt.tokenizers import build_tokenizer, load_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from gpt.tokenizers.chat_template import ChatTemplate
from gpt.tokenizers.huggingface import read_hf_json as hf_json
from gpt.tokenizers.randygpt import RandyTokenizer, read_vocab_json
from gpt.tokenizers.sentencepiece import read_sentencepiece
from gpt.training import lora, optimizer
from gpt.training.state import TrainState, create_state

TEXT = 'The king spoke;\n\nnobody heard him, or nearly nobody.\n' * 40
PROBE = 'The body spoke, nobody heard.\n'
SIZES = {'n_embd': 8, 'n_head': 2, 'n_layer': 2, 'block_size': 16}
CONVERSATION = [
  {'role': 'user', 'content': 'Who spoke?'},
  {'role': 'assistant', 'content': 'The king.'},
]


def char():
  return build_tokenizer('char', [TEXT], 0)


def randomized(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(rng.normal(size=x.shape)).astype(x.dtype), tree
  )


def tiny_config():
  config = smoke.get_config()
  config.model.update(SIZES)
  return config


def abstract_state(cfg):
  tx = optimizer.create(tiny_config())
  return jax.eval_shape(
    lambda key: create_state(GPT(cfg), tx, key), jax.random.key(0)
  )


def cfg_of(config, tokenizer):
  return GPTConfig.from_config(config.model, tokenizer.vocab_size, 'cpu')


def make_run(path):
  config, tokenizer = tiny_config(), char()
  cfg = cfg_of(config, tokenizer)
  state = randomized(abstract_state(cfg)).replace(step=np.asarray(7, np.int32))
  meta = {
    'best_loss': 3.465,
    'plateau': {'best_loss': 3.465, 'best_step': 7, 'stopped': False},
    'validation': 'abc',
    'elapsed_s': 1.5,
  }
  checkpoints = Checkpoints(path, 2, options_of(cfg, config.opt))
  for which in (LATEST, BEST):
    assert checkpoints.save(which, state, meta)
  assert checkpoints.wait()
  checkpoints.close()
  tokenizer.save(path / 'tokenizer')
  config_file.save_config(path, config)
  make_logs(path)
  make_record(path)


def make_adapters(path):
  """A run of LoRA adapters and the run that is their base."""
  (path / 'base').mkdir()
  make_run(path / 'base')
  config, run, tokenizer = tiny_config(), path / 'run', char()
  config.opt.lora_rank = 2
  cfg = cfg_of(config, tokenizer)
  adapters = lora.abstract(lora.adapted(GPT(cfg), config.opt))
  state = TrainState(
    step=np.asarray(7, np.int32),
    params=randomized(adapters),
    opt_state={'m': np.zeros(1)},
    lr_scale=np.asarray(1, np.float32),
  )
  whole = load.load_model(path / 'base')
  run.mkdir()
  base.record(
    run, str(path / 'base'), base.fingerprint(whole.cfg, whole.params)
  )
  checkpoints = Checkpoints(run, 2, options_of(cfg, config.opt))
  assert checkpoints.save(LATEST, state, {}) and checkpoints.wait()
  checkpoints.close()
  tokenizer.save(run / 'tokenizer')
  config_file.save_config(run, config)


def read_adapters(path):
  return load.load_model(path / 'run', base_at=str(path / 'base')).params


def make_logs(path):
  lines = [
    {'step': i, 'train_loss': 4 - i / 10, 'val_loss': 4.0, 'time': 1e9 + i}
    for i in range(1, 8)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  text = ''.join(f'--- step {i}\nThe king\n' for i in range(1, 8))
  (path / 'samples.txt').write_text(text)


def make_record(path):
  record.write(path, 'files', 'text.txt (1 file)', 'ab' * 32)


def read_config(path):
  config, cfg = config_file.read_configs(path, char().vocab_size)
  load.load_tokenizer(path)
  return options_of(cfg, config['opt'])


def read_meta(path):
  metas = []
  for file in sorted(path.glob('checkpoints/*/7')):
    metas.append(checkpoint.read_meta(file))
  return metas


def read_arrays(path):
  cfg = GPTConfig(vocab_size=char().vocab_size, **SIZES)
  target = abstract_state(cfg)
  paths = [path / 'checkpoints' / LATEST / '7']
  _, (state, _) = checkpoint.first_readable(
    paths, lambda path: checkpoint.restore_state(path, target)
  )
  _, params = checkpoint.first_readable(paths, checkpoint.restore_params)
  return state, params


def read_run(path):
  loaded = load.load_model(path)
  info.page(info.describe(loaded, path))
  read_run_record(path)
  return loaded.params


def read_record(path):
  return record.read(path)


def make_plan(path):
  now = {'bits_per_byte': 2.1}
  targets = [Target(0, 100), Target(7, 90, 'measured', 12.5, 0.03)]
  end = {'step': 90, 'elapsed_s': 57.5, 'bits_per_byte': {'final': 2.2}}
  path.mkdir(exist_ok=True)
  plan.Record('1m', 60.0, {'lr': 0.01}, {'now': now}, targets, end).write(path)


def read_plan(path):
  found = outcome.describe(path)
  return found and outcome.line(found)


def make_char(path):
  char().save(path)


def make_spm(path):
  build_tokenizer('sentencepiece', [TEXT], 300).save(path)


def make_randy(path):
  tokens = ['<|bos|>', '<|eos|>', *sorted(set(TEXT)), 'no', 'bo', 'body']
  tokens[-1:] = ['dy', 'body']
  merges = [('n', 'o'), ('b', 'o'), ('d', 'y'), ('bo', 'dy')]
  RandyTokenizer(tokens, merges, ('<|user|>',)).save(path)


def make_hf(path):
  build_tokenizer('hf', [TEXT], 300, CHAT_TOKENS).save(path)


def make_template(path):
  tokenizer = build_tokenizer('hf', [TEXT], 300, CHAT_TOKENS)
  tokenizer.chat_template = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' "
    "else '<assistant>' }}{{ m['content'] | trim }}{{ '<end_turn>' }}"
    '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
  )
  tokenizer.save(path)


def read_template(path):
  template = ChatTemplate(load_tokenizer(path))
  ids, mask = template.conversation(CONVERSATION)
  return ids, mask, template.stop_ids


def make_vocab(path):
  make_randy(path)
  (path / 'tokenizer.json').unlink()


def make_model(path):
  make_spm(path)
  (path / 'tokenizer.json').unlink()


def make_hf_json(path):
  make_hf(path)
  (path / 'hf_tokenizer.json').rename(path / 'tokenizer.json')


def tokenizer_values(tokenizer):
  """The observable behaviour of a tokenizer."""
  ids = tokenizer.encode(PROBE)
  return [
    tokenizer.kind,
    tokenizer.vocab_size,
    tokenizer.special_tokens,
    ids,
    tokenizer.decode(ids),
    tokenizer.unsampleable_ids,
  ]


def read_tokenizer(path):
  return tokenizer_values(load_tokenizer(path))


def read_vocab(path):
  return tokenizer_values(read_vocab_json(path / 'vocab.json'))


def read_model(path):
  return tokenizer_values(read_sentencepiece(path / 'spm.model'))


def read_hf_json(path):
  return tokenizer_values(hf_json(path / 'tokenizer.json'))


def make_text(path):
  (path / 'text.txt').write_text(TEXT)


def make_records(path):
  lines = [json.dumps({'text': line}) for line in TEXT.splitlines()[:30]]
  (path / 'a.jsonl').write_text('\n'.join(lines))
  (path / 'b.jsonl.gz').write_bytes(gzip.compress('\n'.join(lines).encode()))


def read_records(path):
  sources = find_sources([path / 'a.jsonl', path / 'b.jsonl.gz'])
  return [x or '' for x in iter_pieces(sources, 'none', TextStats())]


def make_token_file(path):
  header = np.zeros(256, '<i4')
  header[:3] = 20240520, 1, 300
  ids = np.arange(300) % char().vocab_size
  (path / 'a.bin').write_bytes(header.tobytes() + ids.astype('<u2').tobytes())
  np.save(path / 'b.npy', ids.astype('<u2'))


def read_token_file(path):
  corpus = token_files.open_tokens(
    find_sources([path / 'a.bin', path / 'b.npy']),
    char(),
    path / 'cache',
    0.1,
  )
  return np.array(corpus.tokens)


def make_cache(path):
  make_text(path)
  read_cache(path)


def read_cache(path):
  tokens, starts, found = token_cache.load_or_encode(
    find_sources(str(path / 'text.txt')), char(), 'blank_line', path / 'cache'
  )
  return np.array(tokens), starts, vars(found) | {'stats': vars(found.stats)}


def read_metrics(path):
  return metrics.read(path / 'metrics.jsonl')


def read_samples(path):
  return samples.read(path)


def read_report(path):
  return report(path)


def make_chat(path):
  lines = [json.dumps(CONVERSATION)] * 10
  (path / 'chat.jsonl').write_text('\n'.join(lines) + '\n')


def read_chat(path):
  sources = find_sources(str(path / 'chat.jsonl'), format='chat')
  return list(conversations.iter_conversations(sources, TextStats()))


def read_text(path):
  sources = find_sources(str(path / 'text.txt'))
  return ''.join(
    x or '' for x in iter_pieces(sources, 'blank_line', TextStats())
  )


def read_lines(path):
  sources = find_sources(str(path / 'text.txt'))
  return [
    line for s in sources.items for _, line in iter_whole_lines(s, TextStats())
  ]
