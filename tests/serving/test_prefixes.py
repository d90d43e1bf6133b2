"""Prompts that begin like earlier ones: the same texts, with less work."""

import concurrent.futures
import itertools

import jax
import numpy as np
import pytest

from gpt.model import GPTConfig
from serving.engine.prefixes import BLOCK, PrefixCache
from serving.engine.weights import Weights
from tests.support.engine_tools import TOKENIZER, Harness, random_params

CFG = GPTConfig(
  vocab_size=TOKENIZER.vocab_size,
  n_embd=32,
  n_head=4,
  n_kv_head=2,
  n_layer=2,
  block_size=160,
)
SHAPES = [(2, 8, 160)]
NO_EOS = {TOKENIZER.eos_id: -100.0}
SETTINGS = [
  {},
  {'temperature': 0.0},
  {'top_k': 5, 'top_p': 1.0},
  {'repetition': 1.4, 'frequency': 0.5, 'presence': 0.3},
  {'logprobs': 3},
]


@pytest.fixture(scope='module')
def cached():
  harness = Harness(CFG, shapes=SHAPES, prefix_bytes=32 << 10)
  yield harness
  assert harness.engine.state == 'ready' and not harness.died
  assert harness.engine.prefixes.size <= 32 << 10
  harness.close()


@pytest.fixture(scope='module')
def plain():
  harness = Harness(CFG, shapes=SHAPES, prefix_bytes=0)
  yield harness
  harness.close()


def run(harness, prompt, **fields):
  """(sampled ids, cached tokens) of one choice."""
  job = harness.submit(prompt, logit_bias=NO_EOS, **fields)
  harness.wait(job)
  return job.sequences[0].sampled.tolist(), job.cached_tokens


def conversation(harness, seed, turns=3):
  """The texts of a conversation whose prompts grow, and its cached tokens."""
  rng = np.random.default_rng(seed)
  system = np.random.default_rng(seed % 3).integers(3, 60, 40).tolist()
  fields = {'seed': seed, **SETTINGS[seed % len(SETTINGS)]}
  tokens, texts, cached = system, [], []
  for _ in range(turns):
    tokens = tokens + rng.integers(3, 60, rng.integers(1, 25)).tolist()
    text, known = run(
      harness, tokens, max_tokens=int(rng.integers(1, 20)), **fields
    )
    texts.append(text)
    cached.append(known)
    tokens = tokens + text
  return texts, cached


def test_conversations_side_by_side_have_the_texts_they_have_without_reuse(
  cached, plain
):
  seeds = range(15)
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    found = list(pool.map(lambda seed: conversation(cached, seed), seeds))
    wanted = list(pool.map(lambda seed: conversation(plain, seed), seeds))
  assert [texts for texts, _ in found] == [texts for texts, _ in wanted]
  assert sum(map(sum, (known for _, known in found))) > 500
  assert not any(map(any, (known for _, known in wanted)))


def test_the_next_turn_prefills_only_what_is_new(cached):
  first = list(range(3, 60)) * 2
  text, _ = run(cached, first, max_tokens=14, seed=1)
  turn = [*first, *text, 5, 6, 7]
  known = len(first) + len(text) - 1  # Its last token has no column.
  assert run(cached, turn, max_tokens=1) == (
    run(cached, turn, max_tokens=1)[0],
    known,
  )


def test_a_prompt_is_reused_while_its_request_still_runs(cached):
  prompt = [9, 8, 7] * 20
  forever = {'max_tokens': 10**6, 'logit_bias': NO_EOS}
  running = cached.submit(prompt, **forever)
  while not running.sequences[0].sampled:
    pass
  _, known = run(cached, prompt, max_tokens=2)
  assert known == (len(prompt) - 1) // BLOCK * BLOCK
  assert running.ended is None
  cached.engine.cancel(running, 'disconnect')
  cached.wait(running)


def test_choices_of_a_prompt_report_what_their_first_one_reused(cached):
  prompt = [11, 12, 13, 14] * 12
  run(cached, prompt, max_tokens=1)
  job = cached.submit(prompt, [5], n=6, max_tokens=2)
  cached.wait(job)
  assert (
    (len(prompt) - 1) // BLOCK * BLOCK
    <= job.cached_tokens
    < len(prompt)
    < job.prompt_tokens
  )


def test_a_free_slot_is_taken_again_with_all_columns_it_has(cached, plain):
  prompt = np.random.default_rng(7).integers(3, 60, 37).tolist()
  text, _ = run(cached, prompt, max_tokens=5)
  longer = [*prompt, *text, 9, 8]
  again, known = run(cached, longer, max_tokens=9)
  # Its last token has no column; blocks would have given 32.
  assert known == len(prompt) + len(text) - 1
  assert (again, 0) == run(plain, longer, max_tokens=9)
  other, known = run(cached, [*prompt[:20], 4, 4], max_tokens=9)
  assert known == 20
  assert (other, 0) == run(plain, [*prompt[:20], 4, 4], max_tokens=9)


def test_windows_that_have_moved_are_not_kept(cached):
  size = cached.engine.prefixes.size
  run(cached, [21, 22] * 70, max_tokens=300)
  prompt_blocks = 139 // BLOCK
  of_block = BLOCK * 2 * CFG.n_layer * 2 * 8 * 4
  assert cached.engine.prefixes.size - size <= prompt_blocks * of_block


def test_new_weights_start_from_nothing(cached, plain):
  prompt = list(range(3, 63))
  run(cached, prompt, max_tokens=2)
  old = cached.engine.weights
  new = Weights(jax.device_put(random_params(CFG, seed=1)), 'new')
  for harness in (cached, plain):
    harness.engine.swap(new)
  text, known = run(cached, prompt, max_tokens=20)
  assert known == 0 and text == run(plain, prompt, max_tokens=20)[0]
  assert run(cached, prompt, max_tokens=20) == (text, len(prompt) - 1)
  for harness in (cached, plain):
    harness.engine.swap(old)
  assert run(cached, prompt, max_tokens=2)[1] == 0  # Dropped, not hidden.


def columns(n, value=0.0):
  return np.full((2, 1, n, 4), value, np.float32)


def test_the_longest_unused_end_of_a_prefix_goes_first():
  size = columns(BLOCK).nbytes
  cache, weights = PrefixCache(3 * size), Weights({}, 'w')
  cache.keep([weights])
  a, b = np.arange(3 * BLOCK, dtype=np.int32), np.full(BLOCK, 7, np.int32)
  cache.enter(weights, a, lambda first, n: columns(n, first))
  assert cache.size == 3 * size
  cache.enter(weights, b, lambda first, n: columns(n))
  assert [x[0, 0, 0, 0] for x in cache.find(weights, a)] == [0.0, 0.0]
  assert len(cache.find(weights, b)) == 1 and cache.size == 3 * size
  cache.find(weights, a)
  assert cache.reserve(size)  # Held by others: the oldest, b, makes room.
  assert not cache.find(weights, b) and len(cache.find(weights, a)) == 2
  assert not cache.reserve(3 * size)
  cache.keep([])
  assert cache.size == 0 and not cache.find(weights, a)
  cache.enter(weights, a, lambda first, n: columns(n))
  assert cache.size == 0


def test_a_cache_under_random_use_finds_only_what_was_entered():
  """Against a plain dict; the value of a column is the hash of its prefix."""
  rng = np.random.default_rng(0)
  cache, weights = PrefixCache(20 * columns(BLOCK).nbytes), Weights({}, 'w')
  cache.keep([weights])

  def value(tokens, i):
    return float(hash(tokens[: i + 1].tobytes()) % 1000)

  hits = 0
  for _ in range(500):
    parts = rng.integers(0, 2, rng.integers(1, 6))
    tokens = np.repeat(parts, BLOCK).astype(np.int32)
    tokens = tokens[: len(tokens) - rng.integers(0, BLOCK)]
    found = cache.find(weights, tokens)
    for i in range(len(found)):
      assert found[i][0, 0, -1, 0] == value(tokens, (i + 1) * BLOCK - 1)
    hits += len(found)

    def read(first, n, tokens=tokens):
      out = columns(n)
      for i in range(n):
        out[:, :, i] = value(tokens, first + i)
      return out

    cache.enter(weights, tokens, read)
    assert cache.size <= cache.limit
  assert hits > 500


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    {'pos': 'rope', 'n_kv_head': 1},
    {'n_head': 2, 'block_size': 200, 'mlp': 'gelu', 'bias': True},
    {'dtype': 'mixed'},
  ],
)
def test_other_models_have_the_texts_they_have_without_reuse(options):
  cfg = GPTConfig(
    **{
      'vocab_size': TOKENIZER.vocab_size,
      'n_embd': 32,
      'n_head': 4,
      'n_layer': 2,
      'block_size': 160,
      **options,
    }
  )
  params = random_params(cfg)
  both = [
    Harness(cfg, params=params, prefix_bytes=size) for size in (1 << 20, 0)
  ]
  found, wanted = ([conversation(h, seed) for seed in range(30)] for h in both)
  same = sum(
    a == b
    for a, b in itertools.chain.from_iterable(
      zip(x, y) for (x, _), (y, _) in zip(found, wanted)
    )
  )
  assert any(map(any, (known for _, known in found)))
  assert same == 90
  for harness in both:
    harness.close()
