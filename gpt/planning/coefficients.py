"""Constants of law.py, fitted to 60 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.34941,
  'per_parameter': 0.080523,
  'parameter_power': 0.10879,
  'per_byte': 0.35458,
  'byte_power': 0.099141,
  'useful_passes': 5.7535,
  'parameters_per_byte': 0.29208,
  'entropy_power': 1.2455,
  'trend': 0.81949,
  'yield_power': 10.266,
  'level': -0.18468,
  'pieces': 0.018086,
}
