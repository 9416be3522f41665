"""A trained run for other programs: one `nn.Module`, an ONNX file, or a file of torch.export."""

from bpfree.export.bare_net import watched
from bpfree.export.file import BATCHES, Exported, write
from bpfree.export.predictor import Predictor
from bpfree.export.programs import FORMS

__all__ = ["BATCHES", "FORMS", "Exported", "Predictor", "watched", "write"]
