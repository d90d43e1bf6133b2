"""Requests take turns, and readers that do not read hold nobody up."""

import time
import types

import numpy as np
import pytest

from gpt.decoding.grammars import Grammar, Source
from gpt.model import GPTConfig
from serving.engine import events, jobs, scheduler
from serving.engine.errors import QueueFull
from serving.engine.jobs import ALL_UNREAD, UNREAD, hold_back
from serving.engine.sampling import Sampling
from serving.engine.scheduler import Scheduler
from tests.support.engine_tools import TOKENIZER, Harness

CFG = GPTConfig(
  vocab_size=TOKENIZER.vocab_size,
  n_embd=32,
  n_head=4,
  n_layer=2,
  block_size=32,
)
NO_EOS = {TOKENIZER.eos_id: -100.0}
FOREVER = {'max_tokens': 10**6, 'logit_bias': NO_EOS}
REQUESTS = [
  {},
  {'temperature': 0.0},
  {'top_k': 3, 'top_p': 1.0, 'n': 3},
  {'min_p': 0.2, 'top_p': 1.0, 'logprobs': 3},
  {'repetition': 1.5, 'frequency': 0.7, 'presence': 0.5},
  {'overflow': 'exact'},
  {'overflow': 'stop'},
  {'echo': True, 'logprobs': 1},
  {'stop': ('never this',), 'n': 2},
]


@pytest.fixture(
  scope='module',
  params=[1 << 20, pytest.param(0, marks=pytest.mark.slow)],
  ids=['kept', 'refilled'],
)
def harness(request):
  """One lane of two slots; columns of preempted requests are kept, or not."""
  harness = Harness(
    CFG,
    slots=2,
    lanes=1,
    shapes=[(2, 4, 32)],
    prefix_bytes=request.param,
  )
  yield harness
  assert harness.engine.state == 'ready' and not harness.died
  assert harness.engine.scheduler.counts() == (0, 0, 0)
  assert harness.engine.prefixes.reserved == 0
  harness.close()


def test_texts_that_follow_a_grammar_survive_turns_too(harness, monkeypatch):
  pytest.importorskip('llguidance')
  grammar = Grammar(Source('regex', '([a-z]{3} )*', 'regex'), TOKENIZER)
  fields = {'max_tokens': 60, 'logit_bias': NO_EOS, 'grammar': grammar}
  alone = [
    answer(harness, harness.submit([5], seed=i, **fields)) for i in range(4)
  ]
  before = preemptions(harness)
  monkeypatch.setattr(scheduler, 'FIRST_SLICE', 0.0)
  monkeypatch.setattr(scheduler, 'SLICE', 0.0)
  together = [harness.submit([5], seed=i, **fields) for i in range(4)]
  assert [answer(harness, job) for job in together] == alone
  assert preemptions(harness) > before


def answer(harness, job):
  """Ids and log-probabilities of every choice."""
  tokens = {}
  for event in harness.wait(job):
    if isinstance(event, events.Delta):
      tokens.setdefault(event.index, []).extend(event.tokens)
  return [
    (
      seq.sampled.tolist(),
      [t.logprob for t in tokens.get(seq.index, ())],
      seq.finish,
    )
    for seq in job.sequences
  ]


def test_requests_that_take_turns_have_the_texts_they_have_alone(
  harness, monkeypatch
):
  prompts = ([5], [6, 7, 8], [9] * 31, [10, 11] * 30)
  asked = [
    (prompt, {'seed': i, 'max_tokens': 45, 'logit_bias': NO_EOS, **fields})
    for i, (prompt, fields) in enumerate(zip(prompts * 3, REQUESTS))
  ]
  alone = [answer(harness, harness.submit(p, **f)) for p, f in asked]
  before = preemptions(harness)
  monkeypatch.setattr(scheduler, 'FIRST_SLICE', 0.0)
  monkeypatch.setattr(scheduler, 'SLICE', 0.0)
  monkeypatch.setattr('serving.engine.engine.SLICE_TO_SWAP', 0)
  together = [harness.submit(p, **f) for p, f in asked]
  for wanted, job in zip(alone, together):
    for (ids, logprobs, finish), (ids2, logprobs2, finish2) in zip(
      wanted, answer(harness, job)
    ):
      assert (ids2, finish2) == (ids, finish), job.sampling
      np.testing.assert_allclose(logprobs2, logprobs, atol=1e-5)
  assert preemptions(harness) > before + 50


def preemptions(harness):
  return harness.metrics.registry.get_sample_value('rgpt_preemptions_total')


def test_endless_requests_on_every_slot_let_another_through(harness):
  endless = [harness.submit([5 + i], **FOREVER) for i in range(5)]
  while not all(job.first for job in endless):  # All five, on two slots.
    time.sleep(0.001)
  for i in range(3):
    job = harness.submit([9, i], max_tokens=20, logit_bias=NO_EOS)
    harness.wait(job)
    assert len(job.sequences[0].sampled) == 20
  assert not any(job.ended for job in endless)
  for job in endless:
    harness.engine.cancel(job, 'disconnect')
  for job in endless:
    harness.wait(job)


def test_a_cancelled_request_that_waits_gives_its_memory_back(harness):
  endless = [harness.submit([5] * 20, **FOREVER) for _ in range(3)]
  while not preemptions(harness) or not all(job.first for job in endless):
    time.sleep(0.001)
  for job in endless:
    harness.engine.cancel(job, 'disconnect')
  for job in endless:
    harness.wait(job)
  assert harness.engine.prefixes.reserved == 0


def test_a_request_that_nobody_reads_pauses_and_goes_on_when_it_is_read(
  harness,
):
  fields = {'seed': 3, 'max_tokens': 600, 'logprobs': 20, 'logit_bias': NO_EOS}
  wanted = harness.run([5, 6], **fields)
  job = harness.submit([5, 6], unread=True, **fields)
  while not job.behind:
    time.sleep(0.001)
  generated = len(job.sequences[0].sampled)
  assert generated < 300
  # At most one block more than the bound, and others are served meanwhile.
  for _ in range(3):
    harness.run([7], max_tokens=20)
  assert len(job.sequences[0].sampled) == generated
  assert job.posted - job.taken < UNREAD + 4 * 21 * 200
  while not job.ended:
    harness.read(job)
    harness.unread.add(job)
    time.sleep(0.001)
  assert [job.sequences[0].sampled.tolist()] == wanted


def test_paused_requests_leave_their_slots_to_others(harness):
  fields = {'logprobs': 20, **FOREVER}
  paused = [harness.submit([5, 6], unread=True, **fields) for _ in range(6)]
  while not all(job.behind for job in paused):
    time.sleep(0.001)
  running = harness.submit([7], **FOREVER)
  assert len(harness.run([8], max_tokens=50, logit_bias=NO_EOS)[0]) == 50
  assert running.ended is None
  for job in [*paused, running]:
    harness.engine.cancel(job, 'slow_reader')
  for job in [*paused, running]:
    harness.wait(job)


def test_all_unread_events_together_are_bounded():
  jobs_ = [jobs.Job(Sampling()) for _ in range(1024)]
  for job in jobs_:
    job.posted = 100 << 10
  hold_back(jobs_[:8])
  assert not any(job.behind for job in jobs_)
  hold_back(jobs_)
  assert all(job.behind for job in jobs_)  # 64 KiB each.
  assert ALL_UNREAD // 1024 < 100 << 10 < UNREAD


@pytest.fixture
def clock(monkeypatch):
  """Time that passes only when a test says so: clock.now, in seconds."""
  clock = types.SimpleNamespace(now=100.0)
  fake = types.SimpleNamespace(perf_counter=lambda: clock.now)
  monkeypatch.setattr(scheduler, 'time', fake)
  monkeypatch.setattr(jobs, 'time', fake)
  return clock


def queued(queue, n=1):
  """A job of n sequences in the queue."""
  queue.reserve()
  job = jobs.Job(Sampling(n=n))
  job.fill([np.array([5], np.int32)], None, (), TOKENIZER)
  queue.submit(job)
  return job


def test_later_requests_pass_one_that_has_had_much(clock):
  queue = Scheduler(1, 10)
  long = queued(queue)
  first = queue.next()
  assert first.job is long
  clock.now += 2.0
  queue.put_back(first)
  short = queued(queue)
  assert queue.next().job is short
  # After four seconds for each it is its turn again.
  clock.now += 9.0
  other = queued(queue)
  assert queue.next().job is long
  assert queue.next().job is other


def test_slots_are_taken_from_who_has_most_and_only_after_a_slice(clock):
  queue = Scheduler(3, 10)
  wide, single = queued(queue, n=2), queued(queue)
  active = [queue.next() for _ in range(3)]
  assert [seq.job for seq in active].count(wide) == 2
  assert queue.victim(active) is None  # Nobody waits.
  waiting = queued(queue)
  assert queue.victim(active) is None  # The slices are young.
  clock.now += scheduler.FIRST_SLICE
  seq = queue.victim(active)
  assert seq.job is wide
  assert queue.victim(active, slowest=9.0) is None
  single.behind = True  # Nobody reads it: its slice does not matter.
  assert queue.victim(active, slowest=9.0).job is single
  waiting.behind = True
  assert queue.victim(active) is None and queue.next() is None


def test_a_full_queue_counts_neither_long_nor_unread_requests(clock):
  queue = Scheduler(1, 2)
  running = [queued(queue) for _ in range(3)]
  seq = queue.next()
  with pytest.raises(QueueFull, match='2 requests are waiting') as e:
    queued(queue)
    queued(queue)
  assert 0 < e.value.wait < 5
  running[1].behind = True
  queued(queue)
  running[2].served = 100.0
  queued(queue)
  with pytest.raises(QueueFull):
    queued(queue)
  assert seq.job is running[0]


def test_the_queue_is_bounded_whatever_waits():
  queue = Scheduler(1, 2)
  with pytest.raises(QueueFull):
    for _ in range(100):
      queued(queue).behind = True
