"""A checkpoint's network is the one that was validated when it was saved."""

import pytest
import torch
from torch import nn

import adapt
from adapt.export import capture
from tests.export.networks import Residual, Tied, Transposed, adaptive, model_of, with_lsq, with_widths


class Wrapped(nn.Module):
    """A network inside another module, as in a LightningModule."""

    def __init__(self):
        super().__init__()
        self.network = Residual()

    def forward(self, x):
        return self.network(x)


RUNS = {
    "weights": lambda: adaptive(Residual, rounding="stochastic"),
    "activations": lambda: adaptive(Residual, adapt.AdaPT.compact(), activations="range", quantize_biases=True),
    "tied": lambda: adaptive(Tied, activations=8),
    "LSQ": lambda: with_lsq(Residual),
    "widths": lambda: with_widths(Transposed),
}


@pytest.mark.parametrize("kind", RUNS)
def test_it_computes_what_was_validated(kind, tmp_path):
    run = RUNS[kind]()
    run.model.train()
    adapt.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, tmp_path / "best.pt")
    validated = run.evaluate()
    run.train(5)
    module = model_of(type(run.model))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    exported = capture(tmp_path / "best.pt", module)
    with torch.no_grad():
        assert torch.equal(exported.module()(run.inputs), validated)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), "the module that is given stays as it is"
    assert exported.origin == {"checkpoint": "best.pt"}


def test_a_module_inside_the_trained_one_is_found(tmp_path):
    run = adaptive(Wrapped, activations=8)
    compiled = torch.compile(run.model, backend="eager")
    for name, state in (("plain", run.model.state_dict()), ("compiled", compiled.state_dict())):
        adapt.save({"state_dict": state, "optimizer_states": [run.optimizer.state_dict()]}, tmp_path / name)
        exported = capture(tmp_path / name, model_of(Residual))
        assert set(exported.words) == {"conv1.weight", "conv2.weight", "head.weight"}
        assert "conv1.input" in exported.sites
        with torch.no_grad():
            assert torch.equal(exported.module()(run.inputs), run.evaluate())


def test_what_is_no_checkpoint_of_the_network_is_refused(tmp_path):
    run = adaptive(Residual)
    path = tmp_path / "best.pt"
    adapt.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, path)
    with pytest.raises(ValueError, match="module="):
        capture(path)
    with pytest.raises(ValueError, match="leave inputs out"):
        capture(path, model_of(Residual), inputs=run.inputs)
    with pytest.raises(ValueError, match=r"no state_dict of this Transposed"):
        capture(path, model_of(Transposed))
    adapt.save({"optimizer": run.optimizer.state_dict()}, path)
    with pytest.raises(ValueError, match="no state_dict of this Residual"):
        capture(path, model_of(Residual))
    adapt.save({"model": run.model.state_dict()}, path)
    with pytest.raises(ValueError, match="no formats"):
        capture(path, model_of(Residual))
    with pytest.raises(FileNotFoundError):
        capture(tmp_path / "nothing.pt", model_of(Residual))


def test_weights_that_are_off_the_grid_are_refused(tmp_path):
    run = adaptive(Residual)
    with run.controller.master_weights():
        masters = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    adapt.save({"model": masters, "optimizer": run.optimizer.state_dict()}, tmp_path / "masters.pt")
    with pytest.raises(RuntimeError, match=r"conv1\.weight does not lie on the grid"):
        capture(tmp_path / "masters.pt", model_of(Residual))
