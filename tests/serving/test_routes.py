"""RandyGPT's and microgpt's routes, and those about the server."""

import asyncio
import json
import re
import subprocess
import threading
import types

import pytest

from gpt.model import GPTConfig
from gpt.tokenizers import build_tokenizer
from serving.http import answers, encoding, tokenizing
from serving.options import Options
from tests.support.serving_tools import (
  chat_tokenizer,
  make_random,
  serving,
  wait_until,
)
from tests.support.workdirs import make_parrot

EMOJI = 'Hi 👋🏽, wörld! 漢字 and 👩‍👩‍👧 too.'


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


def test_randygpts_curl_line_works_as_it_stands(server):
  """From the README of RandyGPT, with the port changed."""
  line = (
    'curl -s http://localhost:8080/ \\\n'
    "  -H 'Content-Type: application/json' \\\n"
    '  -d \'{"prompt":"Once upon a time","max_tokens":200,'
    '"temperature":0.8}\''
  ).replace('8080', str(server.port))
  done = subprocess.run(['bash', '-c', line], capture_output=True, check=True)
  answer = json.loads(done.stdout)
  assert list(answer) == ['text', 'model', 'usage']
  assert answer['model'] == 'randygpt-1L-4H-32D'
  assert answer['usage']['prompt_tokens'] == 16
  assert len(answer['text']) == answer['usage']['completion_tokens'] <= 200
  assert not answer['text'].startswith('Once')


def test_randygpt_takes_long_and_empty_prompts(http):
  for prompt in ('', 'x' * 1000, 'ROMEO:'):
    answer = http.post('/', json={'prompt': prompt, 'max_tokens': 3}).json()
    assert answer['usage']['prompt_tokens'] == max(1, len(prompt))


def test_microgpt_generate(http):
  ask = {'num_samples': 4, 'temperature': 1.5, 'seed': 7}
  samples = http.post('/microgpt/v1/generate', json=ask).json()['samples']
  assert len(samples) == 4
  for i, sample in enumerate(samples):
    one = http.post(
      '/microgpt/v1/generate', json={**ask, 'num_samples': 1, 'seed': 7 + i}
    ).json()
    assert one == {'samples': [sample]}
  assert (
    http.post('/microgpt/v1/generate', json={}).json()
    == http.post(
      '/microgpt/v1/generate', json={'seed': 42, 'temperature': 0.8}
    ).json()
  )
  long = http.post(
    '/microgpt/v1/generate', json={'num_samples': 50, 'max_tokens': 5}
  ).json()['samples']
  assert len(long) == 50 and all(len(sample) <= 5 for sample in long)
  assert (
    http.post('/microgpt/v1/generate', json={'num_samples': 51}).status_code
    == 400
  )


def test_microgpt_chat(http):
  messages = [{'role': 'user', 'content': 'Hello'}]
  answer = http.post('/microgpt/v1/chat', json={'messages': messages}).json()
  assert answer.keys() == {'role', 'content', 'tokens_dropped'}
  assert answer['role'] == 'assistant' and answer['tokens_dropped'] == 0
  long = [{'role': 'user', 'content': 'word ' * 30}]
  answer = http.post('/microgpt/v1/chat', json={'messages': long}).json()
  assert answer['tokens_dropped'] > 100
  bad = http.post('/microgpt/v1/chat', json={'messages': []})
  assert bad.status_code == 400 and isinstance(bad.json()['error'], str)


def test_tokenize_and_detokenize_are_inverse(http):
  text = 'Hello, World: 123!'
  tokens = http.post('/tokenize', json={'content': text}).json()['tokens']
  assert len(tokens) == len(text)
  back = http.post('/detokenize', json={'tokens': tokens}).json()
  assert back == {'content': text}
  assert http.post('/detokenize', json={'tokens': []}).json() == {'content': ''}
  assert http.post('/detokenize', json={'tokens': [10**6]}).status_code == 400


def test_long_answers_are_encoded_on_a_worker(monkeypatch):
  loop, encoders = threading.current_thread(), []

  def dumps(value):
    encoders.append(threading.current_thread())
    return encoding.dumps(value)

  class Generation:
    async def __aenter__(self):
      return self

    async def __aexit__(self, *_):
      pass

    async def events(self):
      yield []

    in_thread = staticmethod(asyncio.to_thread)

  bodies = []

  async def body():
    return b'{"tokens": [], "content": ""}'

  async def send(message):
    bodies.append(message.get('body'))

  async def run():
    request = types.SimpleNamespace(body=body)
    reply = types.SimpleNamespace(whole=lambda events: {'events': events})
    for answer in (
      await routes.detokenize(request),
      await routes.tokenize(request),
      answers.WholeAnswer(Generation(), reply),
    ):
      await answer({'type': 'http'}, None, send)

  monkeypatch.setattr(tokenizing, 'dumps', dumps)
  monkeypatch.setattr(answers, 'dumps', dumps)
  tokenizer = chat_tokenizer()
  routes = tokenizing.TokenRoutes(
    types.SimpleNamespace(
      in_thread=asyncio.to_thread,
      tokenizer=tokenizer,
      cfg=GPTConfig(tokenizer.vocab_size),
      options=Options('any'),
    )
  )
  asyncio.run(run())
  assert [json.loads(body) for body in bodies if body] == [
    {'content': ''},
    {'tokens': []},
    {'events': []},
  ]
  assert len(encoders) == 3 and loop not in encoders


def test_health_reports_state(http):
  assert http.get('/health').json() == {'status': 'ok'}
  assert http.get('/livez').json() == {'status': 'ok'}
  assert http.get('/version').json()['name'] == 'rgpt'
  assert http.head('/health').status_code == 200


def test_models_carry_a_card(http):
  (model,) = http.get('/v1/models').json()['data']
  assert model['meta']['n_ctx_train'] == 32 and model['meta']['chat']
  assert model['meta']['val_loss'] == 1.5 and model['meta']['step'] == 7
  assert http.get('/v1/models/randygpt-1L-4H-32D').json() == model


def test_unknown_routes_and_methods(http):
  missing = http.get('/v1/nothing')
  assert missing.status_code == 404 and missing.json()['error']['message']
  wrong = http.put('/v1/completions', json={})
  assert wrong.status_code == 405 and wrong.headers['allow'] == 'POST'
  both = http.delete('/')
  assert {m.strip() for m in both.headers['allow'].split(',')} == {
    'GET',
    'HEAD',
    'POST',
  }
  assert isinstance(both.json()['error'], str)
  assert http.get('/v1/models/').status_code == 404


def test_request_ids_are_echoed_or_generated(http):
  response = http.get('/livez', headers={'x-request-id': 'abc-1.2'})
  assert response.headers['x-request-id'] == 'abc-1.2'
  response = http.get('/livez', headers={'x-request-id': 'a b<\t>"c' * 50})
  assert response.headers['x-request-id'] == ('abc' * 50)[:64]
  ids = {http.get('/livez').headers['x-request-id'] for _ in range(5)}
  assert len(ids) == 5


def test_each_request_logs_one_line_without_its_prompt(http, server):
  http.post(
    '/v1/completions',
    json={'prompt': 'SECRETprompt', 'max_tokens': 4},
    headers={'x-request-id': 'logged'},
  )
  line = server.wait_for('id=logged .*')[0]
  for part in (
    'route=/v1/completions',
    'status=200',
    'prompt_tokens=12',
    'completion_tokens=',
    'queue_ms=',
    'ttft_ms=',
    'total_ms=',
    'finish=',
  ):
    assert part in line
  assert sum('id=logged' in (x or '') for x in server.log) == 1
  assert not any('SECRET' in (x or '') for x in server.log)


def test_metrics_count_a_request(http, server):
  wait_until(server.is_idle)
  before = server.metrics()
  for name in (
    'rejected_total{reason="queue_full"}',
    'aborted_total{cause="timeout"}',
  ):
    assert f'rgpt_{name}' in before
  assert before['rgpt_slots_total'] == 4
  assert before['rgpt_jit_compilations_total'] > 0
  http.post(
    '/v1/completions',
    json={'prompt': 'abc', 'max_tokens': 70, 'ignore_eos': True, 'n': 2},
  )
  after = server.metrics()

  def grown(name):
    return after[f'rgpt_{name}'] - before[f'rgpt_{name}']

  assert grown('prompt_tokens_total') == 3
  assert grown('generation_tokens_total') == 140
  # A request counts once, whatever the number of its choices.
  assert grown('request_success_total{finished_reason="length"}') == 1
  assert grown('context_slides_total') == 6
  assert grown('time_to_first_token_seconds_count') == 1
  assert grown('e2e_request_latency_seconds_count') == 1
  assert grown('request_queue_time_seconds_count') == 1
  assert grown('inter_token_latency_seconds_count') == 138
  assert grown('jit_compilations_total') == 0
  route = '{method="POST",route="/v1/completions",status="200"}'
  assert grown(f'http_requests_total{route}') == 1
  buckets = [k for k in after if 'time_to_first_token_seconds_bucket' in k]
  assert 'le="0.0005"' in buckets[0]


def test_without_cors_pages_of_other_sites_are_refused(http):
  origin = {'origin': 'https://evil.example'}
  response = http.get('/v1/models', headers=origin)
  assert not any('access-control' in name for name in response.headers)
  preflight = http.options(
    '/v1/completions',
    headers={**origin, 'access-control-request-method': 'POST'},
  )
  assert preflight.status_code == 405
  posted = http.post(
    '/v1/completions',
    json={'prompt': 'a'},
    headers={**origin, 'sec-fetch-site': 'cross-site'},
  )
  assert posted.status_code == 403


@pytest.mark.parametrize(
  'host, status',
  [
    ('localhost', 200),
    ('LOCALHOST:99', 200),
    ('127.0.0.1:1', 200),
    ('[::1]:80', 200),
    ('evil.example', 400),
    ('127.0.0.1.evil.example', 400),
  ],
)
def test_foreign_host_names_are_refused(http, host, status):
  response = http.get('/v1/models', headers={'host': host})
  assert response.status_code == status


def test_the_page_may_run_only_its_own_script(http):
  page = http.get('/')
  assert page.headers['content-type'].startswith('text/html')
  policy = page.headers['content-security-policy']
  assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
  assert 'unsafe' not in policy
  for danger in ('HTML', 'document.write', 'eval(', 'Function('):
    assert danger not in page.text
  assert not re.search(r'<[^>]*\s(on\w+|style)=', page.text)
  assert page.headers['x-content-type-options'] == 'nosniff'


@pytest.fixture(scope='module')
def parrot(tmp_path_factory):
  """A server whose model generates EMOJI, a part of a character at a time."""
  tokenizer = build_tokenizer('sentencepiece', ['Hi and too\n'] * 9, 300)
  ids = tokenizer.encode(EMOJI).tolist()
  assert len(ids) > len(EMOJI)
  workdir = tmp_path_factory.mktemp('parrot') / 'run'
  make_parrot(workdir, tokenizer, [*ids, tokenizer.eos_id])
  with serving(workdir) as server, server.client() as client:
    yield client


def events(client, **fields):
  body = {'prompt': '', 'temperature': 0, 'stream': True, **fields}
  with client.stream('POST', '/v1/completions', json=body) as response:
    lines = [line[6:] for line in response.iter_lines() if line]
  assert lines.pop() == '[DONE]'
  return [json.loads(line)['choices'][0] for line in lines]


def test_characters_of_several_tokens_arrive_whole(parrot):
  chunks = events(parrot)
  assert ''.join(c['text'] for c in chunks) == EMOJI
  assert all('\ufffd' not in c['text'] for c in chunks)
  assert chunks[-1]['finish_reason'] == 'stop'
  whole = parrot.post(
    '/v1/completions', json={'prompt': '', 'temperature': 0, 'logprobs': 1}
  ).json()
  assert whole['choices'][0]['text'] == EMOJI
  assert any(
    t.startswith('bytes:\\x') for t in whole['choices'][0]['logprobs']['tokens']
  )


@pytest.mark.parametrize('stop', ['wör', '字 a', '👩‍👩', '! 漢', 'too.'])
def test_stop_strings_across_tokens_and_characters(parrot, stop):
  wanted = EMOJI[: EMOJI.index(stop)]
  chunks = events(parrot, stop=stop)
  assert ''.join(c['text'] for c in chunks) == wanted
  assert chunks[-1]['finish_reason'] == 'stop'


def test_no_chat_without_chat_tokens(parrot):
  messages = [{'role': 'user', 'content': 'a'}]
  for path in ('/v1/chat/completions', '/microgpt/v1/chat'):
    response = parrot.post(path, json={'messages': messages})
    assert response.status_code == 400
    assert 'not trained to chat' in response.text


def test_failed_starts_explain_themselves(tmp_path, server):
  from tests.support.workdirs import launch

  _, err = launch(
    'serve', f'--workdir={tmp_path}', f'--port={server.port}', code=2
  )
  assert 'in use' in err and '--port' in err
  _, err = launch('serve', f'--workdir={tmp_path}/none', '--port=0', code=2)
  assert 'no trained model' in err
  make_random(tmp_path / 'run', chat_tokenizer())
  for file in (tmp_path / 'run' / 'checkpoints').rglob('*'):
    if file.is_file() and 'params' in file.parts:
      file.write_bytes(b'nonsense')
  _, err = launch('serve', f'--workdir={tmp_path}/run', '--port=0', code=2)
  assert 'checkpoint' in err
  (tmp_path / 'run' / 'config.json').write_text('{')
  _, err = launch('serve', f'--workdir={tmp_path}/run', '--port=0', code=2)
  assert 'config.json' in err
