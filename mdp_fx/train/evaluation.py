"""Accuracy of a classifier on validation data, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.errors import DataError, first_line
from mdp_fx.graph.modes import eval_mode
from mdp_fx.report.training import Accuracy
from mdp_fx.train.objective import check_labels, classes_of, first_tensor, split_batch

_TOP = 5


def evaluate(
    network: nn.Module,
    batches: Iterable[Any],
    shape: tuple[int, ...],
    *,
    device: torch.device,
    autocast: Callable[[], Any],
    total: Callable[[Tensor], Tensor],
    limit: int | None = None,
) -> Accuracy:
    """Runs a classifier over batches, in eval mode.

    Args:
        network: the classifier; left in the mode it was in.
        batches: of (inputs, labels), those of this process.
        shape: of one example.
        device: where the network is.
        autocast: context to run in.
        total: sums a tensor over the processes.
        limit: at most this many batches.

    Raises:
        DataError: batches that the network rejects, labels outside of its classes, or no batches.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    with eval_mode(network), torch.no_grad():
        for number, batch in enumerate(batches):
            if limit is not None and number >= limit:
                break
            inputs, labels = split_batch(batch)
            try:
                with autocast():
                    outputs = network(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs))
            except Exception as error:  # the network's own code: whatever it raises, it rejects the data
                msg = f"a batch of validation data does not fit the network: {first_line(error)}"
                raise DataError(msg) from error
            check_labels(inputs, labels, shape, classes_of(outputs))
            logits = first_tensor(outputs).float()
            ranked = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices == labels.to(logits.device)[:, None]
            counts += torch.tensor([ranked[:, 0].sum(), ranked.any(dim=1).sum(), len(labels)], dtype=torch.float64)
    first, five, examples = total(counts).tolist()
    if not examples:
        msg = "the validation data has no batches: the loader must yield (inputs, labels)"
        raise DataError(msg)
    return Accuracy(first / examples, five / examples, int(examples))
