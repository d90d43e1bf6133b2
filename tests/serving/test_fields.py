"""Fields of vLLM's and llama.cpp's APIs that OpenAI's routes know, too."""

import json
import math

import pytest

from tests.support.serving_tools import COMPLETIONS, sse

CHAT = '/v1/chat/completions'
WINDOW, EOS = 32, '1'
NO_EOS = {EOS: -100}
TURNS = [{'role': 'user', 'content': 'Hello'}]


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


def ask(http, path=COMPLETIONS, status=200, **fields):
  body = {'prompt': 'Hello', 'seed': 1, 'max_tokens': 20, **fields}
  if path == CHAT:
    body = {**body, 'messages': body.pop('prompt')}
  response = http.post(path, json=body)
  assert response.status_code == status, response.text
  return response.json() if status == 200 else response.json()['error']


def text_of(answer) -> str:
  return answer['choices'][0]['text']


def test_max_tokens_minus_one_fills_the_context(http):
  for prompt in ('Hello', 'a' * WINDOW):
    answer = ask(http, prompt=prompt, max_tokens=-1, logit_bias=NO_EOS)
    sampled = answer['usage']['completion_tokens']
    assert len(prompt) + sampled == WINDOW + 1  # The last is never read.
    assert answer['choices'][0]['finish_reason'] == 'length'
  stopped = ask(
    http, max_tokens=500, logit_bias=NO_EOS, context_overflow='stop'
  )
  assert text_of(stopped) == text_of(
    ask(http, max_tokens=-1, logit_bias=NO_EOS, logprobs=20)
  )
  chat = ask(http, CHAT, prompt=TURNS, max_tokens=-1, logit_bias=NO_EOS)
  assert chat['usage']['total_tokens'] <= WINDOW + 1
  randy = http.post('/', json={'prompt': 'a', 'max_tokens': -1})
  assert randy.status_code == 200
  error = ask(http, status=400, max_tokens=-1, context_overflow='slide')
  assert error['param'] == 'context_overflow'


def test_a_batch_may_be_large_and_mix_strings_with_tokens(http):
  tokens = http.post('/tokenize', json={'content': 'abc'}).json()['tokens']
  mixed = ask(http, prompt=['Hello', tokens, ''], max_tokens=5)
  alone = [
    text_of(ask(http, prompt=prompt, max_tokens=5))
    for prompt in ('Hello', 'abc', '')
  ]
  assert [choice['text'] for choice in mixed['choices']] == alone
  answer = ask(http, prompt=['ab', tokens] * 50, max_tokens=1)
  assert len(answer['choices']) == 100
  assert answer['usage']['prompt_tokens'] == 250
  error = ask(http, status=400, prompt=['a'] * 65, n=8)
  assert error['param'] == 'prompt' and '520 choices' in error['message']
  assert ask(http, status=400, prompt=['a'] * 513)['param'] == 'prompt'


def test_best_of_may_equal_n(http):
  assert len(ask(http, n=3, best_of=3)['choices']) == 3
  for n, best_of in ((1, 2), (3, 1)):
    error = ask(http, status=400, n=n, best_of=best_of)
    assert error['code'] == 'unsupported_parameter'
    assert error['message'] == (
      f'best_of must equal n, which is {n}: choices are not ranked.'
    )


def test_min_tokens_bans_every_end_until_then(http):
  """The most probable token is EOS everywhere."""
  fields = {'logit_bias': {EOS: 100}, 'temperature': 0}
  assert ask(http, **fields)['usage']['completion_tokens'] == 0
  for least in (1, 3, 7, 20):
    answer = ask(http, min_tokens=least, **fields)
    assert answer['usage']['completion_tokens'] == least
    ended = 'stop' if least < 20 else 'length'
    assert answer['choices'][0]['finish_reason'] == ended
  # Past the window, and with a stop string that every text contains.
  text = text_of(ask(http, max_tokens=90, logit_bias=NO_EOS))
  stops = list(set(text[60:75]))
  late = ask(http, max_tokens=90, logit_bias=NO_EOS, stop=stops, min_tokens=70)
  assert text_of(late) == text[:70]
  assert late['choices'][0]['finish_reason'] == 'stop'
  for wrong in ({'min_tokens': 21}, {'min_tokens': 2, 'regex': '[a-z]+'}):
    assert ask(http, status=400, **wrong)['param'] == 'min_tokens'


def test_min_tokens_changes_nothing_else(http):
  fields = {'max_tokens': 40, 'logit_bias': NO_EOS, 'temperature': 1.5}
  plain = text_of(ask(http, **fields))
  assert text_of(ask(http, min_tokens=17, **fields)) == plain


def test_the_text_may_end_with_its_stop(http):
  fields = {'max_tokens': 60, 'logit_bias': NO_EOS}
  text = text_of(ask(http, **fields))
  stop = text[20:23]
  end = text.index(stop) + len(stop)
  fields |= {'include_stop_str_in_output': True}
  whole = ask(http, stop=[stop, 'never this'], **fields)
  assert text_of(whole) == text[:end]
  assert whole['choices'][0]['finish_reason'] == 'stop'
  with_scores = ask(http, stop=stop, logprobs=1, **fields)
  tokens = with_scores['choices'][0]['logprobs']['tokens']
  assert ''.join(tokens) == text[:end]
  (id,) = http.post('/tokenize', json={'content': text[9]}).json()['tokens']
  answer = ask(http, stop_token_ids=[id], **fields)
  end = text.index(text[9]) + 1
  assert text_of(answer) == text[:end]
  assert answer['usage']['completion_tokens'] == end


def test_only_allowed_tokens_are_sampled(http):
  ids = http.post('/tokenize', json={'content': 'xyz'}).json()['tokens']
  answer = ask(http, allowed_token_ids=ids, temperature=2, max_tokens=60)
  assert set(text_of(answer)) == set('xyz')
  assert answer['usage']['completion_tokens'] == 60


def test_a_prompt_is_cut_to_the_tokens_that_are_asked_for(http):
  short = ask(http, prompt='world')
  cut = ask(http, prompt='Hello, world', truncate_prompt_tokens=5)
  assert text_of(cut) == text_of(short)
  assert cut['usage']['prompt_tokens'] == 5
  assert cut['tokens_dropped'] == 7 and 'warnings' not in cut
  filled = ask(http, prompt='a' * 99, truncate_prompt_tokens=-1)
  assert filled['usage']['prompt_tokens'] == WINDOW
  turns = [*TURNS, {'role': 'assistant', 'content': 'Hi'}, *TURNS]
  chat = ask(http, CHAT, prompt=turns, truncate_prompt_tokens=12)
  assert chat['usage']['prompt_tokens'] <= 12 and chat['tokens_dropped']
  assert ask(http, status=400, truncate_prompt_tokens=0)['param'] == (
    'truncate_prompt_tokens'
  )


def test_prompt_log_probabilities_are_those_of_an_echo(http):
  echoed = ask(http, prompt=['Hello', 'abc'], echo=True, logprobs=2)
  scored = ask(http, prompt=['Hello', 'abc'], prompt_logprobs=2, n=2)
  assert len(scored['choices']) == 4
  for i, choice in enumerate(scored['choices']):
    first, *others = choice['prompt_logprobs']
    wanted = echoed['choices'][i // 2]['logprobs']['token_logprobs']
    prompt = ('Hello', 'abc')[i // 2]
    assert first is None and len(others) == len(prompt) - 1
    assert choice['logprobs'] is None
    for entry, letter, logprob in zip(others, prompt[1:], wanted[1:]):
      (own,) = [v for v in entry.values() if v['decoded_token'] == letter]
      assert own['logprob'] == pytest.approx(logprob, abs=1e-6)
      ranks = sorted(v['rank'] for v in entry.values() if v['rank'])
      assert ranks == [1, 2] and len(entry) in (2, 3)
  both = ask(http, prompt_logprobs=5, echo=True, logprobs=1)['choices'][0]
  assert max(map(len, both['logprobs']['top_logprobs'][1:])) == 2
  assert min(map(len, both['prompt_logprobs'][1:])) >= 5
  chat = ask(http, CHAT, prompt=TURNS, prompt_logprobs=0)
  assert len(chat['prompt_logprobs']) == chat['usage']['prompt_tokens']
  error = ask(http, status=400, prompt_logprobs=1, stream=True)
  assert error['param'] == 'prompt_logprobs'
  error = ask(http, status=400, prompt='a' * 20_000, prompt_logprobs=20)
  assert error['param'] == 'prompt_logprobs' and '200000' in error['message']


def test_timings_and_progress_are_reported_as_llama_cpp_does(http):
  answer = ask(http, logit_bias=NO_EOS)
  found = answer['timings']
  assert (found['prompt_n'], found['predicted_n']) == (5, 20)
  for name, n in (('prompt', 5), ('predicted', 20)):
    ms = found[f'{name}_ms']
    assert ms > 0
    assert math.isclose(found[f'{name}_per_token_ms'], ms / n)
    assert math.isclose(found[f'{name}_per_second'], 1e3 * n / ms)
  body = {'prompt': 'Hello', 'max_tokens': 40, 'stream': True, 'n': 2}
  for timed in (False, True):
    fields = {'return_progress': timed, 'timings_per_token': timed}
    sent = {**body, **fields, 'logit_bias': NO_EOS}
    with http.stream('POST', COMPLETIONS, json=sent) as response:
      *chunks, _ = map(json.loads, [*sse(response)][:-1] + ['0'])
    texts = [chunk for chunk in chunks if chunk['choices']]
    assert chunks[-1]['timings']['predicted_n'] == 80
    if timed:
      progress = [c['prompt_progress'] for c in chunks if not c['choices']]
      assert progress[-1]['processed'] == progress[-1]['total'] == 5
      assert 'prompt_progress' in chunks[0]
      assert all('timings' in chunk for chunk in texts)
    else:
      assert texts == chunks
      assert sum('timings' in chunk for chunk in texts) == 1
