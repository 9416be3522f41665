"""The base class of the three estimators: parameters, training, a further pass, and outputs."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from bpfree.data import Dataset, Split, make_dataset
from bpfree.data.labels import Labels
from bpfree.errors import UserError, shown
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.runs.data_config import DataConfig
from bpfree.runs.fit_options import FitOptions
from bpfree.runs.from_python import describe
from bpfree.runs.run import Run
from bpfree.runs.train import train
from bpfree.sklearn.nested import NESTED, nested_values, with_key
from bpfree.sklearn.samples import Array, Draws, Samples, arrange, draw_of, read_weights
from bpfree.spec import Spec, split_spec
from bpfree.tasks import label_options
from bpfree.trackers import Tracker
from bpfree.training.divergence import divergence_error, find_non_finite

NetSpec = Spec | nn.Module | Callable[[tuple[int, ...], int], nn.Module] | None

_OTHER_OPTIONS = ("loss", "trackers", "verbose")
_NOT_OPTIONS = ("batch_size", "classes", "dir")  # they have a parameter, follow from y, or mean nothing for arrays


class BPFreeEstimator(BaseEstimator):  # type: ignore[misc]
    """A base for the estimators. Its constructor only stores the parameters, as scikit-learn asks.

    Args:
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        net: the name or spec of a net in `bpfree.nets.NETS`; an `nn.Module`, of which each fit trains a copy; or a
            function (shape of a sample, width D of the output) -> `nn.Module`.
        epochs: passes over the training samples.
        batch_size: samples in a training batch.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        random_state: the seed of everything random: an integer gives the same bits in each fit. A RandomState draws the
            seed; None draws it from numpy's.
        options: a mapping with any other option of `bpfree.fit`, such as `{"schedule": "cosine", "clip": 1.0}`.
    """

    _task: ClassVar[str]

    def __init__(
        self,
        rule: Rule | Spec = "dfa",
        *,
        net: NetSpec = "mlp",
        epochs: int = 50,
        batch_size: int = 32,
        optimizer: Spec = "adam",
        random_state: int | np.random.RandomState | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule = rule
        self.net = net
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.random_state = random_state
        self.options = options

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Args:
            deep: True for the keys of mappings, too: `optimizer__lr` is `optimizer["lr"]`.
        """
        params: dict[str, Any] = super().get_params(deep=False)
        return params | nested_values(params) if deep else params

    def set_params(self, **params: Any) -> "BPFreeEstimator":
        """Set parameters, and keys of those that are mappings: `optimizer__lr=0.1`, `net__hidden=[64]`.

        A mapping is never changed in place: the estimator gets a new one.

        Args:
            params: values by name.

        Returns:
            The estimator.

        Raises:
            ValueError: the estimator has no such parameter.
            UserError: a key of a parameter that is an object.
        """
        nested = {name: value for name, value in params.items() if name.partition("__")[0] in NESTED and "__" in name}
        super().set_params(**{name: value for name, value in params.items() if name not in nested})
        for path, value in nested.items():
            name, _, key = path.partition("__")
            default = "adam" if name == "optimizer" else "mlp"
            setattr(self, name, with_key(name, getattr(self, name), key, value, default=default))
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "run_")

    def _fit(self, x: Array, y: Array, weights: Array, labels: Labels, epochs: int) -> None:
        """Train a new net.

        Args:
            x: samples [N, ...].
            y: labels as numbers, [N] or [N, D].
            weights: of the samples, above 0, [N].
            labels: the kind of labels.
            epochs: passes over the samples.
        """
        samples = arrange(x, y, weights)
        seed = self._seed()
        options = self._options()
        trackers, loss = list(options.pop("trackers", ())), options.pop("loss", None)
        verbose = options.pop("verbose", False)
        options["classes"] = labels.classes
        net = self._net(samples, labels, seed)
        rule = copy.deepcopy(self.rule) if isinstance(self.rule, Rule) else self.rule
        config, dataset, transforms = describe(
            net,
            (samples.x, samples.y),
            rule,
            {
                "optimizer": self.optimizer,
                "train": {"epochs": epochs, "seed": seed},
                "trackers": [tracker for tracker in trackers if not isinstance(tracker, Tracker)],
            },
            test=None,
            loss=loss,
            options=options,
            arguments=_OTHER_OPTIONS,
        )
        assert dataset is not None
        dataset, draws = _weighted(replace(dataset, labels=labels, origin=samples.origin), samples, config.data, seed)
        self.run_: Run = train(
            config,
            net=net if isinstance(net, nn.Module) else None,
            rule=rule if isinstance(rule, Rule) else None,
            dataset=dataset,
            trackers=[*(tracker for tracker in trackers if isinstance(tracker, Tracker)), *draws],
            loss=None if isinstance(loss, str) else loss,
            transforms=transforms,
            verbose=verbose,
        )
        self.n_iter_ = len(self.run_.metrics)

    def _go_on(self, x: Array, y: Array, weights: Array, labels: Labels) -> None:
        """Train for one more pass; the first pass makes the net. Optimiser and random keys go on.

        Args:
            x: samples [N, ...].
            y: labels as numbers, [N] or [N, D].
            weights: of the samples, above 0, [N].
            labels: the kind of labels.

        Raises:
            UserError: there is a schedule, or labels have another shape than in the first pass.
            DivergedError: a weight is no longer finite.
        """
        is_first = not self.__sklearn_is_fitted__()
        spec = (self.options or {}).get("schedule", "constant") if is_first else self.run_.config.schedule
        if (schedule := split_spec(spec, "schedule")[0]) != "constant":
            raise UserError(
                f"partial_fit: found the schedule {schedule}, which ends with one call, allowed: constant. Leave it out"
            )
        if is_first:
            self._fit(x, y, weights, labels, 1)
        else:
            self._pass(x, y, weights)

    def _pass(self, x: Array, y: Array, weights: Array) -> None:
        run, trainer = self.run_, self.run_.trainer
        if (shape := y.shape[1:]) != run.preprocess.labels.answer_shape:
            allowed = list(run.preprocess.labels.answer_shape)
            raise UserError(f"y: found labels of shape {list(shape)}, allowed: {allowed}, as in the first pass")
        samples = arrange(x, y, weights)
        known = run.preprocess.classes or None
        split = make_dataset((samples.x, samples.y), classes=known, **label_options(run.config.task)).train
        if samples.weights is not None:
            split = split.take(draw_of(trainer, samples.weights, self.n_iter_).cpu())
        for batch in run.setup.training_batches(split).epoch(self.n_iter_):
            trainer.step(batch)
        for tensor in find_non_finite(trainer.net, trainer.rule):
            what = f"{tensor} is not finite at step {trainer.progress.step}"
            raise divergence_error(trainer.optimizer, trainer.clip, what)
        self.n_iter_ += 1

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer) and not isinstance(self.random_state, bool):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _options(self) -> dict[str, Any]:
        """Return the options for the config.

        Raises:
            UserError: `options` is not a mapping, or an option is one that an estimator decides by itself.
        """
        given = {} if self.options is None else self.options
        if not isinstance(given, Mapping):
            raise UserError(f"options: found {shown(given)}, allowed: a mapping of options of bpfree.fit, or None")
        for name in _NOT_OPTIONS:
            if name in given:
                allowed = ", ".join([*(key for key in FitOptions.__annotations__ if key not in _NOT_OPTIONS), "loss"])
                raise UserError(f"options: found {name!r}, which an estimator sets by itself, allowed: {allowed}")
        task = given.get("task", {})
        task = {"name": task} if isinstance(task, str) else dict(task)
        if task.setdefault("name", self._task) != self._task:
            raise UserError(f"options: found the task {task['name']!r}, allowed: options of the task {self._task!r}")
        # A fit trains on all samples, as scikit-learn's users expect; bpfree.fit holds out a tenth.
        return {"validation": 0.0, **given, "task": task, "batch_size": self.batch_size}

    def _net(self, samples: Samples, labels: Labels, seed: int) -> nn.Module | Spec:
        """Return a new module, or the name or spec of a net.

        Raises:
            UserError: `net` is of another kind.
        """
        if isinstance(self.net, nn.Module):
            return copy.deepcopy(self.net)
        if isinstance(self.net, str | Mapping):
            return self.net
        if not callable(self.net):
            raise UserError(
                f"net: found {type(self.net).__name__}, allowed: a name or spec of a net, an nn.Module, or a function "
                "(shape of a sample, width of the output) -> nn.Module"
            )
        shape = tuple(samples.x.shape[1:])
        with Noise(seed).fold("net").global_rng():
            net = self.net(shape, self._width(samples, labels))
        if not isinstance(net, nn.Module):
            raise UserError(f"net: the function returned {type(net).__name__}, allowed: an nn.Module")
        return net

    def _width(self, samples: Samples, labels: Labels) -> int:
        """Return the width D of the output."""
        return labels.classes or int(np.prod(samples.y.shape[1:]))

    def _validated(self, X: Any, y: Any = "no_validation", *, reset: bool = False, **checks: Any) -> Any:
        """Return samples as float32, or as bytes if they are images of bytes, and y as scikit-learn checks it.

        Args:
            X: samples [N, ...]; an array, or a frame whose names are kept.
            y: labels; left out for samples alone.
            reset: True to learn the number and the names of the features, False to check them.
            checks: further arguments of `sklearn.utils.validation.validate_data`.
        """
        if not reset:
            check_is_fitted(self)
        is_image = getattr(X, "dtype", None) == np.uint8 and X.ndim > 2
        dtype = np.uint8 if is_image else np.float32
        checked = validate_data(self, X, y, reset=reset, dtype=dtype, allow_nd=True, **checks)
        x, *labels = checked if isinstance(checked, tuple) else (checked,)
        # joblib gives its processes arrays that cannot be written, of which torch warns.
        x = np.require(x, requirements=["C", "W"])
        return (x, *labels) if labels else x

    def _weighted_rows(self, x: Array, y: Array, sample_weight: Any) -> tuple[Array, Array, Array]:
        """Return the samples of a weight above 0, their labels and their weights."""
        weights = read_weights(sample_weight, len(x))
        kept = weights > 0
        return (x, y, weights) if kept.all() else (x[kept], y[kept], weights[kept])


def _weighted(dataset: Dataset, samples: Samples, config: DataConfig, seed: int) -> tuple[Dataset, list[Tracker]]:
    """Return the data set, and a tracker that draws samples by their weights if samples have weights.

    Validation samples are split off here if there are weights, because the weights of the others must be known.

    Args:
        dataset: the training samples.
        samples: the same samples, with their weights.
        config: says how many samples are held out for validation.
        seed: of everything random.
    """
    if samples.weights is None:
        return dataset, []
    numbered = replace(dataset, train=Split(torch.arange(len(samples.weights)), dataset.train.y))
    kept, held_out = numbered.carve(config.validation, seed)
    places = kept.tensor
    if held_out is not None:
        train, validation = dataset.train.take(places), dataset.train.take(held_out.tensor)
        dataset = replace(dataset, train=train, validation=validation, origin=None)
    return dataset, [Draws(samples.weights[places])]
