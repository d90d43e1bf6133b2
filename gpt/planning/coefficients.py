"""Constants of law.py, fitted to 75 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.38448,
  'per_parameter': 0.11669,
  'parameter_power': 0.061694,
  'per_byte': 0.30644,
  'byte_power': 0.089343,
  'useful_passes': 4.1928,
  'parameters_per_byte': 1.3551,
  'entropy_power': 1.0478,
  'yield_power': 12.401,
  'level': 0.13588,
  'pieces': -0.0061685,
}
