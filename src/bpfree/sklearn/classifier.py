"""The classifier for scikit-learn: one class for each sample."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from bpfree.data.labels import Labels
from bpfree.errors import UserError, shown
from bpfree.sklearn.estimator import BPFreeEstimator
from bpfree.sklearn.samples import Array


class BPFreeClassifier(ClassifierMixin, BPFreeEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn that trains a net by any rule of bpfree.

    Parameters that many people change are arguments; all other options of `bpfree.fit` go into one mapping, `options`,
    so that the constructor stays short. A search reaches each key by two underscores: `rule`, `optimizer__lr`,
    `net__hidden`, `rule__feedback`, `options__clip`.

    Samples are not scaled: put a StandardScaler before the classifier, as for scikit-learn's own nets. All samples are
    trained on, unless `options` has `validation`. The order of the rows has no effect on the result.

    Args:
        rule: a name or spec from `bpfree.rules.RULES`, or a Rule.
        net: the name or spec of a net in `bpfree.nets.NETS`; an `nn.Module`, of which each fit trains a copy; or a
            function (shape of a sample, number of classes) -> `nn.Module`.
        epochs: passes over the training samples.
        batch_size: samples in a training batch.
        optimizer: a name or spec from `bpfree.training.optim.OPTIMIZERS`.
        random_state: the seed of everything random: an integer gives the same bits in each fit. A RandomState draws the
            seed; None draws it from numpy's.
        options: a mapping with any other option of `bpfree.fit`, such as `{"schedule": "cosine", "clip": 1.0}`.

    Attributes:
        classes_: the classes, sorted; of any type that scikit-learn allows, such as text.
        run_: the `bpfree.Run`, with the net, the records of the epochs and the cost. `run_.save(folder)` keeps it.
        n_iter_: the number of passes over the data.
        n_features_in_: the number of features.
        feature_names_in_: their names, if the samples were a frame with names.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> model = BPFreeClassifier("dfa", optimizer={"name": "adam", "lr": 0.01}, epochs=20, random_state=0)
        >>> model.fit(x, y).score(x, y) > 0.9
        True
    """

    _task: ClassVar[str] = "classify"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BPFreeClassifier":
        """Train a new net.

        Args:
            X: samples [N, F]: an array or a frame; or images [N, C, H, W], for a net that takes them.
            y: the class of each sample, [N]: numbers or text.
            sample_weight: how often each sample occurs in an epoch, [N]. Whole weights up to 10 in the mean repeat the
                samples, which equals repeated rows to the bit. With other weights each epoch draws N samples, in
                proportion to them. So weights work with every rule.

        Returns:
            The estimator.

        Raises:
            UserError: a parameter, a weight or a label is not allowed, or there is only one class.
            ValueError: scikit-learn cannot use X or y.
        """
        x, y = self._validated(X, y, reset=True, ensure_min_samples=2)
        check_classification_targets(y)
        x, y, weights = self._weighted_rows(x, y, sample_weight)
        self._fit(x, self._learn_classes(y, y), weights, self._labels(), self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "BPFreeClassifier":
        """Make one more pass over samples; the first call makes the net. The optimiser keeps its state.

        Args:
            X: samples, as in `fit`.
            y: their classes, [N].
            classes: all classes that will ever occur; the first call needs them.
            sample_weight: as in `fit`.

        Returns:
            The estimator.

        Raises:
            UserError: the first call has no classes, y has a class that is not among them, or `options` has a schedule
                of the learning rate, which would end with the first pass.
            ValueError: scikit-learn cannot use X or y.
        """
        is_first = not self.__sklearn_is_fitted__()
        x, y = self._validated(X, y, reset=is_first)
        check_classification_targets(y)
        x, y, weights = self._weighted_rows(x, y, sample_weight)
        if is_first:
            if classes is None:
                raise UserError("classes: none given, allowed in the first call of partial_fit: all classes")
            numbers = self._learn_classes(classes, y)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise UserError(f"classes: found {shown(classes)}, allowed: those of the first call, {self.classes_}")
        else:
            numbers = self._numbers(y)
        self._go_on(x, numbers, weights, self._labels())
        return self

    def predict(self, X: Any) -> Array:
        """Return the most likely class of each sample, [N].

        Args:
            X: samples, as in `fit`.
        """
        x = self._validated(X)
        answers: Array = self.classes_[self.run_.predict(x).numpy()]
        return answers

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, float32 [N, C], in the order of `classes_`.

        Args:
            X: samples, as in `fit`.
        """
        x = self._validated(X)
        return self.run_.predict_proba(x).numpy()

    def decision_function(self, X: Any) -> Array:
        """Return the scores of the classes, float32 [N, C]; of two classes, the second minus the first, [N].

        Args:
            X: samples, as in `fit`.
        """
        x = self._validated(X)
        scores = self.run_.scores(x).numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def _learn_classes(self, classes: Any, y: Array) -> Array:
        """Set `classes_`, and return labels as their numbers, int64 [N]."""
        known = np.unique(np.asarray(classes))
        if len(known) < 2:
            raise UserError(f"y: found only one class ({known[0]}), allowed: two or more classes")
        self.classes_ = known
        return self._numbers(y)

    def _numbers(self, y: Array) -> Array:
        numbers = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (unknown := y[self.classes_[numbers] != y]).size:
            raise UserError(f"y: found the class {unknown[0]}, allowed: {', '.join(map(str, self.classes_))}")
        return numbers.astype(np.int64)

    def _labels(self) -> Labels:
        return Labels(len(self.classes_), tuple(map(str, self.classes_)))
