"""The autoencoder for scikit-learn: `transform` gives the code, `inverse_transform` rebuilds samples from codes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from bpfree.data.labels import Labels
from bpfree.errors import UserError, unknown
from bpfree.inputs import forward
from bpfree.rule import Rule
from bpfree.sklearn.estimator import BPFreeEstimator, NetSpec
from bpfree.sklearn.samples import Array, Samples, read_weights
from bpfree.spec import Spec

_HIDDEN = (128, 8, 128)  # of the net that `net=None` stands for
_LABELS = Labels(2)  # of the samples; nobody reads them, since samples are their own targets
_CODES_AT_ONCE = 500  # no more than a batch of `Run.batches`


class BPFreeAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BPFreeEstimator):  # type: ignore[misc]
    """A transformer of scikit-learn: an autoencoder that is trained by any rule of bpfree that can rebuild samples.

    The code of a sample is what one layer of the net gives for it. `inverse_transform` runs the layers behind it. See
    `BPFreeClassifier` for nested parameters: `net__hidden=[64, 2, 64]` sets the width of the code.

    Args:
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        net: the name or spec of a net in `bpfree.nets.NETS`; an `nn.Module`, of which each fit trains a copy; or a
            function (shape of a sample, number of its values) -> `nn.Module`. None: an mlp with hidden layers of
            128, 8 and 128, so that a code has 8 values.
        code: the name of the module that gives the code. None: the layer with the fewest values, before the last layer.
        epochs: passes over the training samples.
        batch_size: samples in a training batch.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        random_state: the seed of everything random: an integer gives the same bits in each fit. A RandomState draws the
            seed; None draws it from numpy's.
        options: a mapping with any other option of `bpfree.fit`, such as `{"task": {"output": "linear"}}`.

    Attributes:
        run_: the `bpfree.Run`, with the net, the records of the epochs and the cost. `run_.save(folder)` keeps it.
        code_layer_: the name of the module that gives the code.
        n_iter_: the number of passes over the data.
        n_features_in_: the number of features.
        feature_names_in_: their names, if the samples were a frame with names.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> x = load_digits().data[:200] / 16
        >>> model = BPFreeAutoencoder("dfa", net={"name": "mlp", "hidden": [64, 4, 64]}, epochs=5).fit(x)
        >>> model.transform(x).shape, model.inverse_transform(model.transform(x)).shape
        ((200, 4), (200, 64))
    """

    _task: ClassVar[str] = "reconstruct"

    def __init__(
        self,
        rule: Rule | Spec = "dfa",
        *,
        net: NetSpec = None,
        code: str | None = None,
        epochs: int = 50,
        batch_size: int = 32,
        optimizer: Spec = "adam",
        random_state: int | np.random.RandomState | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            rule,
            net=net,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            random_state=random_state,
            options=options,
        )
        self.code = code

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BPFreeAutoencoder":
        """Train a new net to rebuild its samples.

        Args:
            X: samples [N, F]: an array or a frame; or images [N, C, H, W], for a net that takes them.
            y: not used; part of scikit-learn's interface.
            sample_weight: how often each sample occurs in an epoch, [N]; see `BPFreeClassifier.fit`.

        Returns:
            The estimator.

        Raises:
            UserError: a parameter or a weight is not allowed, or the rule cannot rebuild samples.
            ValueError: scikit-learn cannot use X.
        """
        x = self._validated(X, reset=True, ensure_min_samples=2)
        self._fit(*self._rows(x, sample_weight), _LABELS, self.epochs)
        self.code_layer_, self._code_shape = self._find_code()
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BPFreeAutoencoder":
        """Make one more pass over samples; the first call makes the net. The optimiser keeps its state.

        Args:
            X: samples, as in `fit`.
            y: not used; part of scikit-learn's interface.
            sample_weight: as in `fit`.

        Returns:
            The estimator.

        Raises:
            UserError: see `fit` and `BPFreeClassifier.partial_fit`.
            ValueError: scikit-learn cannot use X.
        """
        x = self._validated(X, reset=not self.__sklearn_is_fitted__())
        self._go_on(*self._rows(x, sample_weight), _LABELS)
        self.code_layer_, self._code_shape = self._find_code()
        return self

    def transform(self, X: Any) -> Array:
        """Return the code of each sample, float32 [N, K].

        Args:
            X: samples, as in `fit`.
        """
        x = torch.from_numpy(self._validated(X))
        run, codes = self.run_, []
        with run.trainer.evaluating(), _outputs(run.net, [self.code_layer_]) as outputs:
            for batch in run.batches(run.preprocess.unlabelled(x)).epoch():
                forward(run.net, batch.x)
                codes.append(outputs[self.code_layer_].flatten(1).float().cpu())
        return torch.cat(codes).numpy()

    def inverse_transform(self, X: Any) -> Array:
        """Return samples that the layers behind the code rebuild, float32 [N, ...]; from 0 to 1 for images of bytes.

        Args:
            X: codes [N, K].

        Raises:
            UserError: codes have another width than K.
        """
        check_is_fitted(self)
        codes = torch.from_numpy(check_array(X, dtype=np.float32, order="C", copy=True))
        if codes.shape[1] != self._n_features_out:
            raise UserError(
                f"X: found codes of {codes.shape[1]} values, allowed: {self._n_features_out}, as transform gives"
            )
        run, rebuilt = self.run_, []
        layer = run.net.get_submodule(self.code_layer_)
        with run.trainer.evaluating():
            for some in torch.split(codes, _CODES_AT_ONCE):
                code = some.reshape(-1, *self._code_shape).to(run.trainer.device, run.trainer.dtype)
                blank = run.preprocess.unlabelled(run.preprocess.blank(len(code)))
                hook = layer.register_forward_hook(lambda *_, code=code: code)  # the encoder's own code is dropped
                try:
                    rebuilt += [
                        run.task.decode(forward(run.net, b.x)).float().cpu() for b in run.batches(blank).epoch()
                    ]
                finally:
                    hook.remove()
        return torch.cat(rebuilt).numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the mean squared error of rebuilt samples, so that higher is better, as a search expects.

        Args:
            X: samples, as in `fit`.
            y: not used; part of scikit-learn's interface.
            sample_weight: how often each sample counts, [N].
        """
        x = torch.from_numpy(self._validated(X))
        error = (self.run_.predict(x) - self.run_.preprocess.target(x)).square().flatten(1).mean(1)  # [N]
        return -float(np.average(error.double().numpy(), weights=read_weights(sample_weight, len(x))))

    @property
    def _n_features_out(self) -> int:
        """The number K of values of a code; scikit-learn names the features by it."""
        return prod(self._code_shape)

    def _rows(self, x: Array, sample_weight: Any) -> tuple[Array, Array, Array]:
        """Return samples of a weight above 0, labels that stand for nothing, and the weights."""
        return self._weighted_rows(x, np.zeros(len(x), np.int64), sample_weight)

    def _find_code(self) -> tuple[str, tuple[int, ...]]:
        """Return the name of the layer that gives the code, and the shape of one code.

        Raises:
            UserError: there is no such layer, or it gives no code for each sample.
        """
        run = self.run_
        modules = dict(run.net.named_modules())
        if self.code is not None and self.code not in modules:
            raise unknown("module in code", self.code, modules)
        # Without layers that learn nothing: Flatten gives the sample itself.
        layers = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
        with run.trainer.evaluating(), _outputs(run.net, [self.code] if self.code else layers) as outputs:
            forward(run.net, next(run.batches(run.preprocess.unlabelled(run.preprocess.blank(2))).epoch()).x)
        shapes = {name: tuple(out.shape[1:]) for name, out in outputs.items() if len(out) == 2}
        if self.code is None and shapes:
            shapes.pop(next(reversed(shapes)))  # the last layer gives the rebuilt sample
        if not shapes:
            raise UserError(
                f"code: found {self.code}, but no such layer gives one code for each sample, allowed: the name of a "
                "module of the net before its last layer"
            )
        return min(shapes.items(), key=lambda item: prod(item[1]))

    def _net(self, samples: Samples, labels: Labels, seed: int) -> nn.Module | Spec:
        default = {"name": "mlp", "hidden": list(_HIDDEN)}
        return default if self.net is None else super()._net(samples, labels, seed)

    def _width(self, samples: Samples, labels: Labels) -> int:
        return prod(samples.x.shape[1:])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


@contextmanager
def _outputs(net: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect in a dict the last output of some modules of a net, in the order in which they run."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                outputs[name] = out

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
