"""Meta-learning an initialization for fitting images by coordinate networks: MAML and Reptile."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.optim import Adam
from torch.optim.optimizer import Optimizer
from torchmetrics import MeanMetric, MetricCollection

from pl_robust._batch import take_entry
from pl_robust._call_with import call_with
from pl_robust._dataloaders import count_real, flatten_loaders, loader_names
from pl_robust._lightning import LightningModule, LRSchedulerCallable, OptimizerCallable, unsavable
from pl_robust._number import parse_number
from pl_robust.modules._divergence import DivergenceWatch
from pl_robust.modules._image_tasks import ImageTasks, check_net
from pl_robust.modules._inner_loop import check_steps, inner_loop, maml_loss, reptile_loss

_METHODS = {"maml": maml_loss, "reptile": reptile_loss}
_HINT = (
    "start again with a lower `lr` of the `optimizer` (1e-5 is published) or a lower `inner_lr` (1e-2), clip gradients "
    "with the Trainer's `gradient_clip_val`, or look for NaN in the images and the net's initialization"
)


def published_adam(parameters: Any) -> Optimizer:
    """Adam as for the released meta-learned SIREN: learning rate 1e-5."""
    return Adam(parameters, lr=1e-5)


class INRMetaLearning(LightningModule):
    r"""Learn the parameters from which a coordinate network fits any image of a kind in a few steps.

    Each image is one task: ``inner_steps`` steps of gradient descent on the mean squared error over all its pixels.
    The defaults are those of the code of Yüce, Ortiz-Jimenez, Besbinar, Frossard, "A structured dictionary perspective
    on implicit neural representations" (CVPR 2022, https://arxiv.org/abs/2112.01917), but for its coordinates, which
    are in [0, 1]; it takes 5,000 batches of 3 images. Both loops have the plain mean squared error, not half of it.

    - ``"maml"`` (Finn, Abbeel, Levine 2017) follows the gradient of the error after the inner steps,
      :math:`\frac1B \sum_i \ell_i(\theta_K^i)`, through these steps, with second derivatives.
    - ``"reptile"`` (Nichol, Achiam, Schulman 2018) gives the optimizer :math:`\frac1B \sum_i (\theta - \theta_K^i)`,
      without second derivatives. That is about ``inner_steps * inner_lr`` times a gradient: Adam does not mind; SGD
      wants a learning rate near 1, at which the parameters become the mean of the tasks'. It takes more inner steps
      to learn anything but the network of the mean image: one step is training on all images at once.

    What is learned is ``net`` itself. ``INRFitting(module.net)`` goes on from it, with ``num_signals`` and
    ``shared_init=True`` on many images at once; for its half of the error, the inner steps are those of SGD with
    2 ``inner_lr``. Fit in the same ``coordinate_range``. ``save_siren(module.net, path)`` exports a SIREN, and
    ``load_siren`` reads it or the released one (``coordinate_range=(0, 1)``), to evaluate or to go on. Only parameters
    with ``requires_grad`` move, in either loop.

    Takes batches of images alone or with labels, which are ignored, of any datamodule for images. Logs train/loss, the
    mean squared error after the inner steps, and train/psnr; for val and test the same, and psnr_0, psnr_1 ... after so
    few steps: the mean over the images of each one's PSNR in dB, with a peak of 1. Dataloaders in a dict (Lightning 2)
    have its keys behind these names. Samples that a DistributedSampler repeats are not counted. ``predict`` gives the
    images as the network has them after the inner steps. A loss that is NaN or infinite stops the run, by the next of
    every ``log_every_n_steps`` steps of the Trainer or the epoch's end.

    Args:
        net: the network, coordinates [N, 2] -> values [N, C].
        method: ``"maml"`` or ``"reptile"``.
        inner_steps: steps on each image; 0 with MAML is training on all images at once.
        inner_lr: learning rate of the inner steps.
        optimizer: parameters -> optimizer of the outer loop.
        lr_scheduler: optimizer -> scheduler; ``None``: a constant learning rate.
        lr_scheduler_interval: whether the scheduler steps per ``"epoch"`` or per ``"step"``.
        coordinate_range: (low, high) of the coordinates of rows and columns, without ``high``.
        input_key: where a batch holds its images: position in tuples and lists, key in dicts.

    Raises:
        TypeError: if an argument is not of its type; with a batch, if its images are no floating point tensor.
        ValueError: if an argument is not among the allowed ones, the network takes other coordinates than of 2
            dimensions or has nothing to learn; with a batch, if images are not [B, C, H, W] or the network gives
            another number of values than C; while training, if the loss is NaN or infinite.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        method: Literal["maml", "reptile"] = "maml",
        inner_steps: int = 2,
        inner_lr: float | str = 1e-2,
        optimizer: OptimizerCallable = published_adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        coordinate_range: tuple[float, float] = (-1.0, 1.0),
        input_key: str | int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=unsavable(net=net, optimizer=optimizer, lr_scheduler=lr_scheduler))
        if method not in _METHODS:
            raise ValueError(f"`method` must be one of {tuple(_METHODS)}, got {method!r}")
        if method == "reptile" and inner_steps == 0:
            raise ValueError("`inner_steps` must be at least 1 for 'reptile', which follows where they lead, got 0")
        if not callable(optimizer):
            raise TypeError(f"`optimizer` must be a callable parameters -> optimizer, got {optimizer!r}")
        if lr_scheduler is not None and not callable(lr_scheduler):
            raise TypeError(f"`lr_scheduler` must be a callable optimizer -> scheduler or None, got {lr_scheduler!r}")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` must be 'epoch' or 'step', got {lr_scheduler_interval!r}")
        self.tasks = ImageTasks(coordinate_range)
        self.net = check_net(net)
        self.method = method
        self.inner_steps = check_steps(inner_steps, "inner_steps")
        self.inner_lr = parse_number(inner_lr, "inner_lr")
        if not 0 < self.inner_lr < math.inf:
            raise ValueError(f"`inner_lr` must be positive and finite, got {inner_lr!r}")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.coordinate_range = coordinate_range
        self.input_key = input_key
        self._watch = DivergenceWatch(_HINT)
        # One for each dataloader of a split, made when the split starts and its dataloaders are known.
        self.val_metrics = nn.ModuleList()
        self.test_metrics = nn.ModuleList()

    def forward(self, coordinates: Tensor) -> Tensor:
        """Compute the initialization's values [N, C] at coordinates [N, 2]."""
        values: Tensor = self.net(coordinates)
        return values

    def adapt(self, images: Tensor, steps: int | None = None) -> dict[str, Tensor]:
        """Take the inner steps from the initialization, for each image on its own.

        The network stays as it is. ``torch.func.functional_call(module.net, {name: p[i] for name, p in
        adapted.items()}, (coordinates,))`` is the i-th network.

        Args:
            images: float [B, C, H, W] in [0, 1], on the network's device.
            steps: number of steps; ``None``: ``inner_steps``.

        Returns:
            Name of each parameter that requires grad -> its values for the images [B, ...], without graph.
        """
        descent, _ = self._descend(images, self.inner_steps if steps is None else check_steps(steps, "steps"))
        return {name: self.net.get_parameter(name).detach() - moved for name, moved in descent.items()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Give the error after the inner steps, with the method's gradient."""
        coordinates, values = self._tasks(self._images(batch))
        loss, errors = _METHODS[self.method](self.net, coordinates, values, steps=self.inner_steps, lr=self.inner_lr)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(values))
        self.log("train/psnr", psnr(errors).mean(), prog_bar=True, batch_size=len(values))
        return loss

    def on_train_start(self) -> None:
        """Begin to watch the loss."""
        self._watch = DivergenceWatch(_HINT)

    def on_before_backward(self, loss: Tensor) -> None:
        """Watch the loss."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._watch.note(loss[None], self.trainer.global_step, rate)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a run that has diverged."""
        self._watch.check_at_log_steps(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Stop a run that has diverged."""
        self._watch.check(self.trainer.strategy)

    def on_validation_start(self) -> None:
        """Make the metrics of each validation dataloader."""
        self._start_evaluation("val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adapt to the images of a validation batch."""
        self._evaluate("val", batch, batch_idx, dataloader_idx)

    def on_test_start(self) -> None:
        """Make the metrics of each test dataloader."""
        self._start_evaluation("test")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adapt to the images of a test batch."""
        self._evaluate("test", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Give the images of a batch as the adapted networks have them, [B, C, H, W]."""
        images = self._images(batch)
        adapted = self.adapt(images)
        coordinates, _ = self._tasks(images)
        rebuilt = vmap(lambda parameters: call_with(self.net, parameters, coordinates))(adapted)
        pixels: Tensor = rebuilt.transpose(1, 2).reshape(images.shape)
        return pixels

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule."""
        optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _images(self, batch: Any) -> Tensor:
        return batch if isinstance(batch, Tensor) else take_entry(batch, self.input_key)

    def _tasks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        like = next(parameter for parameter in self.net.parameters() if parameter.requires_grad)
        return self.tasks(images, like.dtype)

    def _descend(self, images: Tensor, steps: int) -> tuple[dict[str, Tensor], Tensor]:
        """The inner loop where nothing is learned: in validation's inference mode, too."""
        with torch.inference_mode(False), torch.no_grad():
            # Tensors made in inference mode cannot be recorded; the inner loop records for its own gradients.
            coordinates, values = self._tasks(images.clone())
            return inner_loop(self.net, coordinates, values, steps=steps, lr=self.inner_lr, chunked=True)

    def _loaders(self, split: str) -> Any:
        return getattr(self.trainer, f"{split}_dataloaders")

    def _start_evaluation(self, split: str) -> None:
        names = ["loss", "psnr", *(f"psnr_{steps}" for steps in range(self.inner_steps))]
        loaders = flatten_loaders(self._loaders(split))
        with torch.inference_mode(False):  # or `fit` could not go on with what `validate` has made
            metrics = [MetricCollection({name: MeanMetric() for name in names}, compute_groups=False) for _ in loaders]
            setattr(self, f"{split}_metrics", nn.ModuleList(metrics).to(self.device))

    def _evaluate(self, split: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        metrics: Any = getattr(self, f"{split}_metrics")[dataloader_idx]
        images = self._images(batch)
        loaders = self._loaders(split)
        real = count_real(flatten_loaders(loaders)[dataloader_idx], batch_idx, len(images))
        if real:
            _, errors = self._descend(images[:real], self.inner_steps)
            metrics["loss"].update(errors[-1])
            metrics["psnr"].update(psnr(errors[-1]))
            for steps in range(self.inner_steps):
                metrics[f"psnr_{steps}"].update(psnr(errors[steps]))
        name = loader_names(loaders)[dataloader_idx]
        for metric_name, metric in metrics.items():
            self.log(
                f"{split}/{metric_name}" + ("" if name is None else f"/{name}"),
                metric,
                prog_bar=metric_name == "psnr",
                batch_size=real,
                add_dataloader_idx=name is None,
                # Lightning looks metrics up by attribute once, maybe before this one was made.
                metric_attribute=f"{split}_metrics.{dataloader_idx}.{metric_name}",
            )


def psnr(errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each mean squared error, for images in [0, 1]."""
    return -10 * errors.log10()
