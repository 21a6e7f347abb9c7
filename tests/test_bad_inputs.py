"""Seventy ways to get it wrong; each gets one line that says what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pl_robust._lightning import MisconfigurationException
from pl_robust.attacks import FGSM, NFGSM, PGD, TorchAttacks
from pl_robust.callbacks import (
    CalibrationLogger,
    CatastrophicOverfittingDetector,
    CorruptionEvaluator,
    EpsSchedule,
    INRVisualizer,
    LearningDynamics,
    NTKAlignmentLogger,
    PRIMETransform,
)
from pl_robust.cli import main
from pl_robust.datamodules import (
    CorruptedImageDataModule,
    EigenfunctionDataModule,
    GraphDataModule,
    ImageDataModule,
    IndexedDataModule,
    InjectedFeatureDataModule,
    LinearlySeparableDataModule,
    SignalDataModule,
)
from pl_robust.datamodules._injection import Injection
from pl_robust.losses import AKD, ARD, TRADES, GradAlign, Progress, distillation_loss
from pl_robust.metrics import Calibration, MeanCorruptionError, reliability
from pl_robust.models import (
    GCN,
    MLP,
    SIREN,
    FourierFeatureNetwork,
    LeNet,
    Normalize,
    PreActResNet,
    Pretrained,
    PretrainedEnsemble,
    SmallCNN,
)
from pl_robust.modules import (
    AdversarialTraining,
    AKDStudent,
    AugmentedTraining,
    INRFitting,
    INRMetaLearning,
    LinearizedTraining,
)
from pl_robust.modules._signal_batch import check_range
from pl_robust.ntk import (
    empirical_ntk,
    linearize,
    neural_anisotropy_directions,
    ntk_alignment,
    ntk_eigh,
    ntk_vector_product,
)
from pl_robust.transforms import (
    AugMix,
    Corruption,
    DCTLowPass,
    corrupt,
    dct_carrier,
    dct_low_pass,
    frequency_support,
    spectrum,
)

pytestmark = pytest.mark.lightning

NET = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
X = torch.full((4, 3, 2, 2), 0.5)
Y = torch.tensor([0, 1, 2, 0])
IMAGES = torch.full((4, 3, 16, 16), 0.5)


def changed(index: tuple[int, ...], value: float) -> Tensor:
    x = X.clone()
    x[index] = value
    return x


ATTACKS: dict[str, tuple[Callable[[], Any], str]] = {
    "negative eps": (lambda: FGSM(-0.1), r"`eps` must be finite and at least 0.*got -0.1"),
    "eps in words": (lambda: FGSM("eight"), r"`eps` must be a number or a fraction such as '8/255', got 'eight'"),
    "eps over zero": (lambda: FGSM("8/0"), r"`eps` must be a number or a fraction"),
    "eps none": (lambda: PGD(None), r"`eps` must be a number, a fraction"),  # type: ignore[arg-type]
    "eps per channel in l2": (lambda: PGD([0.1, 0.2, 0.3], norm="l2"), r"norm='l2' takes one number"),
    "eps of two channels": (
        lambda: FGSM([0.1, 0.2])(NET, X, Y),
        r"`step_size or eps` has 2 channels, the input .* has 3",
    ),
    "eps of levels": (lambda: FGSM(8), r"`eps` is in input units, 8/255 and not 8.*got 8"),
    "mean without channels": (
        lambda: FGSM(0.1, normalization=(0.5, 0.2)),  # type: ignore[arg-type]
        r"each one number per channel.*got \(0.5, 0.2\)",
    ),
    "steps in words": (lambda: PGD(0.1, steps="5"), r"`steps` must be an integer, got '5'"),  # type: ignore[arg-type]
    "unknown norm": (lambda: PGD(0.1, norm="l1"), r"`norm` must be one of \('linf', 'l2'\), got 'l1'"),  # type: ignore[arg-type]
    "bounds upside down": (lambda: FGSM(0.1, bounds=(1, 0)), r"`bounds` must be \(low, high\) with low < high"),
    "std of zero": (lambda: FGSM(0.1, normalization=([0.5], [0.0])), r"`normalization` must be .* with std > 0"),
    "unknown batch_norm": (lambda: FGSM(0.1, batch_norm="off"), r"`batch_norm` must be one of"),  # type: ignore[arg-type]
    "no steps": (lambda: PGD(0.1, steps=0), r"`steps` must be at least 1, got 0"),
    "restarts of nothing": (lambda: PGD(0.1, restarts=3, random_start=False), r"set random_start=True, or restarts=1"),
    "negative k": (lambda: NFGSM(0.1, k=-1), r"`k` \(noise radius over eps\) must be finite and at least 0, got -1"),
    "NaN": (lambda: FGSM(0.1)(NET, changed((2, 0, 0, 0), torch.nan), Y), r"NaN or infinite values in samples \[2\]"),
    "infinity": (lambda: PGD(0.1, bounds=None)(NET, changed((0, 0, 0, 0), torch.inf), Y), r"samples \[0\]"),
    "integer images": (lambda: FGSM(0.1)(NET, X.to(torch.uint8), Y), r"got torch.uint8; divide uint8 images by 255"),
    "images of 255": (
        lambda: FGSM(0.1)(NET, X * 510, Y),
        r"must lie in bounds=\(0.0, 1.0\), got values from 255 to 255",
    ),
    "one image without a batch": (lambda: FGSM(0.1)(NET, X[0], Y[:1]), r"`y` must be labels of shape \[3\]"),
    "labels of another batch": (lambda: FGSM(0.1)(NET, X, Y[:2]), r"`y` must be labels of shape \[4\].*got \[2\]"),
    "labels one-hot": (
        lambda: FGSM(0.1)(NET, X, torch.eye(3)[Y]),
        r"`y` must be integer class labels, got torch.float32",
    ),
    "label out of range": (
        lambda: FGSM(0.1)(NET, X, Y + 1),
        r"labels must lie in 0..2 for a model of 3 classes, got 1..3",
    ),
    "no logits": (lambda: FGSM(0.1)(lambda x: (NET(x),), X, Y), r"must give logits \[4, classes\], got tuple"),  # type: ignore[arg-type,return-value]
    "no gradient": (lambda: FGSM(0.1)(lambda x: NET(x.detach()).detach(), X, Y), r"does not depend on its input"),
    "scalar loss with restarts": (
        lambda: PGD(0.1, restarts=2, loss=nn.CrossEntropyLoss())(NET, X, Y),
        r"`loss` must give one value per sample \[B\] \(reduction='none'\)",
    ),
    "targets without a loss": (
        lambda: FGSM(0.1)(NET, X, Y, targets=X),
        r"`targets` must come with a `loss`.*loss=None",
    ),
    "no attack of torchattacks": (
        lambda: TorchAttacks("autoatack", 0.1),
        r"got 'autoatack': did you mean AutoAttack\?",
    ),
    "argument torchattacks has not": (
        lambda: TorchAttacks("PGD", 0.1, arguments={"step_size": 0.1}),
        r"may hold \['alpha', 'steps', 'random_start'\], got 'step_size'",
    ),
    "torchattacks in another norm": (
        lambda: TorchAttacks("PGD", 0.1, norm="l2"),
        r"works in norm='linf' only, got norm='l2': AutoAttack, APGD",
    ),
    "torchattacks without a box": (
        lambda: TorchAttacks("PGD", 0.1, bounds=None),
        r"`bounds` must be \(low, high\).*got None: give the box that holds your data, \(-beta, 1 \+ beta\)",
    ),
    "AutoAttack of three classes": (
        lambda: TorchAttacks("AutoAttack", 0.1)(NET, X, Y),
        r"needs a model of at least 4 classes, got 3",
    ),
    "batch_norm of a function": (
        lambda: FGSM(0.1, batch_norm="eval")(lambda x: NET(x), X, Y),
        r"needs .* an nn.Module",
    ),
}

OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "net of no name": (
        lambda: AdversarialTraining("resnet99", FGSM(0.1)),
        r"one of the names .*'SmallCNN'.*got 'resnet99'",
    ),
    "net of no kind": (lambda: AdversarialTraining(3, FGSM(0.1)), r"`net` must be an nn.Module or a name"),  # type: ignore[arg-type]
    "attack in words": (lambda: AdversarialTraining(NET, "fgsm"), r"`attack` must be an attack such as FGSM"),  # type: ignore[arg-type]
    "reserved attack name": (
        lambda: AdversarialTraining(NET, FGSM(0.1), eval_attacks={"adv": PGD(0.1)}),
        r"an identifier other than 'adv', which is the training attack, got 'adv'",
    ),
    "unknown schedule": (
        lambda: AdversarialTraining(NET, FGSM(0.1), lr_scheduler="cosine"),  # type: ignore[arg-type]
        r"`lr_scheduler` must be 'triangular', 'constant' or a callable",
    ),
    "one class": (
        lambda: AdversarialTraining(NET, FGSM(0.1), num_classes=1),
        r"`num_classes` must be at least 2, got 1",
    ),
    "no regularizer": (
        lambda: AdversarialTraining(NET, FGSM(0.1), regularizer="gradalign"),  # type: ignore[arg-type]
        r"`regularizer` must be a regularizer such as GradAlign\(\), or None, got 'gradalign'",
    ),
    "peak outside the run": (
        lambda: AdversarialTraining(NET, FGSM(0.1), lr_peak=1.0),
        r"`lr_peak` must lie between 0 and 1, a share of the run, got 1.0",
    ),
    "regularizer without a start gradient": (
        lambda: GradAlign(0.1)(NET, TorchAttacks("FGSM", 0.1), X, Y),
        r"TorchAttacks gives none: take FGSM, NFGSM or PGD",
    ),
    "weight that was not published": (
        lambda: AdversarialTraining(NET, FGSM(0.25), regularizer=GradAlign()),
        r"for `eps` from 0 to 16/255, got 0.25: give a `weight`",
    ),
    "weight in words": (
        lambda: GradAlign("much"),
        r"`weight` must be a number or a fraction such as '8/255', got 'much'",
    ),
    "TRADES from x": (
        lambda: AdversarialTraining(NET, FGSM(0.1), regularizer=TRADES()),
        r"its attack needs random_start=True, got FGSM",
    ),
    "schedule in disorder": (lambda: EpsSchedule([(5, 1), (0, 0)]), r"`points` must be .* pairs with rising times"),
    "unknown mode of injection": (
        lambda: InjectedFeatureDataModule(ImageDataModule("digits"), 0.1, mode="minus"),  # type: ignore[arg-type]
        r"`mode` must be one of add, orthogonal, reverse, got 'minus'",
    ),
    "test set twice": (
        lambda: InjectedFeatureDataModule(ImageDataModule("digits"), 0.1, test_sets=["clean", "clean"]),
        r"`test_sets` must be a list of clean, .*, each at most once, got \['clean', 'clean'\]",
    ),
    "more classes than carriers": (
        lambda: Injection(0.1, 3, None, "add", "injected", 0, 1)((X, Y + 1)),
        r"labels must be 0 to 2, got 1 to 3; `num_classes` sets how many classes get a carrier",
    ),
    "no bandwidth": (lambda: DCTLowPass(0), r"`bandwidth` must be at least 1, got 0"),
    "bandwidth of a larger image": (
        lambda: dct_low_pass(X, 16),
        r"`bandwidth` must be at most the size of the images, 2x2, got 16; one as large as the size keeps every",
    ),
    "unknown action": (lambda: CatastrophicOverfittingDetector(0.1, action="cry"), r"`action` must be one of"),  # type: ignore[arg-type]
    "fallback without rollback": (
        lambda: CatastrophicOverfittingDetector(0.1, fallback_attack=FGSM(0.1)),
        r"set action='rollback', got 'warn'",
    ),
    "detector's attack in words": (
        lambda: CatastrophicOverfittingDetector(0.1, attack="FGSM"),  # type: ignore[arg-type]
        r"`attack` must be an attack such as PGD\(eps=8/255\), got 'FGSM'",
    ),
    "probe data of two lengths": (
        lambda: CatastrophicOverfittingDetector(0.1, probe_data=(torch.rand(3, 1), torch.zeros(2))),
        r"`probe_data` must be \(x, y\) of one length, at least 1, got lengths \[3, 2\]",
    ),
    "no epochs": (
        lambda: CatastrophicOverfittingDetector(0.1, every_n_epochs=0),
        r"`every_n_epochs` must be at least 1",
    ),
    "kept too much": (
        lambda: CatastrophicOverfittingDetector(0.1, max_kept=1.5),
        r"`max_kept` must lie between 0 and 1",
    ),
    "unknown data": (lambda: ImageDataModule("cifar"), r"`name` must be one of.* cifar10.*got 'cifar'"),  # type: ignore[arg-type]
    "too much validation": (lambda: ImageDataModule("digits", val_fraction=1.0), r"`val_fraction`.*got 1.0"),
    "beta in words": (lambda: InjectedFeatureDataModule(ImageDataModule("digits"), "much"), r"`beta` must be a number"),
    "too many carriers": (lambda: dct_carrier(1000, 4), r"`num_classes` must be.*got 1000"),
    "unknown corruption": (lambda: corrupt(IMAGES, "mist", 3), r"`name` must be one of gaussian_noise, .*got 'mist'"),
    "severity of 6": (lambda: Corruption("fog", 6), r"`severity` must be from 1 to 5, got 6"),
    "corrupted icon": (lambda: corrupt(X, "fog", 3), r"at least 16.*got"),
    "corrupted bytes": (
        lambda: corrupt((IMAGES * 255).byte(), "fog", 3),
        r"floating-point tensor in \[0, 1\], got torch.uint8; divide uint8 images by 255",
    ),
    "seeds for fewer images": (lambda: corrupt(IMAGES, "fog", 3, seeds=torch.arange(3)), r"`seeds`.*got"),
    "unknown corruption to evaluate": (
        lambda: CorruptionEvaluator(["mist"]),
        r"must be among gaussian_noise, .* got 'mist'",
    ),
    "unknown table": (
        lambda: CorruptionEvaluator(table="cifar10"),  # type: ignore[arg-type]
        r"`table` must be one of cifar, tiny_imagenet, imagenet",
    ),
    "severity of 6 in mCE": (lambda: MeanCorruptionError(severities=[6]), r"`severities` must be some of 1 to 5"),
    "baseline in percent": (
        lambda: MeanCorruptionError(["fog"], baseline={"fog": 81.9}),
        r"divide percents by 100",
    ),
    "augmentation of no name": (
        lambda: PRIMETransform("cifar10"),  # type: ignore[arg-type]
        r"`transform` must be 'cifar', 'imagenet' or a batch augmentation such as AugMix\(\), got 'cifar10'",
    ),
    "augmentation without a generator": (
        lambda: PRIMETransform(nn.ReLU()),
        r"must take images and `generator`.* and ReLU does not: wrap it",
    ),
    "two views": (lambda: PRIMETransform(views=2), r"`views` must be 1, or 3 for .*, got 2"),  # type: ignore[arg-type]
    "severity of AugMix": (lambda: AugMix(severity=30), r"`severity` must lie between 1 and 10.*got 30"),
    "negative weight": (lambda: AugmentedTraining(NET, jsd_weight=-1), r"`jsd_weight` must be .*got -1"),
    "corrupted data of nothing": (lambda: CorruptedImageDataModule(), r"give `base`, .* or `data_dir`"),
    "tiny image": (lambda: SmallCNN()(torch.rand(1, 1, 4, 4)), r"at least 8.*got"),
    "wrong channels": (lambda: SmallCNN()(torch.rand(1, 3, 8, 8)), r"1 channel.*got|got.*3"),
    "std missing": (lambda: Normalize([0.5], []), r"`std`.*\bmean|`mean`.*`std`"),
    "no width": (lambda: PreActResNet(width=0), r"`width`.*got 0"),
}


NTK: dict[str, tuple[Callable[[], Any], str]] = {
    "kernel in training mode": (lambda: ntk_vector_product(NET, X, Y), r"call model.eval\(\) first"),
    "kernel of uint8 images": (
        lambda: ntk_eigh(LINEAR, X.to(torch.uint8)),
        r"does not take integers, and `x` is torch.uint8",
    ),
    "kernel of a frozen net": (
        lambda: empirical_ntk(nn.Linear(2, 1).requires_grad_(False).eval(), torch.rand(3, 2)),
        r"parameters with requires_grad=True",
    ),
    "alignment of labels": (
        lambda: ntk_alignment(LINEAR, X, Y),
        r"`y` must be a floating-point tensor.*got torch.int64",
    ),
    "alignment of nothing": (lambda: ntk_alignment(LINEAR, X, torch.zeros(4, 3)), r"`y` must not be zero everywhere"),
    "probes without CKA": (
        lambda: ntk_alignment(LINEAR, X, torch.ones(4, 3), samples=5),
        r"`samples` is the number of probes for the CKA: give cka=True",
    ),
    "k over the samples": (lambda: ntk_eigh(LINEAR, X, 5), r"`k` must be at most the number of rows of the kernel, 4"),
    "landmarks without Nyström": (lambda: ntk_eigh(LINEAR, X, landmarks=2), r"must come with method='nystrom'"),
    "net without forward mode": (
        lambda: linearize(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))(torch.ones(3, 4)),
        r"no forward-mode derivative",
    ),
    "net of two parts": (lambda: linearize(nn.GRU(4, 2))(torch.ones(3, 4)), r"must give a tensor, got tuple"),
    "centered net": (
        lambda: LinearizedTraining(SmallCNN(), centered=True, linearized=False),
        r"`centered` must be false",
    ),
    "directions of ten outputs": (
        lambda: neural_anisotropy_directions(nn.Linear(4, 3).eval(), (4,)),
        r"`output` must say which of the 3 outputs",
    ),
    "one sign vector": (lambda: NTKAlignmentLogger(samples=1), r"`samples` must be at least 2, .* got 1"),
    "negative eigenvalues": (lambda: NTKAlignmentLogger(eigenvalues=-1), r"`eigenvalues` must be at least 0, got -1"),
    "eigenfunction before the first": (
        lambda: EigenfunctionDataModule(ImageDataModule("digits"), MLP(64, 1), -1),
        r"`index` must be at least 0",
    ),
    "labels of augmented images": (
        lambda: EigenfunctionDataModule(ImageDataModule("digits", augment=True), MLP(64, 1), 0).setup("fit"),
        r"the train inputs of `base` change .*augment=False",
    ),
    "no direction": (lambda: LinearlySeparableDataModule(torch.zeros(1, 2, 2)), r"finite and not zero"),
    "classes without distance": (lambda: LinearlySeparableDataModule(eps=0), r"`eps` must be positive"),
    "LeNet of another size": (lambda: LeNet()(IMAGES), r"takes images \[B, 1, 32, 32\]"),
    "MLP of another size": (lambda: MLP(4)(torch.ones(2, 5)), r"of 4 entries each"),
}


DISTILLATION: dict[str, tuple[Callable[[], Any], str]] = {
    "teacher weight above 1": (lambda: AKD(1.5), r"`teacher_weight` must be between 0 and 1, got 1.5"),
    "temperature of 0": (lambda: AKD(temperature=0), r"`temperature` must be finite and above 0, got 0"),
    "teacher input": (
        lambda: AKD(teacher_input="noisy"),  # type: ignore[arg-type]
        r"`teacher_input` must be one of \('adversarial', 'clean'\), got 'noisy'",
    ),
    "reduction": (
        lambda: ARD(reduction="mean"),  # type: ignore[arg-type]
        r"`reduction` must be one of \('batch', 'batch_and_classes'\), got 'mean'",
    ),
    "logits as log-probabilities": (
        lambda: distillation_loss(LINEAR(X), Y, LINEAR(X)),
        r"must be log-probabilities, neither logits nor probabilities",
    ),
    "weight schedule without end": (
        lambda: AKD(1, start_weight=0).weight(Progress(0)),
        r"not known: set max_epochs of the Trainer",
    ),
    "teacher in training mode": (
        lambda: AKDStudent(NET, SmallCNN(), FGSM(0.1)),
        r"must be in eval mode.*it is in training mode in teacher 0",
    ),
    "teacher that is the student": (
        lambda: AKDStudent(n := SmallCNN().eval(), n, FGSM(0.1)),
        r"must not share parameters or buffers with `net`",
    ),
    "teacher without a say": (
        lambda: AKDStudent(NET, SmallCNN().eval(), FGSM(0.1), teacher_weights=[0]),
        r"finite and above 0, of any sum, got \[0\]",
    ),
    "cache of adversarial questions": (
        lambda: AKDStudent(NET, SmallCNN().eval(), FGSM(0.1), cache="c"),
        r"`cache` holds .* about adversarial ones",
    ),
    "no checkpoint": (lambda: Pretrained(SmallCNN(), "none.ckpt"), r"`checkpoint` must be a file, and there is none"),
    "no folder of teachers": (
        lambda: PretrainedEnsemble(SmallCNN(), "none"),
        r"`folder` must be a folder of checkpoints",
    ),
    "calibration attack by name": (
        lambda: CalibrationLogger("pgd"),  # type: ignore[arg-type]
        r"`attack` must be an attack such as PGD.*got 'pgd'",
    ),
    "calibration without bins": (lambda: CalibrationLogger(bins=0), r"`bins` must be at least 1, got 0"),
    "calibration suffix with a slash": (lambda: CalibrationLogger(suffix="_a/b"), r"`suffix` must be ''.*got '_a/b'"),
    "reliability of logits": (
        lambda: reliability(4 * torch.eye(3), torch.arange(3)),
        r"of logits take logits.softmax\(1\)",
    ),
    "calibration of a binary head": (
        lambda: Calibration().update(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)),
        r"models.BinaryLogits",
    ),
    "dynamics' attack as a number": (
        lambda: LearningDynamics(0.1),  # type: ignore[arg-type]
        r"`attack` must be an attack such as PGD",
    ),
    "looks every 0 epochs": (
        lambda: LearningDynamics(every_n_epochs=0),
        r"`every_n_epochs` must be at least 1, got 0",
    ),
    "a loader for a datamodule": (
        lambda: IndexedDataModule(DataLoader(X)),  # type: ignore[arg-type]
        r"must be a LightningDataModule, got DataLoader",
    ),
}


GRAPHS: dict[str, tuple[Callable[[], Any], str]] = {
    "graph misspelt": (lambda: GraphDataModule("cora"), r"got 'cora': did you mean Cora\?"),
    "negative degree": (lambda: GraphDataModule(sbm_degree=-1.0), r"`sbm_degree` must be 0 or more"),
    "no nodes to test": (
        lambda: GraphDataModule(train_fraction=0.9, val_fraction=0.1),
        r"must be less than 1, so that nodes to test are left",
    ),
    "more first features than there are": (
        lambda: GraphDataModule("karate", split="public", num_features=35, feature_reduction="first").setup(),
        r"`num_features` must be at most 34",
    ),
    "class without training nodes": (
        lambda: GraphDataModule("karate").setup(),
        r"each of the 4 classes needs training nodes, \[2\]",
    ),
    "batch size of a whole graph": (lambda: GraphDataModule(batch_size=5), r"`batch_size` is for `neighbors`"),
    "public split of a generated graph": (
        lambda: GraphDataModule(split="public").setup(),
        r"needs the data's own `train_mask`",
    ),
    "features of another graph": (
        lambda: GCN(5, 3)(torch.zeros(9, 4), torch.zeros(2, 0).long()),
        r"takes features x \[N, 5\], got \[9, 4\]",
    ),
}


INR: dict[str, tuple[Callable[[], Any], str]] = {
    "w0 of zero": (lambda: SIREN(w0=0), r"`w0` must be positive, got 0"),
    "SIREN of one layer": (lambda: SIREN(num_layers=1), r"`num_layers` must be at least 2, sines and a linear layer"),
    "pixels as coordinates": (
        lambda: SIREN()(torch.zeros(3, 2, dtype=torch.long)),
        r"coordinates must be floating point",
    ),
    "coordinates of a volume": (
        lambda: SIREN()(torch.rand(5, 3)),
        r"this SIREN takes coordinates \[..., 2\], got \[5, 3\]",
    ),
    "frequencies in a row": (
        lambda: FourierFeatureNetwork(frequencies=[1.0, 2.0]),  # type: ignore[list-item]
        r"a row for each, got shape \[2\]",
    ),
    "support without end": (
        lambda: frequency_support(torch.randn(256, 2), 8, max_count=1000),
        r"256 frequencies have about 1e17 combinations of order 8.*lower `order`",
    ),
    "frequency beyond the grid": (
        lambda: spectrum(torch.rand(8)).at([5.0]),
        r"at most \[4.0\].*fold_frequencies tells",
    ),
    "coordinates of pixels": (
        lambda: SignalDataModule("tone", coordinate_range=(0, 256)),
        r"must lie in \[-1, 1\], got `coordinate_range`=\(0, 256\)",
    ),
    "stride of one": (
        lambda: SignalDataModule("tone", split="every", stride=1),
        r"`stride` must be at least 2, got 1",
    ),
    "stride over the grid": (
        lambda: SignalDataModule("tone", split="every", stride=256).setup(),
        r"`stride` must be less than 256",
    ),
    "tone beyond Nyquist": (
        lambda: SignalDataModule("tone", frequency=128.0).setup(),
        r"`frequency` must lie between 0 and 128",
    ),
    "channels first": (
        lambda: SignalDataModule(torch.zeros(3, 9, 9)).setup(),
        r"channels belong last \(permute them\)",
    ),
    "NaN signal": (
        lambda: SignalDataModule(torch.tensor([1.0, torch.nan])).setup(),
        r"holds NaN or infinite values: cut them out",
    ),
    "unknown meta-learning": (
        lambda: INRMetaLearning(SIREN(), method="fomaml"),  # type: ignore[arg-type]
        r"`method` must be one of \('maml', 'reptile'\)",
    ),
    "inner rate of zero": (
        lambda: INRMetaLearning(SIREN(), inner_lr=0),
        r"`inner_lr` must be positive and finite, got 0",
    ),
    "signals without number": (lambda: INRFitting(SIREN(), num_signals=0), r"`num_signals` must be at least 1, got 0"),
    "coordinates in pixels": (
        lambda: check_range(torch.arange(8.0)[:, None]),
        r"coordinates must lie in \[-1, 1\], got 0 to 7: scale them",
    ),
    "look without end": (lambda: INRVisualizer(every_n_steps=0), r"`every_n_steps` must be at least 1, got 0"),
    "signals of two shapes": (
        lambda: SignalDataModule(["camera", "astronaut"]).setup(),
        r"must have one shape .*`gray`",
    ),
}


@pytest.mark.parametrize("name", [*ATTACKS, *OTHERS, *NTK, *INR, *DISTILLATION, *GRAPHS])
def test_the_error_speaks_in_one_line(name: str) -> None:
    call, message = (ATTACKS | OTHERS | NTK | INR | DISTILLATION | GRAPHS)[name]
    with pytest.raises((ValueError, TypeError, OSError, MisconfigurationException), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


CONFIGURATION = {
    "model": {
        "class_path": "AdversarialTraining",
        "init_args": {"net": "SmallCNN", "attack": {"class_path": "FGSM", "init_args": {"eps": "8/255"}}},
    },
    "data": {"class_path": "ImageDataModule", "init_args": {"name": "digits"}},
}

CONFIGURATIONS: dict[str, tuple[list[str], str]] = {
    "key of the model": (["--model.atack=3"], "AdversarialTraining has no argument 'atack'; did you mean 'attack'?"),
    "key of the attack": (
        ["--model.attack.epss=3"],
        "FGSM has no argument 'epss'; did you mean 'eps'? There are: batch_norm",
    ),
    "key of the trainer": (
        ["--trainer.max_epoch=3"],
        "trainer has no argument 'max_epoch'; did you mean 'max_epochs'?",
    ),
    "key at the top": (["--modle.x=3"], "there is no key 'modle.x'; did you mean 'model'?"),
    "class of the model": (
        ["--model=AdversarialTrainin"],
        "no class 'AdversarialTrainin'; did you mean 'AdversarialTraining'",
    ),
    "class of the data": (["--data=ImageDatamodule"], "There are: CorruptedImageDataModule, EigenfunctionDataModule, "),
    "class of the attack": (
        ["--model.attack=FGSMM"],
        "no class 'FGSMM'; did you mean 'FGSM'? There are: FGSM, NFGSM, PGD",
    ),
    "class of a callback": (["--trainer.callbacks+=ExactResum"], "did you mean 'ExactResume'?"),
    "choice": (["--model.attack.norm=l3"], "model.attack.norm: expected one of 'linf', 'l2', got 'l3'"),
    "type": (["--data.batch_size=many"], "data.batch_size: expected int, got 'many'"),
    "fraction": (["--model.attack.eps=8:255"], "`eps` must be a number or a fraction such as '8/255', got '8:255'"),
    "name of the net": (["--model.net=resnet99"], "got 'resnet99'"),
    "class of the regularizer": (
        ["--model.regularizer=GradAlig"],
        "no class 'GradAlig'; did you mean 'GradAlign'? There are: GradAlign, TRADES",
    ),
    "augmentation's argument": (
        [
            "--trainer.callbacks+=PRIMETransform",
            "--trainer.callbacks.transform=AugMix",
            "--trainer.callbacks.transform.severty=3",
        ],
        "AugMix has no argument 'severty'; did you mean 'severity'?",
    ),
    "command": ([], "invalid choice: 'fitt'"),
}


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_a_typo_in_a_configuration_is_named_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, message = CONFIGURATIONS[name]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    command = "fitt" if name == "command" else "fit"
    with pytest.raises(SystemExit, match="2"):
        main([command, "--config", str(tmp_path / "run.yaml"), *extra])
    said = capsys.readouterr().err.strip()
    assert said.startswith("pl-robust: error: ")
    assert message in said
    assert "\n" not in said


def test_there_are_seventy() -> None:
    assert len(ATTACKS) + len(OTHERS) + len(NTK) + len(CONFIGURATIONS) >= 70
