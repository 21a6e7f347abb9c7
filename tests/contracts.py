"""A small run of every public callback, module and datamodule, as a configuration: what test_contracts.py goes over."""

from __future__ import annotations

from importlib import import_module
from typing import Any

ROOMS = ("callbacks", "datamodules", "modules")

Config = dict[str, Any]


def named(class_path: str, **arguments: Any) -> Config:
    """A class with its arguments, as YAML has it."""
    return {"class_path": class_path, "init_args": arguments}


SGD = named("torch.optim.SGD", lr=0.05, momentum=0.9)
NET = named("SmallCNN", width=4)
DIGITS = named("ImageDataModule", name="digits", batch_size=256, eval_batch_size=101)
LARGE_DIGITS = named("ImageDataModule", name="digits", image_size=16, batch_size=256, eval_batch_size=101)
UNBOUNDED = named("AdversarialTraining", net=NET, attack=named("FGSM", eps=0.1, bounds=None), optimizer=SGD)
CLASSIFIER = named("AdversarialTraining", net=NET, attack=named("FGSM", eps=0.1), optimizer=SGD)
TEACHER = "teacher.pt"
"""A file of SmallCNN(width=4), in the folder that a test runs in."""
STUDENT = named(
    "AKDStudent",
    net=NET,
    teachers=named("Pretrained", net=NET, checkpoint=TEACHER),
    attack=named("FGSM", eps=0.1),
    optimizer=SGD,
)
GRAPH = named("GraphDataModule", name="csbm", sbm_nodes=80, sbm_features=6, steps_per_epoch=3)
NODES = named("NodeClassification", net=named("SGC", in_features=6, out_features=4))
INDEXED = named("IndexedDataModule", base=DIGITS)
PERCEPTRON = named("pl_robust.models.MLP", in_features=64, hidden=[8], out_features=1, activation="gelu")
LINEARIZED = named(
    "LinearizedTraining", net=named("BinaryLogits", net=PERCEPTRON), linearized=True, num_classes=2, optimizer=SGD
)
SIREN = named("pl_robust.models.SIREN", hidden_features=8, num_layers=3)
SIGNAL = named("SignalDataModule", signal="tone", frequency=5.0, length=64, steps_per_epoch=3)
TONE = named("INRFitting", net=named("pl_robust.models.SIREN", in_features=1, hidden_features=8, num_layers=3))


def watched(callback: Config, model: Config = CLASSIFIER, data: Config = DIGITS) -> Config:
    """A run with a callback."""
    return {"trainer": {"callbacks": [callback]}, "model": model, "data": data}


RUNS: dict[str, Config] = {
    # callbacks
    "CalibrationLogger": watched(named("CalibrationLogger")),
    "CatastrophicOverfittingDetector": watched(named("CatastrophicOverfittingDetector", max_samples=70)),
    "CorruptionEvaluator": watched(
        named("CorruptionEvaluator", corruptions=["brightness", "gaussian_noise"], severities=[1]),
        data=LARGE_DIGITS,
    ),
    "CurvatureLogger": watched(named("CurvatureLogger", max_samples=65, iterations=2)),
    "EpsSchedule": watched(named("EpsSchedule", points=[[0, 0], [2, 1]])),
    "ExactResume": watched(named("ExactResume")),
    "INRVisualizer": watched(named("INRVisualizer", every_n_steps=2), TONE, SIGNAL),
    "LearningDynamics": watched(named("LearningDynamics", adversarial=True), data=INDEXED),
    "NTKAlignmentLogger": watched(named("NTKAlignmentLogger", max_samples=65, samples=2)),
    "PRIMETransform": watched(named("PRIMETransform", transform="cifar")),
    # datamodules
    "CorruptedImageDataModule": {
        "model": CLASSIFIER,
        "data": named("CorruptedImageDataModule", base=LARGE_DIGITS, corruptions=["brightness"], severities=[2]),
    },
    "EigenfunctionDataModule": {
        "model": LINEARIZED,
        "data": named("EigenfunctionDataModule", base=DIGITS, model=None, index=1, standardize=True),
    },
    "GraphDataModule": {"model": NODES, "data": GRAPH},
    "ImageDataModule": {"model": CLASSIFIER, "data": DIGITS},
    "IndexedDataModule": {"model": CLASSIFIER, "data": INDEXED},
    "InjectedFeatureDataModule": {
        "model": UNBOUNDED,
        "data": named("InjectedFeatureDataModule", base=DIGITS, beta=0.1),
    },
    "LinearlySeparableDataModule": {
        "model": LINEARIZED,
        "data": named(
            "LinearlySeparableDataModule",
            model=None,
            output=1,
            index=0,
            image_shape=[1, 8, 8],
            train_size=60,
            test_size=30,
        ),
    },
    "LowPassDataModule": {"model": UNBOUNDED, "data": named("LowPassDataModule", base=DIGITS, bandwidth=4)},
    "SignalDataModule": {"model": TONE, "data": SIGNAL},
    # modules
    "AdversarialTraining": {"model": CLASSIFIER, "data": DIGITS},
    "AKDStudent": {"model": STUDENT, "data": DIGITS},
    "AugmentedTraining": {"model": named("AugmentedTraining", net=NET, optimizer=SGD), "data": DIGITS},
    "INRFitting": {"model": TONE, "data": SIGNAL},
    "INRMetaLearning": {
        "model": named("INRMetaLearning", net=SIREN, method="maml"),
        "data": named("ImageDataModule", name="digits", batch_size=4, eval_batch_size=11),
    },
    "LinearizedTraining": {
        "model": LINEARIZED,
        "data": named("EigenfunctionDataModule", base=DIGITS, model=None, index=1),
    },
    "NodeClassification": {"model": NODES, "data": GRAPH},
}

ALONE = {"EpsSchedule", "ExactResume"}
"""Callbacks of which a Trainer takes one."""

CHANGES_TRAINING = {"EpsSchedule", "PRIMETransform"}
"""Callbacks that are there to change the run; all others look on."""


def public(room: str) -> list[str]:
    """The names on a room's face."""
    return sorted(import_module(f"pl_robust.{room}").__all__)
