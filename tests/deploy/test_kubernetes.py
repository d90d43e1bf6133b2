"""deploy/kubernetes: against Kubernetes' schemas, and its command by hand."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch.local import free_port
from tests.support.workdirs import ROOT

MANIFEST = ROOT / 'deploy' / 'kubernetes' / 'training.yaml'
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.fixture
def documents():
  yaml = pytest.importorskip('yaml')
  return {
    document['kind']: document
    for document in yaml.safe_load_all(MANIFEST.read_text())
  }


@pytest.mark.parametrize('version', ['1.31', '1.34'])
def test_every_document_satisfies_the_schema_of_its_kind(documents, version):
  validate = pytest.importorskip('kubernetes_validate')
  for document in documents.values():
    validate.validate(document, version, strict=True)


def test_pods_find_each_other_and_their_volume(documents):
  """Names and numbers that have to agree, and no schema knows."""
  job, service = documents['Job'], documents['Service']
  pod = job['spec']['template']['spec']
  (container,) = pod['containers']
  env = {entry['name']: entry for entry in container['env']}
  host, port = env['JAX_COORDINATOR_ADDRESS']['value'].split(':')
  assert host == f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}'
  assert int(port) == service['spec']['ports'][0]['port']
  assert pod['subdomain'] == service['metadata']['name']
  labels = job['spec']['template']['metadata']['labels']
  assert service['spec']['selector'].items() <= labels.items()
  number = job['spec']['completions']
  assert job['spec']['parallelism'] == number
  assert env['JAX_NUM_PROCESSES']['value'] == str(number)
  assert env['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath'] == INDEX
  claims = [v.get('persistentVolumeClaim', {}) for v in pod['volumes']]
  assert {
    'claimName': documents['PersistentVolumeClaim']['metadata']['name']
  } in (claims)
  image = (ROOT / 'deploy' / 'Containerfile').read_text()
  (user,) = re.findall(r'useradd --uid (\d+)', image)
  assert set(pod['securityContext'].values()) == {int(user)}
  codes = [
    rule['onExitCodes']['containerName']
    for rule in job['spec']['podFailurePolicy']['rules']
    if 'onExitCodes' in rule
  ]
  assert set(codes) == {container['name']}


@pytest.mark.slow
def test_the_command_of_the_pods_trains_in_two_processes(documents, tmp_path):
  """With the pod's variables and arguments; model and paths are small."""
  job = documents['Job']
  (container,) = job['spec']['template']['spec']['containers']
  changed = ('--config=', '--workdir=', '--config.data.path=')
  args = [a for a in container['args'] if not a.startswith(changed)]
  args += ['--config=smoke', f'--workdir={tmp_path}/run']
  args += ['--config.parallel.num_cpu_devices=1']
  port, pods = free_port(), []
  for index in range(job['spec']['completions']):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    for entry in container['env']:
      value = entry.get('value', str(index))  # The field is the pod's index.
      value = value.replace('rgpt-0.rgpt:1234', f'localhost:{port}')
      env[entry['name']] = value.replace('/runs/cache', f'{tmp_path}/cache')
    pods.append(
      subprocess.Popen(
        [sys.executable, *container['command'][1:], *args],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      )
    )
  ends = [pod.communicate(timeout=150) for pod in pods]
  assert [pod.returncode for pod in pods] == [0, 0], ends
  assert 'finished at step 20' in ends[0][0]
  assert pathlib.Path(tmp_path, 'run', 'config.json').exists()
