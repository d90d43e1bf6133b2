"""The parts of launch.bench.gpu, each a process of its own."""
