"""Constants of law.py, fitted to 15 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.50748,
  'per_parameter': 0.086955,
  'parameter_power': 0.35243,
  'per_byte': 0.29833,
  'byte_power': 0.32085,
  'useful_passes': 4.5681,
  'parameters_per_byte': 0.82227,
  'entropy_power': 0.89181,
  'trend': 0.079503,
  'level': 0.087844,
  'pieces': 0.031496,
}
