"""The engine against the full forward pass, token by token."""

import dataclasses
import logging
import threading

import jax
import numpy as np
import pytest

from configs import (
  model_deep,
  model_ds,
  model_l,
  model_m,
  model_s,
  model_xl,
  model_xs,
)
from gpt.model import GPT, GPTConfig
from serving.engine import events, jobs, programs
from serving.engine.compilations import compile_count
from serving.engine.errors import StepFailed
from serving.engine.sampling import Sampling
from serving.engine.scores import choice_logprobs
from serving.engine.weights import Weights
from tests.support.engine_tools import (
  TOKENIZER,
  Harness,
  Reference,
  random_params,
)

TINY = GPTConfig(
  vocab_size=TOKENIZER.vocab_size,
  n_embd=32,
  n_head=4,
  n_layer=2,
  block_size=32,
)
PRESETS = {
  'xs': model_xs,
  's': model_s,
  'ds': model_ds,
  'm': model_m,
  'l': model_l,
  'deep': model_deep,
  'xl': model_xl,
}
NO_EOS = {TOKENIZER.eos_id: -100.0}
SETTINGS = {
  'plain': {},
  'greedy': {'temperature': 0.0},
  'top_k': {'top_k': 3, 'top_p': 1.0},
  'min_p': {'min_p': 0.2, 'top_p': 1.0},
  'hot': {'temperature': 2.0, 'top_p': 1.0},
  'penalties': {'repetition': 1.5, 'frequency': 0.7, 'presence': 0.5},
}


@pytest.fixture(scope='module')
def tiny():
  harness = Harness(TINY)
  yield harness
  assert harness.engine.scheduler.counts() == (0, 0, 0)
  harness.close()


@pytest.fixture(scope='module')
def reference(tiny):
  return Reference(TINY, tiny.params)


def ids(text):
  return TOKENIZER.encode(text).tolist()


@pytest.mark.parametrize('name', SETTINGS)
def test_text_equals_that_of_full_forward_passes(tiny, reference, name):
  fields = {'seed': 7, 'max_tokens': 24, **SETTINGS[name]}
  wanted, _ = reference.run(ids('Hello'), **fields)
  assert tiny.run(ids('Hello'), **fields) == [wanted]


@pytest.mark.parametrize('overflow', ['slide', 'exact'])
@pytest.mark.parametrize('prompt', ['ab', 'z' * 33, 'The quick fox ' * 9])
def test_slides_equal_brute_force(tiny, reference, overflow, prompt):
  fields = {
    'seed': 3,
    'max_tokens': 75,
    'overflow': overflow,
    'frequency': 0.5,
    'logit_bias': NO_EOS,
  }
  wanted, _ = reference.run(ids(prompt), **fields)
  assert tiny.run(ids(prompt), **fields) == [wanted]


def test_stop_mode_ends_where_the_window_would_move(tiny):
  fields = {'overflow': 'stop', 'max_tokens': 500, 'logit_bias': NO_EOS}
  job = tiny.submit(ids('x' * 30), **fields)
  tiny.wait(job)
  (seq,) = job.sequences
  assert len(seq) == TINY.block_size + 1 and seq.finish == 'length'
  assert tiny.run(ids('x' * 33), **fields) == [[]]


def test_every_slot_and_every_neighbour_gives_the_same_text(tiny, reference):
  """Slots are taken and reused in an order nobody controls."""
  rng = np.random.default_rng(0)
  texts = [ids('Once upon'), ids('a'), ids('q' * 31), ids('long text ' * 6)]
  fields = [
    {'seed': i, 'max_tokens': 11 + 9 * i, **list(SETTINGS.values())[i]}
    for i in range(6)
  ]
  cases = [(t, f) for t in range(len(texts)) for f in range(len(fields))]
  wanted = {(t, f): reference.run(texts[t], **fields[f])[0] for t, f in cases}
  order = [cases[i] for i in rng.permutation(np.repeat(range(len(cases)), 3))]
  running = [
    (case, tiny.submit(texts[case[0]], **fields[case[1]])) for case in order
  ]
  slots = set()
  for case, job in running:
    tiny.wait(job)
    (seq,) = job.sequences
    slots.add((seq.lane, seq.slot))
    assert seq.sampled.tolist() == wanted[case], case
  assert len(slots) == 4


def test_block_sizes_and_lanes_do_not_change_the_text(tiny):
  settings = (
    {'slots': 4, 'lanes': 1, 'shapes': [(4, 16, 32)]},
    {'slots': 3, 'lanes': 2, 'shapes': [(1, 4, 32), (2, 1, 32)]},
    {'slots': 1, 'lanes': 1, 'shapes': [(1, 8, 32)]},
  )
  fields = {
    'seed': 5,
    'max_tokens': 50,
    'logit_bias': NO_EOS,
    'repetition': 1.3,
  }
  wanted = tiny.run(ids('Hi'), **fields)
  for setting in settings:
    other = Harness(TINY, **setting)
    assert other.run(ids('Hi'), **fields) == wanted
    other.close()


def test_choices_have_their_own_seeds(tiny):
  fields = {'max_tokens': 20, 'logit_bias': NO_EOS}
  three = tiny.run(ids('Hello'), ids('abc'), seed=40, n=3, **fields)
  singles = [
    tiny.run(ids(text), seed=40 + i, **fields)[0]
    for text in ('Hello', 'abc')
    for i in range(3)
  ]
  assert three == singles
  assert len({tuple(x) for x in three}) == 6


def test_sampled_log_probabilities_are_those_of_raw_logits(tiny, reference):
  fields = {
    'seed': 1,
    'max_tokens': 40,
    'temperature': 0.5,
    'frequency': 1.0,
    'logit_bias': NO_EOS,
  }
  job = tiny.submit(ids('Hello'), logprobs=4, **fields)
  deltas = [e for e in tiny.wait(job) if isinstance(e, events.Delta)]
  tokens = [t for delta in deltas for t in delta.tokens]
  wanted_ids, wanted = reference.run(ids('Hello'), **fields)
  assert [t.id for t in tokens] == wanted_ids
  np.testing.assert_allclose([t.logprob for t in tokens], wanted, atol=1e-4)
  for token in tokens:
    values = [value for _, value in token.top]
    assert len(values) == 4 and values == sorted(values, reverse=True)


@pytest.mark.parametrize('overflow', ['slide', 'exact'])
def test_prompt_log_probabilities_follow_the_window(tiny, reference, overflow):
  prompt = ids('The quick brown fox. ' * 5)
  job = tiny.submit(
    prompt, echo=True, logprobs=2, max_tokens=0, overflow=overflow
  )
  (scored,) = [e for e in tiny.wait(job) if isinstance(e, events.Scored)]
  assert [t.id for t in scored.tokens] == prompt
  assert scored.tokens[0].logprob is None
  for i in range(1, len(prompt)):
    _, logp = reference.step(prompt[:i], Sampling(overflow=overflow))
    token = scored.tokens[i]
    assert abs(token.logprob - logp[prompt[i]]) < 1e-4, i
    assert abs(token.top[0][1] - logp.max()) < 1e-4


@pytest.mark.parametrize('prompt', [ids('H'), [TOKENIZER.bos_id]])
@pytest.mark.parametrize('max_tokens', [0, 2])
def test_a_prompt_of_one_token_is_scored_too(tiny, prompt, max_tokens):
  fields = {'echo': True, 'logprobs': 0, 'n': 2, 'max_tokens': max_tokens}
  posted = tiny.wait(tiny.submit(prompt, [5, 6], **fields))
  scores = [e for e in posted if isinstance(e, events.Scored)]
  scored = {e.prompt: e.tokens for e in scores}
  assert [t.id for t in scored[0]] == prompt and scored[0][0].logprob is None
  assert [t.id for t in scored[1]] == [5, 6]
  assert len(scores) == 2


@pytest.mark.parametrize('k', [0, 1, 3, 7, 8, 20])
def test_alternatives_are_the_largest_with_ties_by_id(k):
  logits_kV = np.array(
    [
      [1, 5, 5, 2, 5, 1, 0, 1],
      [0] * 8,
      [7, 6, 5, 4, 3, 2, 1, -np.inf],
    ],
    np.float32,
  )
  for row_V, (logprob, top) in zip(
    logits_kV, choice_logprobs(logits_kV, [3, 3, 3], k)
  ):
    wanted = np.argsort(-row_V, kind='stable')[:k].tolist()
    assert [id for id, _ in top] == wanted
    logp_V = row_V - np.log(np.exp(row_V).sum())
    assert logprob == pytest.approx(logp_V[3])
    assert [x for _, x in top] == pytest.approx(logp_V[wanted].tolist())


def test_filters_too_small_for_float32_still_keep_something(tiny):
  fields = {'seed': 6, 'max_tokens': 12, 'logit_bias': NO_EOS}
  greedy = tiny.run(ids('Hello'), temperature=0.0, **fields)
  assert tiny.run(ids('Hello'), top_p=1e-45, **fields) == greedy
  assert tiny.run(ids('Hello'), repetition=1e-45, **fields) == tiny.run(
    ids('Hello'), repetition=1e-6, **fields
  )


def test_choices_share_the_tables_of_their_stop_strings(tiny):
  job = tiny.submit(*[ids('a')] * 3, n=4, stop=('never this',), max_tokens=1)
  tiny.wait(job)
  (stop,) = job.stops
  tables = {id(m._fallback) for s in job.sequences for m in s._text._matchers}
  assert tables == {id(stop.fallback)}


def test_compiling_logs_its_progress(monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  monkeypatch.setattr(programs, 'PROGRESS_SECONDS', 0.01)

  def last():
    while 'compiling: 1 of 2 programs' not in caplog.text:
      pass

  monkeypatch.setattr(
    programs.Programs, '_jobs', lambda *_: [lambda: None, last]
  )
  assert programs.Programs(GPT(TINY), 1).compile({}) == 2


def test_a_program_that_does_not_compile_ends_the_wait(monkeypatch):
  def fail():
    raise RuntimeError('boom')

  monkeypatch.setattr(
    programs.Programs, '_jobs', lambda *_: [fail, *[lambda: None] * 9]
  )
  with pytest.raises(RuntimeError, match='boom'):
    programs.Programs(GPT(TINY), 1).compile({})


def test_no_request_compiles_anything(tiny):
  tiny.run(ids('a'), max_tokens=1)  # Until it is ready.
  before = compile_count().value
  assert before > 0
  work = [tiny.submit([5], max_tokens=300, overflow='exact')]
  for i, fields in enumerate(SETTINGS.values()):
    work += [
      tiny.submit(
        [2 + i] * n,
        seed=i,
        max_tokens=1 + 3 * i,
        n=1 + i % 3,
        logprobs=i,
        echo=bool(i % 2),
        **fields,
      )
      for n in (1, 31, 32, 33, 200)
    ]
  for job in work:
    tiny.wait(job)
  assert compile_count().value == before


def test_cancelled_jobs_free_their_slots(tiny):
  forever = {'max_tokens': 10**6, 'logit_bias': NO_EOS}
  many = [tiny.submit(ids('a'), n=8, **forever) for _ in range(4)]
  for job in many:
    tiny.engine.cancel(job, 'disconnect')
  for job in many:
    tiny.wait(job)
  assert tiny.engine.scheduler.counts() == (0, 0, 0)
  assert len(tiny.run(ids('b'), max_tokens=3)) == 1


def test_a_request_of_many_choices_leaves_room_for_a_small_one(tiny):
  big = tiny.submit(*[ids('a')] * 20, n=8, max_tokens=2000, logit_bias=NO_EOS)
  small = tiny.submit(ids('b'), max_tokens=2)
  tiny.wait(small)
  assert big.ended is None
  tiny.engine.cancel(big, 'disconnect')
  tiny.wait(big)


def test_swapped_weights_serve_new_jobs_and_old_ones_finish(tiny, reference):
  fields = {'seed': 9, 'max_tokens': 400, 'logit_bias': NO_EOS, 'n': 6}
  old_params, new_params = tiny.params, random_params(TINY, seed=1)
  before = compile_count().value
  wanted_old = tiny.run(ids('Hello'), **fields)
  old = tiny.submit(ids('Hello'), **fields)
  while old.weights is None:
    pass
  tiny.engine.swap(Weights(jax.device_put(new_params), 'second'))
  new = tiny.submit(ids('Hello'), **fields)
  tiny.wait(old), tiny.wait(new)
  assert [s.sampled.tolist() for s in old.sequences] == wanted_old
  assert [s.sampled.tolist() for s in new.sequences] != wanted_old
  wanted_new, _ = Reference(TINY, new_params).run(
    ids('Hello'), **{**fields, 'n': 1, 'max_tokens': 40}
  )
  assert new.sequences[0].sampled[:40].tolist() == wanted_new
  assert old.weights.fingerprint == 'first'
  assert new.weights.fingerprint == 'second'
  assert compile_count().value - before <= 1  # the reference itself
  tiny.engine.swap(Weights(old_params, 'first'))


@pytest.fixture(scope='module')
def single():
  """One lane with blocks of four steps."""
  harness = Harness(TINY, lanes=1, shapes=[(4, 4, 32)])
  yield harness
  assert harness.engine.state == 'ready' and not harness.died
  assert harness.engine.scheduler.counts() == (0, 0, 0)
  harness.close()


def test_gaps_between_tokens_and_tokens_of_usage_are_counted(single):
  def read(name):
    return single.metrics.registry.get_sample_value(f'rgpt_{name}')

  names = ('inter_token_latency_seconds_count', 'generation_tokens_total')
  before = [read(name) for name in names]

  def grown():
    return [read(name) - old for name, old in zip(names, before)]

  single.run(ids('Hello'), max_tokens=10, n=3, logit_bias=NO_EOS)
  # Four came with the first block, three gaps between them.
  assert grown() == [3 * 9, 30]
  assert 0 < read('inter_token_latency_seconds_sum') < 60
  single.run(ids('Hello'), logit_bias={TOKENIZER.eos_id: 100.0})
  assert grown() == [3 * 9, 30]


@pytest.mark.parametrize('broken', ['uniforms', 'fill', 'block'])
def test_a_failed_step_fails_its_requests_and_the_next_is_served(
  single, monkeypatch, broken
):
  wanted = single.run(ids('Hello'), max_tokens=9)
  works = getattr(single.engine.programs, broken)
  failures = [RuntimeError('boom')]

  def fail(*args):
    if failures:
      raise failures.pop()
    return works(*args)

  monkeypatch.setattr(single.engine.programs, broken, fail)
  posted = single.wait(single.submit(ids('Hello'), max_tokens=9, n=6))
  (failed,) = [e for e in posted if isinstance(e, events.Failed)]
  assert isinstance(failed.error, StepFailed)
  assert 'boom' not in str(failed.error)
  assert single.run(ids('Hello'), max_tokens=9) == wanted
  assert single.engine.state == 'ready' and not single.died


def test_a_sequence_counts_what_was_sampled_as_it_grows():
  job = jobs.Job(Sampling(max_tokens=99))
  job.fill([np.array([2, 2, 3])], None, (), TOKENIZER)
  (seq,) = job.sequences
  assert not seq.counts(8).any()
  for new in ([2, 5], [], [5, 5, 7]):
    seq.accept(new)
    counts = seq.counts(8)
    assert counts.dtype == np.int32
    wanted = np.bincount(np.array(seq.sampled, int), minlength=8)
    assert counts.tolist() == wanted.tolist()
    counts[:] = -1  # It is a copy.


def test_an_engine_that_keeps_failing_ends_every_request(monkeypatch):
  harness = Harness(TINY, lanes=1, shapes=[(4, 4, 32)])
  harness.run(ids('a'), max_tokens=1)

  submitted = threading.Event()

  def fail(*_):
    submitted.wait()
    raise RuntimeError('boom')

  monkeypatch.setattr(harness.engine.programs, 'block', fail)
  waiting = [harness.submit(ids('Hello'), n=5) for _ in range(12)]
  submitted.set()
  for job in waiting:
    assert any(isinstance(e, events.Failed) for e in harness.wait(job))
  assert harness.engine.join(120)
  assert harness.engine.state == 'failed'
  assert 'boom' in str(harness.died[0])


@pytest.mark.slow
@pytest.mark.parametrize('preset', PRESETS)
def test_presets_equal_full_forward_passes(preset):
  """Every shape, every slot, reused, and after a slide."""
  model = PRESETS[preset].get_config().model
  cfg = GPTConfig.from_config(model, TOKENIZER.vocab_size, 'cpu')
  cfg = dataclasses.replace(cfg, dropout=0.0)
  params = jax.tree.map(lambda x: x * 0.4, random_params(cfg))
  harness = Harness(
    cfg, slots=3, lanes=1, shapes=[(3, 8, 64), (3, 8, 256)], params=params
  )
  reference = Reference(cfg, params)
  cases = [
    (ids('Hello'), {'seed': 1, 'max_tokens': 12}),
    (ids('ab ' * 70), {'seed': 2, 'max_tokens': 60, 'logit_bias': NO_EOS}),
    (ids('xyz' * 30), {'seed': 3, 'max_tokens': 10, 'repetition': 1.2}),
    (ids('q'), {'seed': 4, 'max_tokens': 15, 'temperature': 0.0}),
  ]
  running = [(c, harness.submit(c[0], **c[1])) for c in cases * 2]
  slots = set()
  for (prompt, fields), job in running:
    harness.wait(job)
    (seq,) = job.sequences
    slots.add(seq.slot)
    assert seq.sampled.tolist() == reference.run(prompt, **fields)[0]
  assert slots == {0, 1, 2}
  harness.close()
