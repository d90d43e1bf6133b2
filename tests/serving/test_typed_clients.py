"""Libraries that ask for typed answers: instructor, pydantic-ai, LangChain.

Slow, and each skipped where it is not installed: pip install instructor
'pydantic-ai-slim[openai]' langchain-openai 'lm_eval[api]'.
"""

import json
import os
import subprocess
import sys
from typing import Literal

import openai
import pydantic
import pytest

from tests.support.workdirs import ROOT

pytest.importorskip('llguidance')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.timeout(900),
  pytest.mark.filterwarnings('default'),  # Theirs are not our concern.
]
QUESTION = 'Who are you?'


class Person(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid')

  name: str = pydantic.Field(max_length=5)
  age: int = pydantic.Field(ge=0, le=99)
  mood: Literal['good', 'bad']


@pytest.fixture(scope='module')
def url(structured_server):
  return f'{structured_server.url}/v1'


@pytest.fixture
def client(url):
  with openai.OpenAI(base_url=url, api_key='none') as client:
    yield client


def test_openais_parse_gives_a_model(client):
  completion = client.chat.completions.parse(
    model='any',
    messages=[{'role': 'user', 'content': QUESTION}],
    response_format=Person,
    seed=1,
  )
  assert isinstance(completion.choices[0].message.parsed, Person)


@pytest.mark.parametrize('mode', ['JSON_SCHEMA', 'TOOLS'])
def test_instructor(client, mode):
  instructor = pytest.importorskip('instructor')
  wrapped = instructor.from_openai(client, mode=instructor.Mode[mode])
  person = wrapped.chat.completions.create(
    model='any',
    messages=[{'role': 'user', 'content': QUESTION}],
    response_model=Person,
    max_retries=0,
    max_tokens=300,
    seed=1,
  )
  assert isinstance(person, Person)


@pytest.mark.parametrize('kind', ['ToolOutput', 'NativeOutput'])
def test_pydantic_ai(url, kind):
  pydantic_ai = pytest.importorskip('pydantic_ai')
  from pydantic_ai.models.openai import OpenAIChatModel
  from pydantic_ai.providers.openai import OpenAIProvider

  provider = OpenAIProvider(base_url=url, api_key='none')
  agent = pydantic_ai.Agent(
    OpenAIChatModel('any', provider=provider),
    output_type=getattr(pydantic_ai, kind)(Person),
    model_settings={'seed': 1, 'max_tokens': 300, 'parallel_tool_calls': False},
  )
  assert isinstance(agent.run_sync(QUESTION).output, Person)


@pytest.mark.parametrize('method', ['json_schema', 'function_calling'])
def test_langchain(url, method):
  langchain_openai = pytest.importorskip('langchain_openai')
  model = langchain_openai.ChatOpenAI(
    model='any', base_url=url, api_key='none', seed=1, max_tokens=300
  )
  chain = model.with_structured_output(Person, method=method)
  assert isinstance(chain.invoke(QUESTION), Person)


TASK = """
task: rgpt_letters
dataset_path: json
dataset_kwargs:
  data_files: {test: DATA}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""


def test_lm_evaluation_harness(structured_server, url, tmp_path):
  """The command of docs/serving.md, on a task of ours."""
  pytest.importorskip('lm_eval')
  pytest.importorskip('transformers')
  exported = tmp_path / 'exported'
  export = ['-m', 'launch.export', f'--workdir={structured_server.workdir}']
  export += ['--format=hf', f'--output={exported}']
  subprocess.run([sys.executable, *export], cwd=ROOT, check=True)
  rows = [
    {'question': f'{a} is', 'choices': [' good', ' bad'], 'answer': i % 2}
    for i, a in enumerate(['rain', 'sun', 'snow', 'wind'])
  ]
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (tmp_path / 'letters.yaml').write_text(TASK.replace('DATA', str(data)))
  done = subprocess.run(
    [
      sys.executable,
      *('-m', 'lm_eval', '--model', 'local-completions'),
      '--model_args',
      f'model=any,base_url={url}/completions,tokenizer={exported},'
      'tokenizer_backend=huggingface,max_length=1024',
      *('--tasks', 'rgpt_letters', '--include_path', str(tmp_path)),
      *('--output_path', str(tmp_path / 'out')),
    ],
    cwd=ROOT,
    env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OPENAI_API_KEY': 'none'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  (found,) = (tmp_path / 'out').rglob('results*.json')
  assert (
    0 <= json.loads(found.read_text())['results']['rgpt_letters']['acc,none']
  )
