"Correct calls of rewiring."

import torch
from slips import Call
from torch import nn

from neurobridge.g2g import MaskedLinear, Rewirer, ensemble_mask, ensembles


def network():
    torch.manual_seed(0)
    ids = ensembles(8, 2)
    return nn.Sequential(MaskedLinear(ensemble_mask(8, 8, 2), ensembles=(ids, ids)), nn.ReLU())


def settings():
    return dict(
        prune="magnitude",
        grow="random",
        every=1,
        fraction=0.1,
        schedule="constant",
        scope="layer",
        stop=5,
        correlation="cosine",
        average=0.0,
        soft=False,
        seed=0,
        regrow=True,
        density=None,
        start=1,
        block=4,
        salient=0.0,
    )


def rewirer(folder):
    net = network()
    return {
        "model": net,
        "optimizer": torch.optim.Adam(net.parameters()),
        "layers": ["0"],
    } | settings()


def made():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    kept = Rewirer(net, optimizer, every=3)
    kept.optimizer = optimizer
    return kept


def plain(kept):
    return kept.settings | {"layers": list(kept.layers)}


CALLS = {
    "g2g.Rewirer": Call(rewirer, view=plain),
    "g2g.Rewirer.share": Call(lambda folder: {"step": 2}, made().share),
    "g2g.Rewirer.density": Call(lambda folder: {"step": 2, "name": "0"}, made().density),
    "g2g.Rewirer.load_state_dict": Call(
        lambda folder: {"state": made().state_dict()}, made().load_state_dict
    ),
    "g2g.Rewiring": Call(
        lambda folder: {"model": network(), "optimizer": torch.optim.Adam} | settings(),
        view=lambda rewiring: rewiring.settings,
        legitimate={"stop: None": "edits have no end"},
    ),
}
LEFT_OUT: dict[str, str] = {}
