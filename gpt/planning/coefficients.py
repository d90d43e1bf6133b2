"""Constants of law.py, fitted to 66 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.21384,
  'per_parameter': 0.12553,
  'parameter_power': 0.11203,
  'per_byte': 0.37235,
  'byte_power': 0.10611,
  'useful_passes': 4.0887,
  'parameters_per_byte': 0.33868,
  'entropy_power': 1.2481,
  'trend': 1.6663,
  'yield_power': 7.4265,
  'level': -0.18281,
  'pieces': -0.003338,
}
