"""Schemathesis sends what /openapi.json allows, and what it forbids."""

import shutil
import subprocess
import sys

import pytest

from tests.support.serving_tools import chat_tokenizer, make_random, serving

# Rules over two fields and the size of the vocabulary are not in the document:
# some bodies that it allows are refused.
UNCHECKED = 'positive_data_acceptance'


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_answer_is_as_described_and_none_is_a_fault(tmp_path):
  command = shutil.which('schemathesis', path=f'{sys.prefix}/bin')
  if command is None:
    pytest.skip('needs schemathesis')
  make_random(tmp_path / 'run', chat_tokenizer())
  with serving(tmp_path / 'run', '--max_tokens_limit=16') as server:
    done = subprocess.run(
      [
        command,
        'run',
        f'{server.url}/openapi.json',
        '--max-examples=15',
        '--seed=1',
        '--phases=coverage,fuzzing',
        '--exclude-path=/reload',
        f'--exclude-checks={UNCHECKED}',
        '--suppress-health-check=all',
        '--continue-on-failure',
        '--no-color',
      ],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
  assert done.returncode == 0, done.stdout + done.stderr
