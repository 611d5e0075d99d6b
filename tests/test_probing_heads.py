"""Heads in a batch: equal to heads alone, to a plain torch loop, and as good as scikit-learn's."""

import numpy as np
import pytest
import torch
from probing_tasks import clustered
from torch.nn import functional

from mert_foundry.model.probing.batches import BatchSource, Scaling
from mert_foundry.model.probing.head_training import TrainedHead, train_heads
from mert_foundry.model.probing.heads import HeadSizes, HeadStack, ProbeHeadSpec, generator_of
from mert_foundry.model.probing.labels import clip_labels
from mert_foundry.model.probing.probe import cross_entropy, probe
from mert_foundry.model.probing.protocol import ProbeProtocol

CPU = torch.device("cpu")
PROTOCOL = ProbeProtocol(
    hidden=12, rates=(1e-3, 1e-2), seeds=2, epochs=12, patience=4, plateau_patience=1, batch_size=32
)
SPECS = [ProbeHeadSpec(layer, rate, seed) for layer in (0, 1, None) for rate in PROTOCOL.rates for seed in (0, 1)]


def source(protocol: ProbeProtocol = PROTOCOL) -> BatchSource:
    """Clips 0 to 99 train, the next 60 validate by accuracy."""
    features = clustered(160)
    labels = clip_labels(features.labelled)
    scaling = Scaling.fitted(features.values, np.arange(100))

    def accuracy(outputs: torch.Tensor) -> np.ndarray:
        return (outputs.argmax(dim=2).numpy() == labels[100:]).mean(axis=1)

    return BatchSource(
        sizes=HeadSizes(2, 8, protocol.hidden, 3),
        values=features.values,
        targets=torch.from_numpy(labels),
        scaling=scaling,
        train=np.arange(100),
        batch_size=protocol.batch_size,
        valid=scaling.rows(features.values, np.arange(100, 160)),
        score_outputs=accuracy,
    )


def trained_in_torch(spec: ProbeHeadSpec, source: BatchSource, epochs: int) -> dict[str, torch.Tensor]:
    """One linear or one-hidden-layer head by nn.functional and torch's Adam, without dropout."""
    initial = HeadStack.initial([spec], source.sizes, CPU).weights
    weights = {name: weight[0].clone().requires_grad_() for name, weight in initial.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=spec.rate)
    order = generator_of(spec.seed, 1)
    for _ in range(epochs):
        for x, y in source.epoch([order]):
            seen = x[0, :, spec.layer] if spec.layer is not None else (weights["mix"].softmax(0)[:, None] * x[0]).sum(1)
            if "hidden_weight" in weights:
                seen = (seen @ weights["hidden_weight"] + weights["hidden_bias"]).relu()
            optimizer.zero_grad()
            functional.cross_entropy(seen @ weights["weight"] + weights["bias"], y[0]).backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def together() -> list[TrainedHead]:
    return train_heads(SPECS, source(), cross_entropy, PROTOCOL, CPU)


@pytest.mark.parametrize("index", range(len(SPECS)))
def test_a_head_trained_in_the_batch_equals_one_trained_alone(together: list[TrainedHead], index: int):
    (alone,) = train_heads([SPECS[index]], source(), cross_entropy, PROTOCOL, CPU)
    assert together[index].spec == SPECS[index]
    np.testing.assert_allclose(together[index].curve, alone.curve, atol=1e-5)
    assert largest_difference(together[index].weights, alone.weights) < 1e-5


def test_heads_stop_at_epochs_of_their_own(together: list[TrainedHead]):
    lengths = {len(head.curve) for head in together}
    assert len(lengths) > 1
    for head in together:
        best = int(np.argmax(head.curve))
        assert head.score == head.curve[best]
        assert len(head.curve) == min(PROTOCOL.epochs, best + 1 + PROTOCOL.patience)


@pytest.mark.parametrize("hidden", [12, None])
@pytest.mark.parametrize("layer", [1, None])
def test_training_equals_a_plain_torch_loop(hidden: int | None, layer: int | None):
    # One epoch at a time and no dropout: the best epoch of a single epoch is that epoch.
    protocol = PROTOCOL.model_copy(update={"hidden": hidden, "dropout": 0.0, "epochs": 1})
    spec = ProbeHeadSpec(layer, 1e-2, 3)
    (head,) = train_heads([spec], source(protocol), cross_entropy, protocol, CPU)
    assert largest_difference(head.weights, trained_in_torch(spec, source(protocol), 1)) < 1e-6


def test_the_rate_falls_when_validation_stands_still():
    class Still(BatchSource):
        def validate(self, heads: HeadStack) -> np.ndarray:
            return np.zeros(len(heads.specs))

    plain = source()
    still = Still(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    # The first epoch is the best; after epochs 1 and 2 without a rise, more than the patience of 1, the rate is halved.
    protocol = PROTOCOL.model_copy(update={"patience": 12, "dropout": 0.0, "epochs": 12})
    steps: list[float] = []
    fused = torch.optim.Adam.step

    def noted(optimizer: torch.optim.Adam) -> None:
        steps.append(optimizer.param_groups[0]["lr"])
        fused(optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", noted)
        train_heads([ProbeHeadSpec(0, 1e-2, 0)], still, cross_entropy, protocol, CPU)
    by_epoch = steps[:: len(steps) // 12]
    assert by_epoch == [1e-2] * 3 + [5e-3] * 2 + [2.5e-3] * 2 + [1.25e-3] * 2 + [6.25e-4] * 2 + [3.125e-4]


def test_dropout_drops_its_share_and_keeps_the_mean():
    protocol = PROTOCOL.model_copy(update={"dropout": 0.5, "epochs": 1})
    masks: list[torch.Tensor] = []
    outputs = HeadStack.outputs

    def noted(heads: HeadStack, seen: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
        if factors is not None:
            masks.append(factors)
        return outputs(heads, seen, factors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadStack, "outputs", noted)
        train_heads(SPECS[:4], source(), cross_entropy, protocol, CPU)
    drawn = torch.cat(masks, dim=1)
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    assert abs(float(drawn.mean()) - 1) < 0.1
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])  # seeds 0, 1, 0, 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # ten epochs are enough here
def test_scores_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    features = clustered(3000, classes=5, dim=16, strengths=(0.5,))
    labels = clip_labels(features.labelled)
    splits = np.array([clip.split for clip in features.labelled.clips])
    x, train, test = features.values[:, 0], splits == "train", splits == "test"
    quick = ProbeProtocol(hidden=32, rates=(1e-3, 1e-2), seeds=2, epochs=12, patience=4, draws=0)
    for protocol, peer in (
        (quick, MLPClassifier((32,), max_iter=10, batch_size=64, random_state=0)),
        (quick.model_copy(update={"hidden": None}), LogisticRegression(max_iter=500)),
    ):
        reference = peer.fit(x[train], labels[train]).score(x[test], labels[test])
        ours = probe(features, protocol).score("accuracy").value
        assert 0.5 < reference < 0.95
        assert abs(ours - reference) < 0.04  # 600 test clips: a standard error of 0.02
