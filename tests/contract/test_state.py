"""State is passed, never shared: copies, pickles, threads, gradient checkpointing and a training step."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import CONFIGS, FIRST, FIRST_OF_TIMM, build, images, reduced, run, shared
from tokensieve.attention.shared import projections
from tokensieve.families._locate import family_of

every_on_first = every_case(CONFIGS, FIRST)
every_slowly = every_case(CONFIGS, FIRST, FIRST[:1])  # where a case takes longer


@every_on_first
def test_deepcopy(family: str, name: str, config: str) -> None:
    model, x = ts.apply(build(family, name), CONFIGS[config]), images(2)
    answer = run(model, x)
    twin = copy.deepcopy(model)
    assert ts.applied(twin) == CONFIGS[config]
    ts.remove(model)
    assert torch.equal(run(twin, x), answer)
    assert torch.equal(run(ts.remove(twin), x), run(model, x))


UNPICKLE = """
import pickle, sys, torch
torch.set_num_threads(1)
with open(sys.argv[1], "rb") as file:
    stored = pickle.load(file)
import tokensieve as ts
for config, (model, x, answer) in stored.items():
    assert ts.is_applied(model), config
    with torch.no_grad():
        torch.testing.assert_close(model(x), answer, msg=lambda text: f"{config}: {text}")
        assert not ts.is_applied(ts.remove(model)), config
        assert not torch.allclose(model(x), answer), config
print(len(stored))
"""


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [FIRST_OF_TIMM[0], FIRST[-1]])
def test_pickle_in_a_fresh_process(family: str, name: str, tmp_path: Path) -> None:
    x, stored = images(2), {}
    for config, methods in CONFIGS.items():
        model = ts.apply(build(family, name), methods)
        stored[config] = (model, x, run(model, x))
    path = tmp_path / "models.pickle"
    path.write_bytes(pickle.dumps(stored))
    done = subprocess.run([sys.executable, "-c", UNPICKLE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CONFIGS))]


@every_slowly
def test_two_threads_on_one_model(family: str, name: str, config: str) -> None:
    model = shared(family, name, config)
    batches = [images(6)[first : first + 1 + first % 3] for first in range(4)] * 3
    expected = [run(model, x) for x in batches]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda x: run(model, x), batches))
    for answer, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-6, atol=1e-6)


def gradients(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of two or more forwards before one backward."""
    model.zero_grad()
    torch.manual_seed(4)  # for what a method draws while training
    loss = torch.stack([model(x).square().mean() for x in batches]).sum()
    loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@every_slowly
@pytest.mark.parametrize("forwards", [1, 2])
def test_checkpointed_gradients_equal_plain_ones(family: str, name: str, config: str, forwards: int) -> None:
    model = reduced(family, name, config, torch.float64).train()
    batches = list(images(4, torch.float64).split(2))[:forwards]
    plain = gradients(model, batches)
    model.set_grad_checkpointing(True)
    checkpointed = gradients(model, batches)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, msg=lambda text, key=key: f"{key}: {text}")


@every_on_first
def test_a_training_step_has_finite_gradients(family: str, name: str, config: str) -> None:
    model, dense = reduced(family, name, config), build(family, name)
    before = run(model, images(2))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    target = torch.tensor([1, 2])
    torch.nn.functional.cross_entropy(model(images(2)), target).backward()
    torch.nn.functional.cross_entropy(dense(images(2)), target).backward()
    reached = dict(model.named_parameters())
    located = family_of(model)
    blocks = located.family.blocks(located.owner)
    first = blocks[0]
    # A block that attends by the maps of the one before leaves its own queries and keys out.
    borrowing = {number for method in CONFIGS[config] for number in method.sharing(len(blocks))}
    skipped = {part.weight for number in borrowing for parts in projections(blocks[number]) for part in parts}
    layers = [layer for number in borrowing for layer in blocks[number].modules() if isinstance(layer, nn.Linear)]
    left_out = {parameter for layer in layers if layer.weight in skipped for parameter in layer.parameters()}
    for key, parameter in dense.named_parameters():
        gradient = reached[key].grad
        if parameter.grad is not None and not (gradient is None and reached[key] in left_out):
            assert gradient is not None and gradient.isfinite().all(), key
    assert any(parameter.grad.abs().sum() > 0 for parameter in first.parameters())
    optimizer.step()
    after = run(model.eval(), images(2))
    assert after.isfinite().all() and not torch.equal(after, before)


@every_on_first
def test_determinism_from_run_to_run(family: str, name: str, config: str) -> None:
    x = images(2)
    first, second = (ts.apply(build(family, name), CONFIGS[config]) for _ in range(2))
    second.load_state_dict(first.state_dict())  # fresh learned parts are drawn
    torch.manual_seed(1)
    answer = run(first, x)
    torch.manual_seed(2)
    assert torch.equal(run(first, x), answer)
    assert torch.equal(run(second, x), answer)
