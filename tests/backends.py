"The backends of neurons that run here."

import torch

from neurobridge.snn import which_backend

BACKENDS = [
    name
    for name in ("auto", "reference", "torch", "fused")
    if name != "fused" or which_backend(torch.rand(2, 2)) == "fused"
]
