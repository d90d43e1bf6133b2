"""Several real processes of one run, connected over a local port."""

import socket

from tests.support.train_process import Training, environment


class Group:
  """`launch.train` n times, each with one CPU device.

  Attributes:
    processes: the n Trainings.
  """

  def __init__(self, n: int, workdir, *args, only=None, signal_at=None):
    """Starts them.

    Args:
      args: flags besides --config and --workdir.
      only: the indices to start; None: all.
      signal_at: {index: see train_process.TRAP}.
    """
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.processes = [
      Training(
        workdir,
        *args,
        '--config.parallel.distributed',
        '--config.parallel.num_cpu_devices=1',
        signal_at=(signal_at or {}).get(index, ''),
        env=environment(
          JAX_COORDINATOR_ADDRESS=f'localhost:{port}',
          JAX_NUM_PROCESSES=str(n),
          JAX_PROCESS_ID=str(index),
          SIGNAL_AT=(signal_at or {}).get(index, ''),
        ),
      )
      for index in (range(n) if only is None else only)
    ]

  def end(self) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each, in order."""
    return [process.finish() for process in self.processes]

  def finish(self) -> str:
    """stdout of process 0; all must have succeeded, and only it may log."""
    results = self.end()
    for code, out, err in results:
      assert code == 0 and 'Traceback' not in err, (out, err)
    assert not any('step ' in out for _, out, _ in results[1:])
    return results[0][1]
