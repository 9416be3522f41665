"""A trained net, how it was trained and what came of it: what `bpfree.fit` and `bpfree.load` return."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from bpfree.data import Batches, Preprocess, Split, make_dataset
from bpfree.data.tensors import in_shape, to_inputs, to_tensor
from bpfree.errors import UserError
from bpfree.export import Exported, Predictor, watched, write
from bpfree.inputs import Inputs, tensors_of
from bpfree.pictures.draw import draw
from bpfree.rule import Rule
from bpfree.runs import checkpoint, folder, summary
from bpfree.runs.assemble import Setup
from bpfree.runs.config import Config
from bpfree.runs.generate import Sampling, stream
from bpfree.runs.keeper import RunWriter
from bpfree.tasks import DataTask, label_options
from bpfree.training.evaluation import evaluate_split, mean_metrics
from bpfree.training.listener import Record
from bpfree.training.progress import Progress
from bpfree.training.trainer import Trainer


# Without eq: two runs are equal only if they are one object, because `==` of tensors gives tensors.
@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A net, the rule that trained it, and what came of the training. `bpfree.fit` and `bpfree.load` make it.

    A run never changes. `with_test` and `with_records` return another run on the same net.

    Attributes:
        setup: the config, the trainer and the preprocessing.
        progress: records of the epochs, records of the trackers, and the time taken.
        test: the test split; None if the data have none, or after `bpfree.load`, which reads no data.
        result: test metrics and cost, as in result.json; empty if the training is not over.
        weights: the weights that the net has now: of the "last" epoch or of the "best" one.
        folder: the run folder on disk; None if the run was trained in memory.
    """

    setup: Setup
    progress: Progress
    test: Split | None = None
    result: dict[str, Any] = field(default_factory=dict)
    weights: Literal["last", "best"] = "last"
    folder: Path | None = None

    def __repr__(self) -> str:
        return summary.as_text(self._facts())

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return summary.as_html(self._facts())

    def _facts(self) -> dict[str, str]:
        """Return what `repr` shows, by the names of the lines."""
        facts = summary.facts_of(self.setup, len(self.metrics), self.result)
        weights = "of the best epoch" if self.weights == "best" else ""
        return facts | {"weights": weights, "folder": "" if self.folder is None else str(self.folder)}

    @property
    def config(self) -> Config:
        """The complete config; `bpfree train` would run it again."""
        return self.setup.config

    @property
    def trainer(self) -> Trainer:
        """The trainer, which holds the net, the rule and the task."""
        return self.setup.trainer

    @property
    def preprocess(self) -> Preprocess:
        """The function from raw samples to the input of the net."""
        return self.setup.preprocess

    @property
    def from_python(self) -> tuple[str, ...]:
        """Names of the parts that were passed as Python objects, such as "net"; no config can rebuild them."""
        return self.setup.from_python

    @property
    def net(self) -> nn.Module:
        """The net, with the weights that `weights` names.

        A rule may predict by more than net(x), as the NoProp rules do. Then the first call of this net from outside of
        bpfree gives a UserWarning; reading its weights does not. `as_module` returns what predicts.
        """
        return watched(self.setup.net, self.trainer.rule)

    @property
    def task(self) -> DataTask:
        """The task that the net was trained for."""
        return self.setup.task

    @property
    def metrics(self) -> list[Record]:
        """The records of the epochs, as in metrics.jsonl."""
        return self.progress.history

    @property
    def tracked(self) -> list[Record]:
        """The records of all trackers, as in metrics.jsonl: `tracker`, `step` (from 1 on) and `values` by layer."""
        return self.progress.tracked

    def with_test(self, test: Split | None) -> "Run":
        """Return this run with another test split, such as that of the data set after `bpfree.load`.

        Args:
            test: raw samples and labels; None for no test split.
        """
        return replace(self, test=test)

    def with_records(self, history: list[Record], tracked: list[Record]) -> "Run":
        """Return this run with other records, such as those of metrics.jsonl, which may go beyond the checkpoint.

        Args:
            history: one record per epoch.
            tracked: the records of all trackers.
        """
        return replace(self, progress=replace(self.progress, history=history, tracked=tracked))

    def scores(self, x: Any) -> Tensor:
        """Return the output of the net [N, D] on raw samples [N, ...], in the form that the training data had.

        Args:
            x: an array; for a net of several inputs a tuple or a dict of arrays, as in training.

        Returns:
            Floating numbers [N, D] in memory of the CPU: logits of classes, or values in the units of the task.

        Raises:
            UserError: samples have another form or shape than those of training, or NaN among them.
        """
        several = bool(self.preprocess.inputs)
        # A list is several inputs only where training had several; otherwise it is a list of samples.
        samples = self._as_trained(to_inputs(x, "x", lists=several) if several else to_tensor(x, "x"))
        # argmax gives a class for NaN too, so nobody would notice.
        for tensor in tensors_of(samples):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise UserError("x: contains NaN or infinite values, allowed: finite ones")
        unlabelled = self.batches(self.preprocess.unlabelled(samples))
        outputs = [self.trainer.predict(batch.x) for batch in unlabelled.epoch()]
        # float32, because numpy does not have bfloat16. torch.cat refuses an empty list.
        return torch.cat(outputs).float().cpu() if outputs else torch.zeros(0, self.task.dim)

    def predict(self, x: Any) -> Tensor:
        """Return what the run predicts for raw samples [N, ...], in the form and the units of the labels.

        Args:
            x: samples; see `scores`.

        Returns:
            The most likely class of each sample, int64 [N], or of each pixel, [N, H, W]. With several labels a sample,
            which of them are true, bool [N, C]. For other tasks rebuilt samples [N, ...] or numbers [N, D].

        Raises:
            UserError: samples have another shape than those of training.
        """
        return self.task.decode(self.scores(x))

    def predict_names(self, x: Any) -> list[str]:
        """Return the name of the most likely class of each of N samples, such as "cat".

        Args:
            x: samples; see `scores`.

        Raises:
            UserError: the classes of the run have no names, or the run does not predict one class for each sample.
        """
        names = self.preprocess.class_names
        if names is None or self.task.answers != "class":
            raise UserError("predict_names: the classes of the run have no names. Use predict, which gives numbers")
        return [names[label] for label in self.predict(x).tolist()]

    def predict_proba(self, x: Any) -> Tensor:
        """Return the probability of each class, [N, C], or of each class at each pixel, [N, C, H, W].

        Args:
            x: samples; see `scores`.

        Raises:
            UserError: the run has no classes.
        """
        if self.task.classes is None:
            self.task.probabilities(torch.zeros(0))  # raises the error before the net computes anything
        return self.task.probabilities(self.scores(x))

    def generate(self, prompt: str, **options: Unpack[Sampling]) -> str:
        """Return the text that follows a prompt, drawn token by token; the task is `language`.

        Args:
            prompt: the text before, at least one letter.
            options: `tokens=200`, `temperature=0.8` (0 takes the likeliest token), `top_k=None` (so many of the
                likeliest tokens) and `seed=0`; see `bpfree.runs.generate.stream`.

        Raises:
            UserError: the run does not predict a text, or an option is out of range.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[Sampling]) -> Iterator[str]:
        """Yield the text of `generate` piece by piece, as it is drawn.

        Args:
            prompt: see `generate`.
            options: see `generate`.
        """
        return stream(self.trainer, self.preprocess, prompt, **options)

    def as_module(self) -> Predictor:
        """Return one `nn.Module` from raw samples to probabilities, or to numbers or rebuilt samples.

        It holds copies of the net and of what the rule predicts with, and gives the numbers of `predict_proba`, or of
        `predict` for a task without classes. It needs neither the run nor its data; see `bpfree.export.Predictor`.
        """
        return Predictor(self.trainer, self.preprocess)

    def export(self, path: str | Path, format: Literal["onnx", "torch"] | None = None) -> Exported:  # noqa: A002
        """Write `as_module` to a file for other programs, which takes batches of any size.

        The file holds preprocessing, net, the rule's inference and decoding, and facts about the run as metadata. It is
        checked against torch before it is written.

        Args:
            path: the file; a file that is there is replaced.
            format: "onnx", or "torch" for a program of torch.export. Default: by the end of the path, .onnx or .pt2.

        Returns:
            The path, and the largest difference from torch.

        Raises:
            UserError: the net or its inference cannot be exported, a package is missing, the file computes something
                else than the run, or it cannot be written.
        """
        return write(self.as_module(), self.preprocess.scaling, path, summary.origin(self.setup), format)

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Return the metrics of the run on a pair (samples, labels), or on the test split.

        Args:
            data: any form that `bpfree.fit` takes as objects; default: the test split.

        Returns:
            The task's metrics, means over all samples.

        Raises:
            UserError: the run does not have a test split, or the data do not fit the training's.
        """
        if data is None and self.test is None:
            raise UserError("data: none given, and the run has no test split. Give a pair (samples, labels)")
        split = self.test if data is None else self._split(data)
        assert split is not None
        # By this process alone: of several, a user may let only one evaluate.
        return evaluate_split(self.task, self.batches(split).epoch(), self.trainer.predict, self.setup.net).metrics

    def extra_metrics(self) -> dict[str, dict[str, float]]:
        """Return the test metrics of the rule's extra outputs, by their names; see `bpfree.Rule.extra_outputs`."""
        # A rule that does not override the method has nothing to add: the pass over the test split is saved.
        if self.test is None or type(self.trainer.rule).extra_outputs is Rule.extra_outputs:
            return {}
        return mean_metrics(self.task, self.batches(self.test).epoch(), self.trainer.extra_outputs)

    def batches(self, split: Split) -> Batches:
        """Return the batches of a split in order, for evaluation.

        Args:
            split: raw samples and labels.
        """
        return self.setup.batches(split)

    def _split(self, data: Any) -> Split:
        known = self.preprocess
        options = label_options(self.config.task)
        split = make_dataset(data, classes=known.classes, names=known.class_names, **options).train
        return split._replace(x=self._as_trained(split.x))

    def _as_trained(self, x: Inputs) -> Inputs:
        """Images in the layout of the training samples."""
        shape = self.preprocess.shape
        if not isinstance(x, Tensor):
            return x
        samples = in_shape(x, shape)
        if tuple(samples.shape[1:]) != shape and tuple(x.shape) in (shape, shape[1:]):
            many = ", ".join(["N", *map(str, shape)])
            raise UserError(f"x: found one sample {list(x.shape)}, allowed: N samples [{many}]. Give x[None]")
        return samples

    def save(self, path: str | Path) -> Path:
        """Write the run to a new folder, to be loaded with `bpfree.load`.

        Args:
            path: the new folder; it must not hold a run.

        Returns:
            The path of the folder.

        Raises:
            UserError: the folder cannot be written or holds another run.
        """
        out = folder.place(path)
        writer = RunWriter(out, self.config.dump(), self.setup.checkpoint_extra())
        try:
            writer.on_start(self.trainer)
            writer.on_end()
            folder.write_metrics(out, self.progress)  # a loaded run has records that its trainer does not have
            # These copies replace the checkpoint of `on_start`: after `load`, the trainer's optimiser is a new one.
            self._copy_checkpoints(out)
            if self.result:
                writer.finish(self.result)
            draw(self, out / folder.PLOTS, self.test)
        finally:
            writer.release()
        return out

    def _copy_checkpoints(self, out: Path) -> None:
        """Copy the checkpoints of the run's own folder; the one of `weights` gets the weights that the net has now.

        The user may have changed the net since it was loaded, and `save` is to keep those weights. The optimiser's
        state, which only the checkpoint has, lets the copy be resumed.
        """
        if self.folder is not None:
            for name in (folder.LAST, folder.BEST):
                if checkpoint.exists(self.folder / name):
                    weights_of = self.trainer if name == f"{self.weights}.ckpt" else None
                    checkpoint.copy(self.folder / name, out, weights_of=weights_of)
        elif self.weights == "best":
            checkpoint.save(self.trainer, out / folder.BEST, self.setup.checkpoint_extra())

    def plots(self, samples: Split | None = None) -> list[Path]:
        """Draw all pictures anew into the run's folder.

        Args:
            samples: the split that pictures of samples show; default: the test split. Without both, those pictures are
                left out.

        Returns:
            The paths of the pictures.

        Raises:
            UserError: the run has no folder.
        """
        if self.folder is None:
            raise UserError("plots: the run has no folder. Use save, which draws them too")
        return draw(self, self.folder / folder.PLOTS, samples or self.test)
