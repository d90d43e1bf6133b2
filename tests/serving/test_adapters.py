"""A server with several adapters of its model: --adapter NAME=DIRECTORY."""

import concurrent.futures

import jax
import pytest

from gpt.errors import UserError
from gpt.runs import base
from gpt.runs.checkpoint import BEST
from gpt.runs.load import load_adapter, load_model
from serving.options import Options, parse_adapters
from serving.service import Service
from tests.support.engine_tools import TOKENIZER, Reference
from tests.support.lora_tools import write_adapters
from tests.support.serving_tools import COMPLETIONS, make_random, serving

PROMPT = 'the '
LENGTH = 8


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with the run 'base' and its adapters 'one' and 'two'."""
  root = tmp_path_factory.mktemp('adapters')
  make_random(root / 'base', TOKENIZER)
  write_adapters(root / 'one', root / 'base', 1)
  write_adapters(root / 'two', root / 'base', 2)
  return root


@pytest.fixture(scope='module')
def http(runs):
  flags = [f'--adapter={name}={runs / name}' for name in ('one', 'two')]
  with serving(runs / 'base', *flags) as server:
    with server.client() as client:
      yield client


def expected(workdir) -> str:
  """The likeliest text of a run, by full forward passes."""
  loaded = load_model(workdir)
  ids, _ = Reference(loaded.cfg, loaded.params).run(
    TOKENIZER.encode(PROMPT).tolist(), temperature=0.0, max_tokens=LENGTH
  )
  return TOKENIZER.decode(ids)


def complete(http, model):
  body = {'prompt': PROMPT, 'max_tokens': LENGTH, 'temperature': 0}
  response = http.post(COMPLETIONS, json={**body, 'model': model})
  assert response.status_code == 200, response.text
  return response.json()


def test_a_request_gets_the_text_of_the_adapter_it_names(http, runs):
  wanted = {name: expected(runs / name) for name in ('base', 'one', 'two')}
  assert len(set(wanted.values())) == 3
  answers = {name: complete(http, name) for name in wanted}
  assert {name: a['choices'][0]['text'] for name, a in answers.items()} == (
    wanted
  )
  assert [a['model'] for a in answers.values()] == list(wanted)
  assert len({a['system_fingerprint'] for a in answers.values()}) == 3
  # All at once, several of each, in the same slots.
  with concurrent.futures.ThreadPoolExecutor(9) as pool:
    names = [*wanted] * 3
    texts = pool.map(lambda name: complete(http, name), names)
    for name, answer in zip(names, texts):
      assert answer['choices'][0]['text'] == wanted[name], name


def test_every_route_knows_the_adapters_and_no_other_name(http, runs):
  body = {'max_tokens': LENGTH, 'temperature': 0}
  for path, fields, text in (
    ('/', {'prompt': PROMPT}, lambda answer: answer['text']),
    ('/microgpt/v1/generate', {}, lambda answer: answer['samples'][0]),
  ):
    texts = {}
    for name in ('base', 'one', None):
      ask = {**body, **fields, 'model': name}
      texts[name] = text(http.post(path, json=ask).json())
    assert texts['base'] == texts[None]
    if path == '/':
      assert texts['one'] == expected(runs / 'one') != texts['base']
    unknown = http.post(path, json={**body, **fields, 'model': 'three'})
    assert unknown.status_code == 404 and 'three' in unknown.json()['error']


def test_models_lists_the_adapters(http):
  cards = http.get('/v1/models').json()['data']
  assert [(c['id'], c['parent']) for c in cards] == [
    ('base', None),
    ('one', 'base'),
    ('two', 'base'),
  ]
  assert http.get('/v1/models/two').json() == cards[2]
  assert cards[2]['meta']['step'] == 3
  assert http.get('/v1/models/three').status_code == 404
  body = {'prompt': PROMPT, 'max_tokens': 1, 'model': 'three'}
  assert http.post(COMPLETIONS, json=body).status_code == 404


def test_reload_takes_new_adapters(http, runs):
  before = complete(http, 'two')['system_fingerprint']
  answer = http.post('/reload').json()
  assert (answer['status'], answer['reloaded']) == ('ok', False)
  write_adapters(runs / 'two', runs / 'base', 5, step=4)
  answer = http.post('/reload').json()
  assert answer['reloaded'] and answer['reason'] == 'two: step 4', answer
  after = complete(http, 'two')
  assert after['system_fingerprint'] != before
  assert after['choices'][0]['text'] == expected(runs / 'two')
  assert complete(http, 'one')['choices'][0]['text'] == expected(runs / 'one')


def test_an_adapter_costs_the_memory_of_its_matrices_alone(runs):
  adapters = (('one', str(runs / 'one')),)
  loaded = load_model(runs / 'base')
  service = Service(
    loaded, runs / 'base', BEST, Options('base', adapters=adapters), print
  )
  adapted, shared = (
    jax.tree.leaves(weights.params)
    for weights in (service.engine.adapters['one'], service.engine.weights)
  )
  same = [x is y for x, y in zip(adapted, shared)]
  tables = [x.shape[0] == loaded.cfg.vocab_size for x in shared]
  assert any(tables) and all(s for s, table in zip(same, tables) if table)
  assert not all(same)


def test_adapters_of_another_base_are_refused(runs, tmp_path):
  make_random(tmp_path / 'other', TOKENIZER, seed=9)
  whole = load_model(tmp_path / 'other')
  fingerprint = base.fingerprint(whole.cfg, whole.params)
  with pytest.raises(UserError, match='belong to another base: .*/base'):
    load_adapter(runs / 'one', whole, fingerprint)
  with pytest.raises(UserError, match='holds no adapters'):
    load_adapter(runs / 'base', whole, fingerprint)


@pytest.mark.parametrize(
  'name', ['..', '../x', 'a/../b', '/etc', 'a//b', 'a/', '.', '-x', '', 'a b']
)
def test_a_name_that_could_be_a_path_is_refused(name):
  good = 'ok/a-1.0:x=DIR'
  with pytest.raises(UserError, match='a name of letters, digits and'):
    parse_adapters([good, f'{name}=DIR'], 'base')
  assert parse_adapters([good], 'base') == (('ok/a-1.0:x', 'DIR'),)
