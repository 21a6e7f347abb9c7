"""Adversarial knowledge distillation: adversarial training of a student whose labels are a teacher's, too."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from pl_robust._batch import split_batch, take_entry
from pl_robust._dataloaders import flatten_loaders
from pl_robust._lightning import LRSchedulerCallable, MisconfigurationException, OptimizerCallable, unsavable
from pl_robust.attacks import Attack
from pl_robust.losses import AKD, Distillation
from pl_robust.losses.distillation import Progress
from pl_robust.modules._adversarial_classifier import AdversarialClassifier
from pl_robust.modules._fingerprints import fingerprint
from pl_robust.modules._teacher_cache import TeacherCache, prepare_cache
from pl_robust.modules._teachers import Answers, Teachers
from pl_robust.modules.adversarial_training import published_sgd


class AKDStudent(AdversarialClassifier):
    r"""Train a classifier on adversarial examples, with labels and teachers for targets (Maroto et al. 2022).

    What the loss is, which inputs the teachers are asked about and what the attack ascends, ``distillation`` says:
    ``AKD`` mixes labels and teachers, ``q = (1 - teacher_weight) onehot(y) + teacher_weight p_T``; ``ARD``, ``RSLAD``
    and ``IAD`` are the published baselines. With ``AKD(0)`` this is ``AdversarialTraining``, bit for bit.

    Teachers are networks in eval mode, which they must be given in and must stay in. They are moved to the module's
    device when training starts, asked without gradients, and otherwise left as they are. They are no part of this
    module: not of its parameters, its checkpoints, its hyperparameters, nor of what DDP synchronizes. Several answer as
    one, by their weighted mean, whatever their order. Under autocast they take part in it, but for the mean (float32);
    otherwise each works in the precision of its own parameters.

    A checkpoint is of the student alone, and beside weights has the configuration of a run of ``pl-robust``, the names
    of the teachers' files with it. Where these are missing, ``load_from_checkpoint`` takes any teacher, to evaluate the
    student: ``(path, net=net, teachers=nn.Identity().eval(), teacher_weights=None, attack=attack)``; its network alone
    reads ``Pretrained(net, path)``.

    Early-stopped teachers, as published, are those of the best epoch by PGD accuracy: train them by
    ``AdversarialTraining`` with ``ModelCheckpoint(monitor="val/acc_pgd", mode="max")``, which ``eval_attacks`` logs,
    and read the file by ``Pretrained``, or a folder of files by ``PretrainedEnsemble``. A weak adversarial training has
    a smaller eps or fewer steps in ``attack``; give ``eval_attacks`` the full ones then.

    Logs what ``AdversarialTraining`` does: train/loss and train/acc_adv; and for each of val and test: loss (the
    cross-entropy to the labels) and acc on clean inputs, acc_adv, acc_<name>, with its table and its warnings.

    A ``cache`` keeps the teachers' answers to clean inputs on disk, for distillations that ask about no others
    (``ARD``, ``RSLAD``, ``AKD(teacher_input="clean")``): each sample is asked about once, also over several runs, and
    training is as without, bit for bit where an answer does not depend on the rest of the batch. It is filled as
    samples are met, written at the end of each epoch, and read into the device's memory, float32 [N, T, num_classes].
    What was killed is completed by the next run. It belongs to its teachers (a checksum of all their weights and
    layers; and one batch of each run is asked about again and compared, which tells changes of their code) and to the
    inputs' bits: other ones, as of another data set or of random augmentation, are an error. Batches
    then need the samples' places in the data set, which ``IndexedDataModule`` adds; all processes, on several nodes
    too, need to see the folder.

    Args:
        net: the student, images [B, C, H, W] -> logits [B, num_classes]; or a name of ``pl_robust.models``, built for
            ``num_classes``; in YAML also any class_path.
        teachers: a network of the same inputs and outputs in eval mode, or a list or ModuleList of them.
        attack: the training attack against the student; its forwards run on the bare net, with batch-norm as its
            ``batch_norm`` says.
        distillation: how the training loss is made; None means ``AKD()``, with a teacher's weight of 0.5.
        average: what several teachers are averaged in: their ``"probabilities"``, at the distillation's temperature, or
            their ``"logits"``.
        teacher_weights: share of each teacher in the mean, above 0; they are divided by their sum. None gives all the
            same.
        cache: folder of the teachers' answers to clean inputs; None asks them each time.
        index_key: where a batch holds its samples' places in the data set, for the cache alone: position in tuples and
            lists, key in dicts.
        eval_attacks: name -> attack for validation and test; None means ``{"pgd": PGD}`` with the training attack's
            ball and 10 steps.
        num_classes: number of classes.
        optimizer: parameters -> optimizer; with the triangular schedule its learning rate is the peak.
        lr_scheduler: ``"triangular"`` (0 -> lr -> 0 over the whole run, per step), ``"constant"``, or optimizer ->
            scheduler.
        lr_peak: where in the run the triangle has its peak, between 0 and 1.
        lr_scheduler_interval: whether a scheduler of yours steps per ``"epoch"`` or per ``"step"``.
        input_key: where a batch holds its inputs: position in tuples and lists, key in dicts.
        label_key: where a batch holds its labels.

    Raises:
        TypeError: if a network, attack or distillation is of another type.
        ValueError: if an argument is not among the allowed ones, a teacher is in training mode (also at the start of an
            epoch) or shares parameters with the student, or the distillation asks about more than a cache holds; at the
            first batch, if a teacher has other classes or answers with NaN; at any, if inputs are not those of the
            cache.
        MisconfigurationException: at the start of fit, if the triangular schedule meets a run without an end, or a
            cache several training dataloaders or one without a length.
    """

    def __init__(
        self,
        net: nn.Module | str,
        teachers: nn.Module | list[nn.Module],
        attack: Attack,
        *,
        distillation: Distillation | None = None,
        average: Literal["probabilities", "logits"] = "probabilities",
        teacher_weights: list[float] | None = None,
        cache: str | os.PathLike[str] | None = None,
        index_key: str | int = 2,
        eval_attacks: dict[str, Attack] | None = None,
        num_classes: int = 10,
        optimizer: OptimizerCallable = published_sgd,
        lr_scheduler: Literal["triangular", "constant"] | LRSchedulerCallable = "triangular",
        lr_peak: float | str = 0.5,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        input_key: str | int = 0,
        label_key: str | int = 1,
    ) -> None:
        if cache is not None and not isinstance(cache, str | os.PathLike):
            raise TypeError(f"`cache` must be the path of a folder, or None, got {cache!r}")
        cache = None if cache is None else os.fspath(cache)  # a Path could not be read back from a checkpoint
        super().__init__(
            net,
            attack,
            eval_attacks=eval_attacks,
            num_classes=num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_peak=lr_peak,
            lr_scheduler_interval=lr_scheduler_interval,
            input_key=input_key,
            label_key=label_key,
        )
        self.save_hyperparameters(
            ignore=unsavable(
                net=net,
                teachers=teachers,
                attack=attack,
                eval_attacks=eval_attacks,
                distillation=distillation,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
            )
        )
        if distillation is not None and not isinstance(distillation, Distillation):
            raise TypeError(f"`distillation` must be a distillation such as AKD(), or None, got {distillation!r}")
        self.distillation = AKD() if distillation is None else distillation
        self.distillation.check(attack)
        self._teachers = Teachers(teachers, average=average, weights=teacher_weights, num_classes=num_classes)
        self._teachers.check_apart(self.net)
        if cache is not None and not self.distillation.clean_teacher:
            raise ValueError(
                "`cache` holds what teachers say about clean inputs, and the distillation asks about adversarial ones, "
                f"got {self.distillation!r}: leave `cache` out, or take AKD(teacher_input='clean'), ARD or RSLAD"
            )
        self.cache = cache
        self.index_key = index_key
        self._stored: TeacherCache | None = None  # the open cache, in a fit

    def on_train_start(self) -> None:
        """Move the teachers to the device, and open their cache."""
        self._teachers.to(self.device)
        self._stored = None if self.cache is None else self._open_cache(Path(self.cache))

    def on_train_epoch_start(self) -> None:
        """See that the teachers are still in eval mode."""
        self._teachers.check_mode()
        if self._stored is not None:
            self._stored.start_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the student, ask the teachers, and give the loss that the distillation makes of it."""
        x, y = split_batch(batch, self.input_key, self.label_key)
        stored = None if self._stored is None else partial(self._stored, self._indices(batch), self._teachers.logits)
        answers = Answers(self._teachers, stored)
        epochs = self.trainer.max_epochs
        progress = Progress(self.current_epoch, epochs if epochs is not None and epochs >= 0 else None)
        loss, logits = self.distillation(self.net, answers, self.attack, x, y, progress=progress)
        self._log_training(loss, logits, y)
        return loss

    def on_train_epoch_end(self) -> None:
        """Write to the cache what this epoch has added, and read what other processes have."""
        if self._stored is None:
            return
        self._stored.flush()
        if self.trainer.strategy.reduce_boolean_decision(self._stored.has_stale, all=False):  # waits for all ranks
            self._stored.check()
            raise ValueError(f"`cache`={self.cache!r} holds answers to other inputs, as another process has found")
        self._stored.reload()

    def on_train_end(self) -> None:
        """Let the cache go."""
        self._stored = None

    def _indices(self, batch: Any) -> Tensor:
        try:
            return take_entry(batch, self.index_key, "index_key")
        except KeyError as error:
            raise KeyError(
                f"{error.args[0]}; `cache` needs the samples' places in the data set: wrap the datamodule in "
                "IndexedDataModule, or let the data set give them"
            ) from None

    def _open_cache(self, folder: Path) -> TeacherCache:
        loaders = flatten_loaders(self.trainer.train_dataloader)
        datasets: list[Any] = [getattr(loader, "dataset", None) for loader in loaders]
        samples = [len(dataset) if hasattr(dataset, "__len__") else None for dataset in datasets]
        if len(samples) != 1 or samples[0] is None:
            raise MisconfigurationException(
                f"`cache` needs one training dataloader with a data set of known length, got lengths {samples}: leave "
                "`cache` out"
            )
        identity = {
            "teachers": [fingerprint(net) for net in self._teachers.nets],
            "samples": samples[0],
            "classes": self.num_classes,
            "precision": str(self.trainer.precision),
        }
        error: Exception | None = None
        if self.trainer.is_global_zero:
            try:
                prepare_cache(folder, identity)
            except (ValueError, OSError) as refusal:
                error = refusal
        error = self.trainer.strategy.broadcast(error)  # or the others would wait for ever
        if error is not None:
            raise error
        return TeacherCache(folder, self.device)
