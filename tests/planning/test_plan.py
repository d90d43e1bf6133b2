"""The planner: pure, monotone in time, within the memory, sensible anywhere."""

import dataclasses
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs import budget as budget_config
from configs import default
from gpt.config_check import check_config
from gpt.errors import UserError
from gpt.planning import plan, recipe, table
from gpt.planning.budget import seconds_of
from gpt.planning.cost import Shape, memory_bytes, step_seconds
from gpt.planning.entropy import Entropy
from gpt.planning.machine import Machine
from gpt.planning.text import VOCABULARIES, Text
from gpt.runs.config_file import flatten


def text(size: int, format: str = 'text', **changes) -> Text:
  """A text of `size` bytes in English."""
  densities = {0: 1.0}
  for vocab, least in VOCABULARIES.items():
    if size >= least:
      densities[vocab] = 1.8 + 0.5 * len(densities)
  documents = 0 if format == 'text' else max(1, size // 800)
  known = Text(
    description='a text',
    format=format,
    bytes=size,
    share_read=1.0,
    share_trained=1.0,
    distinct_bytes=90,
    distinct_characters=90,
    entropy=Entropy(2.2, 2.35, 2.5),
    bytes_per_token=densities,
    characters=92,
    documents=documents,
    long_document=800 if documents else 0,
  )
  return dataclasses.replace(known, **changes)


def machine(gigaflops: float = 90, memory: float = 16e9, n: int = 2) -> Machine:
  """A CPU whose bfloat16 products take half the time."""
  rates = {96: 0.8 * gigaflops * 1e9, 256: gigaflops * 1e9}
  half = {width: 2 * rate for width, rate in rates.items()}
  return Machine('cpu', 'cpu', n, memory, {'float32': rates, 'mixed': half})


def usual() -> dict:
  """What a budget leaves alone: the keys of its config that have a value."""
  values = flatten(budget_config.get_config().to_dict())
  return {key: x for key, x in values.items() if x is not None}


texts = st.builds(
  text,
  st.integers(20_000, 1_000_000_000),
  st.sampled_from(['text', 'lines', 'chat']),
)
machines = st.builds(
  machine, st.floats(10, 5000), st.floats(2e9, 2e11), st.sampled_from([1, 2, 8])
)
times = st.floats(10, 8 * 3600)


@settings(max_examples=25, deadline=None)
@given(texts, machines, times, st.floats(1, 100))
def test_more_time_never_promises_a_worse_model(facts, where, seconds, factor):
  try:
    short = plan.best(facts, where, seconds, usual())
  except UserError:
    assume(False)
  long = plan.best(facts, where, factor * seconds, usual())
  assert long.bits_per_byte <= short.bits_per_byte + 1e-9


@settings(max_examples=25, deadline=None)
@given(texts, machines, times)
def test_a_plan_fits_time_and_memory_and_is_a_config(facts, where, seconds):
  try:
    now = plan.best(facts, where, seconds, usual())
  except UserError as e:
    assert 'too short' in str(e) or 'no model fits' in str(e)
    return
  assert now.memory <= plan.MEMORY_SHARE * where.memory
  assert now.fixed_s + now.steps * now.step_s <= seconds
  assert now.steps >= plan.FEWEST_STEPS
  config = default.get_config()
  config.update_from_flattened_dict(
    {k: x for k, x in now.options.items() if k in flatten(config.to_dict())}
  )
  check_config(config)
  assert config.model.n_embd % config.model.n_head == 0
  # The windows fit the validation split.
  held_out = config.data.val_fraction * facts.bytes / now.bytes_per_token
  assert facts.format != 'text' or config.model.block_size < held_out


@settings(max_examples=20, deadline=None)
@given(texts, machines, times)
def test_equal_facts_give_equal_plans(facts, where, seconds):
  def made():
    try:
      return plan.make(facts, where, seconds, usual())
    except UserError as e:
      return str(e)

  assert made() == made()


def test_a_plan_sets_every_key_that_a_budget_leaves_open():
  values = flatten(budget_config.get_config().to_dict())
  open_keys = {key for key, x in values.items() if x is None}
  made = plan.best(text(10**6), machine(), 600, usual())
  assert open_keys <= made.options.keys()
  # And nothing else but what recipe.py may give.
  assert {k for k in made.options if k not in values} == set()
  assert set(made.options) - open_keys == set(usual())
  assert set(recipe.options(96, 4, 67, 128, 1e6, 1e6)) <= open_keys


@settings(max_examples=30, deadline=None)
@given(
  st.fixed_dictionaries(
    {},
    optional={
      'model.n_embd': st.sampled_from([32, 48, 96, 100, 250]),
      'model.n_layer': st.integers(1, 6),
      'model.block_size': st.sampled_from([32, 200]),
      'batch_size': st.integers(1, 40),
      'lr': st.floats(1e-5, 1e-2),
      'model.dropout': st.floats(0, 0.5),
      'total_steps': st.integers(1, 5000),
      'model.dtype': st.sampled_from(['float32', 'mixed', 'auto']),
      'data.val_fraction': st.floats(0.02, 0.5),
      'eval.every': st.integers(1, 500),
    },
  )
)
def test_what_is_given_is_not_chosen(changes):
  made = plan.best(text(10**6), machine(), 600, usual() | changes)
  assert changes.items() <= made.options.items()


def test_small_texts_get_small_vocabularies_and_stronger_regularisation():
  small = plan.best(text(20_000), machine(), 600, usual())
  large = plan.best(text(10**8), machine(), 600, usual())
  assert small.vocab < 512 <= large.vocab
  assert small.options['model.dropout'] > large.options['model.dropout']
  assert small.passes > 10 > 1 > large.passes


def test_twenty_seconds_and_eight_hours_are_sensible():
  short = plan.best(text(10**6), machine(), 20, usual())
  long = plan.best(text(10**6), machine(), 8 * 3600, usual())
  assert short.parameters < 1e6 < 2e6 < long.parameters < 1e8
  assert short.steps < 2000 < long.steps
  assert 1 < long.bits_per_byte < short.bits_per_byte < 4


@settings(max_examples=40, deadline=None)
@given(texts, machines, st.floats(5, 60))
def test_a_refused_time_names_one_that_is_accepted(facts, where, seconds):
  try:
    plan.best(facts, where, seconds, usual())
    assume(False)
  except UserError as e:
    advised = re.search(r'give at least (\d+)s$', str(e))
    assume(advised)
    assert advised is not None
  least = int(advised[1])
  assert least > seconds
  assert plan.best(facts, where, least, usual()).steps >= plan.FEWEST_STEPS


def test_ten_seconds_of_a_megabyte_are_refused_for_a_few_more():
  with pytest.raises(UserError, match=r'give at least 1[2-9]s'):
    plan.best(text(10**6), machine(), 10, usual())


def test_a_given_number_of_steps_stays_within_the_time_if_a_model_can():
  known = usual() | {'total_steps': 5000}
  made = plan.best(text(10**6), machine(), 600, known)
  assert made.steps == 5000 and 300 < made.total_s <= 600
  short = plan.best(text(10**6), machine(), 60, known)
  assert 60 < short.total_s < made.total_s


def test_given_heads_choose_the_widths_that_they_divide():
  made = plan.best(text(10**6), machine(), 600, usual() | {'model.n_head': 5})
  assert made.options['model.n_embd'] % 10 == 0
  both = {'model.n_head': 5, 'model.n_embd': 96}  # Refused when it starts.
  made = plan.best(text(10**6), machine(), 600, usual() | both)
  assert both.items() <= made.options.items()


@pytest.mark.parametrize('seconds', [60, 7200])
def test_a_given_mlp_has_its_usual_width(seconds):
  for kind, width in {'swiglu': 256, 'relu2': 384}.items():
    known = usual() | {'model.mlp': kind, 'model.n_embd': 96}
    options = plan.best(text(10**6), machine(), seconds, known).options
    assert options['model.mlp'] == kind
    assert options['model.mlp_width'] == width


def test_a_schedule_without_a_warmup_gets_none():
  known = usual() | {'opt.schedule': 'randy'}
  options = plan.best(text(10**6), machine(), 600, known).options
  assert options['opt.warmup_steps'] == 0


def test_a_time_that_is_too_long_for_the_text_is_said_to_be():
  facts, where = text(20_000), machine()
  made = plan.make(facts, where, 8 * 3600, usual())
  told = table.text_of('8h', facts, where, made, usual())
  assert 'the text has no more to teach' in told
  made = plan.make(text(10**7), where, 600, usual())
  told = table.text_of('10m', facts, where, made, usual())
  assert 'no more to teach' not in told


def test_a_large_text_holds_out_less_for_a_short_run():
  short = plan.best(text(10**8), machine(), 120, usual())
  long = plan.best(text(10**8), machine(), 8 * 3600, usual())
  assert short.options['data.val_fraction'] < 0.1
  assert long.options['data.val_fraction'] == 0.1


def test_what_cannot_fit_is_refused_with_what_would():
  with pytest.raises(UserError, match=r'give at least \d+s'):
    plan.best(text(10**9), machine(), 10, usual())
  with pytest.raises(UserError, match='no model fits in the memory, 0.5 GB'):
    plan.best(text(10**6), machine(memory=5e8), 600, usual())


@pytest.mark.parametrize(
  'budget, seconds',
  [('90s', 90), ('10m', 600), ('1.5h', 5400), (' 8H ', 28800)],
)
def test_a_budget_is_a_number_and_a_unit(budget, seconds):
  assert seconds_of(budget) == seconds


@pytest.mark.parametrize(
  'budget', ['10x', '0m', '-5m', '', '10', 'm', '1e9h', '5 m 3', 'nanh', '4s']
)
def test_other_budgets_are_refused_in_a_line(budget):
  with pytest.raises(UserError) as error:
    seconds_of(budget)
  assert '\n' not in str(error.value)
  assert '10m' in str(error.value) or 'between 5s' in str(error.value)


def test_the_table_says_what_was_given_and_what_other_times_give():
  where, facts = machine(), text(10**6, 'chat')
  known = usual() | {'model.block_size': 64}
  made = plan.make(facts, where, 600, known)
  lines = table.text_of('10m', facts, where, made, known).splitlines()
  assert lines[0] == 'plan for 10m:'
  rows = {line[2:].split('  ')[0]: line for line in lines[1:]}
  assert rows['context'].endswith('given')
  assert 'half the time' in rows['expected'] and 'ten times' in rows['expected']
  assert f'{made.now.bits_per_byte:.3f} bits/byte' in rows['expected']
  assert '1,250 conversations' in rows['text']


@settings(max_examples=40, deadline=None)
@given(
  st.sampled_from(plan.SHAPES),
  st.sampled_from([67, 1000, 4000]),
  st.sampled_from([128, 256]),
  st.integers(4, 64),
  st.floats(1.1, 4),
)
def test_larger_models_and_batches_cost_more(
  shape, vocab, context, batch, more
):
  width, depth = shape
  small = Shape(width, depth, vocab, context, batch, 10**6, 'float32')
  for change in (
    {'depth': depth + 1},
    {'vocab': int(vocab * more) + 1},
    {'context': int(context * more) + 1},
    {'batch': int(batch * more) + 1},
    {'parameters': int(10**6 * more)},
  ):
    large = dataclasses.replace(small, **change)
    assert step_seconds(large, machine()) > step_seconds(small, machine())
    assert memory_bytes(large, machine()) >= memory_bytes(small, machine())


def test_an_accelerator_needs_time_to_compile():
  """A CPU of the same speed begins to train earlier."""
  cpu = machine()
  rates = {**cpu.rates, 'bfloat16': cpu.rates['mixed']}
  gpu = dataclasses.replace(cpu, platform='gpu', devices=1, rates=rates)
  given = {
    **usual(),
    'model.n_embd': 96,
    'model.n_layer': 4,
    'data.tokenizer': 'char',
  }
  on_cpu = plan.best(text(1_000_000), cpu, 120, given)
  on_gpu = plan.best(text(1_000_000), gpu, 120, given)
  assert on_gpu.fixed_s - on_cpu.fixed_s > 20
