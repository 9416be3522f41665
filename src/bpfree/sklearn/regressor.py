"""The regressor for scikit-learn: one number, or several, for each sample."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin

from bpfree.data.labels import Labels
from bpfree.sklearn.estimator import BPFreeEstimator
from bpfree.sklearn.samples import Array


class BPFreeRegressor(RegressorMixin, BPFreeEstimator):  # type: ignore[misc]
    """A regressor of scikit-learn that trains a net by any rule of bpfree that learns numbers.

    Labels are standardised for training, and predictions are in the units of y. Samples are not scaled: put a
    StandardScaler before the regressor. See `BPFreeClassifier` for nested parameters such as `optimizer__lr`.

    Args:
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        net: the name or spec of a net in `bpfree.nets.NETS`; an `nn.Module`, of which each fit trains a copy; or a
            function (shape of a sample, width of the output) -> `nn.Module`.
        epochs: passes over the training samples.
        batch_size: samples in a training batch.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        random_state: the seed of everything random: an integer gives the same bits in each fit. A RandomState draws the
            seed; None draws it from numpy's.
        options: a mapping with any other option of `bpfree.fit`, such as `{"loss": "huber"}`.

    Attributes:
        run_: the `bpfree.Run`, with the net, the records of the epochs and the cost. `run_.save(folder)` keeps it.
        n_iter_: the number of passes over the data.
        n_features_in_: the number of features.
        feature_names_in_: their names, if the samples were a frame with names.

    Example:
        >>> from sklearn.datasets import make_regression
        >>> x, y = make_regression(200, 5, noise=1.0, random_state=0)
        >>> model = BPFreeRegressor("dfa", random_state=0).fit(x, y)
        >>> model.score(x, y) > 0.9
        True
    """

    _task: ClassVar[str] = "regress"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BPFreeRegressor":
        """Train a new net.

        Args:
            X: samples [N, F]: an array or a frame; or images [N, C, H, W], for a net that takes them.
            y: numbers, [N] or [N, D].
            sample_weight: how often each sample occurs in an epoch, [N]; see `BPFreeClassifier.fit`.

        Returns:
            The estimator.

        Raises:
            UserError: a parameter or a weight is not allowed, or the rule cannot learn numbers.
            ValueError: scikit-learn cannot use X or y.
        """
        x, y = self._validated(X, y, reset=True, ensure_min_samples=2, y_numeric=True, multi_output=True)
        self._fit(*self._weighted_rows(x, self._numbers(y), sample_weight), Labels(0), self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BPFreeRegressor":
        """Make one more pass over samples; the first call makes the net, and standardises by its y from then on.

        Args:
            X: samples, as in `fit`.
            y: numbers, [N] or [N, D].
            sample_weight: as in `fit`.

        Returns:
            The estimator.

        Raises:
            UserError: see `fit` and `BPFreeClassifier.partial_fit`.
            ValueError: scikit-learn cannot use X or y.
        """
        is_first = not self.__sklearn_is_fitted__()
        x, y = self._validated(X, y, reset=is_first, y_numeric=True, multi_output=True)
        self._go_on(*self._weighted_rows(x, self._numbers(y), sample_weight), Labels(0))
        return self

    def predict(self, X: Any) -> Array:
        """Return the predicted numbers in the units of y: float32 [N], or float64 [N, D] if y had two dimensions.

        scikit-learn asks for float64 in the second case; the net computes in float32.

        Args:
            X: samples, as in `fit`.
        """
        x = self._validated(X)
        answers = self.run_.predict(x).numpy()
        return answers if answers.ndim == 1 else answers.astype(np.float64)

    def _numbers(self, y: Array) -> Array:
        return y if y.dtype.kind == "f" else y.astype(np.float64)  # integers would be class numbers

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
