"""The section `data` of a config: which data set, how much of it, and how batches are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bpfree.data import DATASETS, Augment, Dataset, Preprocess, Split, data_directory
from bpfree.data.augment import PixelValues
from bpfree.data.subset import Skew, SkewKind, mislabel, select, thin
from bpfree.data.transforms import Transform, make_transform
from bpfree.disk.paths import user_path
from bpfree.errors import unknown
from bpfree.noise import Noise
from bpfree.spec import absolute_paths, check_options, move_old_keys, option_types


class Section(BaseModel):
    """A section of a config, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class SkewConfig(Section):
    """The section `data.skew`; see `bpfree.data.subset.Skew`."""

    kind: SkewKind = "long_tailed"
    factor: float = Field(ge=1, allow_inf_nan=False)


class AugmentConfig(Section):
    """The section `data.augment`: random changes to training samples; see `bpfree.data.augment.Augment`."""

    shift: int = Field(default=0, ge=0)
    flip: bool = False
    crop: float = Field(default=1.0, gt=0, le=1)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0, le=1000)
    transforms: list[str | dict[str, Any]] = []

    @field_validator("transforms", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        specs = value if isinstance(value, list) else [value]
        return [{"name": spec} if isinstance(spec, str) else spec for spec in specs]

    def build(self, preprocess: Preprocess, transforms: Sequence[Transform] | None = None) -> Augment:
        """Return the changes in the form that batches take.

        Args:
            preprocess: of the samples; it knows the range of their values.
            transforms: used instead of those that the config names.

        Raises:
            UserError: a transform cannot be imported.
        """
        ours = self.model_dump(exclude={"transforms"})
        made = [make_transform(spec) for spec in self.transforms] if transforms is None else transforms
        return Augment(**ours, transforms=tuple(made), values=PixelValues.of(preprocess))


OLD_DATA_KEYS = {key: f"augment.{key}" for key in AugmentConfig.model_fields if key != "transforms"}
"""Keys of the section `data` in earlier versions, and their places now; see `bpfree.spec.move_old_keys`."""


class DataConfig(BaseModel):
    """The section `data`: the data set, how much of it, and how batches are made.

    Keys that are not fields are options of the data set's reader.

    Attributes:
        name: a data set in `bpfree.data.DATASETS`.
        dir: the directory of data sets; None takes the one of the environment.
        batch_size: samples in a training batch.
        validation: share of the training samples that is split off for validation.
        classes: classes to keep; None keeps all of them.
        fraction: share of the training samples to keep.
        skew: how unequal the sizes of the classes are made; None leaves them.
        label_noise: share of the training labels that are replaced by wrong ones.
        augment: random changes to training samples.
    """

    model_config = ConfigDict(extra="allow")

    name: str = "digits"
    dir: str | None = None
    batch_size: int = Field(default=64, ge=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    classes: list[int] | None = None
    fraction: float = Field(default=1.0, gt=0, le=1)
    skew: SkewConfig | None = None
    label_noise: float = Field(default=0.0, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        """Move the keys of earlier versions, `data.flip` and the like, into `data.augment`."""
        is_section = isinstance(values, Mapping) and isinstance(values.get("augment", {}), Mapping | AugmentConfig)
        return move_old_keys(values, OLD_DATA_KEYS, "data") if is_section else values

    @model_validator(mode="after")
    def _anywhere(self) -> "DataConfig":
        """Make paths of the reader absolute: a resume may come from another folder."""
        if self.dir is not None:
            # Called for its error only: the config keeps the folder as the user wrote it.
            user_path(self.dir, "data.dir")
        if self.name in DATASETS and self.model_extra:
            # In place, because pydantic lets nobody replace `model_extra`.
            self.model_extra.update(absolute_paths(DATASETS[self.name], self.model_extra, "data"))
        return self

    def check(self) -> dict[str, Any]:
        """Return the options of the reader, converted to the types of its signature.

        Raises:
            UserError: an unknown data set or option, or one of the wrong type.
        """
        reader = DATASETS.get(self.name)
        if reader is None:
            raise unknown("dataset", self.name, DATASETS)
        options = self.model_extra or {}
        # Checked by hand, since options are keys of this section beside the fields: an error must list both. The first
        # parameter of a reader is the directory, which the program passes.
        taken = list(option_types(reader))[1:]
        for key in options.keys() - set(taken):
            raise unknown("key", key, {*type(self).model_fields, *taken}, prefix="data.")
        return check_options(reader, options, "data", given=1)

    def load(self, data_dir: str | Path | None = None) -> Dataset:
        """Read the data set, or download it first if it is not there.

        Args:
            data_dir: the directory of data sets; default: the one that the config or the environment names.

        Raises:
            UserError: the data set is not there and cannot be downloaded, or is damaged.
        """
        return self.select(DATASETS[self.name](data_directory(data_dir or self.dir), **self.check()))

    def select(self, dataset: Dataset) -> Dataset:
        """Return a data set with only the `classes` that the config names, in training and test.

        Args:
            dataset: as it was read.
        """
        return dataset if self.classes is None else select(dataset, self.classes)

    def split(self, dataset: Dataset, seed: int) -> tuple[Split, Split | None]:
        """Split off the validation samples, and thin, skew and mislabel the training samples as the config says.

        The validation samples depend on the seed alone, so that all runs of a seed are judged by the same samples.

        Args:
            dataset: as it was read.
            seed: of everything random in it.

        Returns:
            Training and validation samples; None for validation if the config asks for none.
        """
        train, validation = dataset.carve(self.validation, seed)
        skew = None if self.skew is None else Skew(self.skew.kind, self.skew.factor)
        # Separate keys, so that one of these options does not change the random numbers of the other.
        train = thin(train, dataset.classes, Noise(seed).fold("subset"), fraction=self.fraction, skew=skew)
        return mislabel(train, dataset.classes, self.label_noise, Noise(seed).fold("label_noise")), validation
