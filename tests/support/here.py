"""The device that tests of trials compute on: this machine's, in float32, so that tight bounds hold."""

import dataclasses

import torch

from lora_sweep.model.device import pick_device

HERE = dataclasses.replace(pick_device(), compute_dtype=torch.float32)
