"""Network, training and files of the LSTM forecaster; the only module of the package that imports torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.base import QUANTILES
from telemetry.errors import InputError

if TYPE_CHECKING:
    from models.lstm import LstmOptions, Windows


class QuantileLstm(nn.Module):
    """Encoder state and per-step features to nine quantiles of the scaled change.

    Shapes: past ``[B, W / stride, stride]``, static ``[B, F]``, future ``[B, H, G]`` -> ``[B, H, Q]``.
    """

    def __init__(self, hidden: int, stride: int, static: int, future: int) -> None:
        super().__init__()
        self.sizes = {"hidden": hidden, "stride": stride, "static": static, "future": future}
        self.encoder = nn.LSTM(stride, hidden, batch_first=True)
        self.context = nn.Linear(hidden + static, hidden)
        self.step = nn.Linear(future, hidden)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, len(QUANTILES)))
        nn.init.zeros_(self.head[-1].weight)  # training starts from "no change"

    def forward(self, past: Tensor, static: Tensor, future: Tensor) -> Tensor:
        encoded = self.encoder(past)[0][:, -1]  # [B, hidden]
        context = self.context(torch.cat([encoded, static], dim=1))
        return self.head(context[:, None, :] + self.step(future))


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: matrices of this size gain nothing from more, and results then do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(predicted: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    error = target[..., None] - predicted
    return torch.maximum(levels * error, (levels - 1.0) * error).mean()


def _tensors(windows: Windows, rows: np.ndarray | slice = slice(None)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (windows.past, windows.static, windows.future, windows.target)
    past, static, future, target = (torch.from_numpy(a[rows]) for a in arrays)
    return past, static, future, target


def train(learn: Windows, held: Windows, options: LstmOptions, seed: int, earlier: QuantileLstm | None = None) -> QuantileLstm:
    """Network with the least held-out pinball loss; the global torch generator is left as it was.

    An ``earlier`` network of the same sizes gives the weights to start from, and is itself a candidate; one of other sizes is left out.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        network = QuantileLstm(options.hidden, options.stride, learn.static.shape[1], learn.future.shape[2])
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
        levels = torch.tensor(QUANTILES, dtype=torch.float32)
        rng = np.random.default_rng(seed)
        held_tensors = _tensors(held)
        best, best_loss, stale = copy.deepcopy(network.state_dict()), float("inf"), 0
        if earlier is not None and earlier.sizes == network.sizes:
            network.load_state_dict(earlier.state_dict())
            with torch.no_grad():
                best, best_loss = copy.deepcopy(network.state_dict()), float(_loss(network(*held_tensors[:3]), held_tensors[3], levels))
        for _ in range(options.epochs):
            order = rng.permutation(len(learn.target))[: options.max_windows]
            for begin in range(0, len(order), options.batch):
                *inputs, target = _tensors(learn, order[begin : begin + options.batch])
                optimizer.zero_grad()
                loss = _loss(network(*inputs), target, levels)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                held_loss = float(_loss(network(*held_tensors[:3]), held_tensors[3], levels))
            if held_loss < best_loss:
                best, best_loss, stale = copy.deepcopy(network.state_dict()), held_loss, 0
            else:
                stale += 1
            if stale > options.patience:
                break
    network.load_state_dict(best)
    return network.eval()


def predict(network: QuantileLstm, windows: Windows, batch: int = 4096) -> np.ndarray:
    """Quantiles ``[n, H, Q]``, in increasing order."""
    parts = []
    with torch.no_grad(), one_thread():
        for begin in range(0, len(windows.target), batch):
            *inputs, _ = _tensors(windows, slice(begin, begin + batch))
            parts.append(torch.sort(network(*inputs), dim=-1).values.numpy().astype(np.float64))
    return np.concatenate(parts)


def save(network: QuantileLstm, file: Path) -> None:
    """Weights as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)


def load(sizes: dict[str, int], file: Path) -> QuantileLstm:
    """Network of ``sizes`` with the weights of ``file``.

    Raises:
        InputError: the file is damaged or belongs to another size.
    """
    network = QuantileLstm(**sizes)
    try:
        network.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"weights cannot be read: {error}", where=str(file), remedy="save the forecaster again") from error
    return network.eval()
