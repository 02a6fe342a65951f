"""Run by tests in an emulator of another processor: how many outputs differ from those in a file."""

import sys

import numpy as np
import onnxruntime

path, expected, precise = sys.argv[1:]
arrays = np.load(expected)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.x64quantprecision", precise)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
(found,) = session.run(None, {session.get_inputs()[0].name: arrays["inputs"]})
print("differing", int((found != arrays["outputs"]).sum()))
