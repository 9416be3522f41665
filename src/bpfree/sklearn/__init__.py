"""Estimators for scikit-learn: classify, regress and encode with any rule of bpfree, in pipelines and searches.

>>> from sklearn.datasets import load_wine
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import StandardScaler
>>> x, y = load_wine(return_X_y=True, as_frame=True)
>>> model = make_pipeline(StandardScaler(), BPFreeClassifier("mono_forward", epochs=20, random_state=0))
>>> model.fit(x, y).score(x, y) > 0.9
True
"""

from bpfree.sklearn.autoencoder import BPFreeAutoencoder
from bpfree.sklearn.classifier import BPFreeClassifier
from bpfree.sklearn.regressor import BPFreeRegressor

__all__ = ["BPFreeAutoencoder", "BPFreeClassifier", "BPFreeRegressor"]
