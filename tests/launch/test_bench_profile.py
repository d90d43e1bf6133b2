"""launch.bench.profile: operations of a trace, by kind."""

import gzip
import json

import pytest

from launch.bench import profile

# Kernels of a step on an H200, as its trace names them.
KERNELS = {
  'nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT': 'matrix products',
  'void cublasLt::splitKreduce_kernel<32, 16, int, float>': 'matrix products',
  'cudnn_generated_fort_native_sdpa_sm90_flash_bprop_kernel0_0': (
    'attention (cuDNN)'
  ),
  'void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(int)': (
    'attention (cuDNN)'
  ),
  'Memset 0': 'layout copies',
  'input_reduce_fusion_26': 'reductions',
  'loop_multiply_fusion_11': 'element-wise',
  'input_scatter_fusion': 'scatter, gather',
}


@pytest.fixture
def trace(tmp_path):
  """A function that writes events where JAX writes a trace."""

  def write(events):
    folder = tmp_path / 'plugins' / 'profile' / 'now'
    folder.mkdir(parents=True)
    with gzip.open(folder / 'host.trace.json.gz', 'wt') as file:
      json.dump({'traceEvents': events}, file)
    return str(tmp_path)

  return write


def event(pid, name, **args):
  return {'ph': 'X', 'pid': pid, 'name': name, 'dur': 500, 'args': args}


def process(pid, name):
  named = {'name': name}
  return {'ph': 'M', 'pid': pid, 'name': 'process_name', 'args': named}


def test_kernels_of_a_gpu_count_and_what_its_host_does_does_not(trace):
  path = trace(
    [
      process(1, '/device:GPU:0'),
      process(2, '/host:CPU'),
      *(event(1, name, hlo_op='command_buffer_1') for name in KERNELS),
      event(1, 'loop_multiply_fusion_12'),
      event(2, 'loop_multiply_fusion_13', hlo_op='loop_multiply_fusion_13'),
    ]
  )
  found = profile.operations(path)
  assert found['loop_multiply_fusion_'] == (1.0, 2)
  assert len(found) == len(KERNELS)


def test_on_a_cpu_an_operation_is_one_of_the_program(trace):
  path = trace(
    [
      process(2, '/host:CPU'),
      event(2, 'ynn_fusion.3', hlo_op='ynn_fusion.3'),
      event(2, 'while.2', hlo_op='while.2'),
      event(2, 'ThunkExecutor::Execute'),
    ]
  )
  assert profile.operations(path) == {'ynn_fusion': (0.5, 1)}


@pytest.mark.parametrize('name', KERNELS)
def test_each_kernel_has_its_kind(name):
  assert profile.kind_of(name) == KERNELS[name]


def test_our_own_kernels_are_no_element_wise_operations():
  assert profile.kind_of('ffi_call').startswith('attention, gradients')
