"""One thread for every test: claims that hold bit for bit hold at a fixed number of threads."""

import signal

import torch

torch.set_num_threads(1)
# A shell that starts the tests in the background leaves interrupts ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
