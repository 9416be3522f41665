"""A section of a config is a constructor call: `{name: dfa, feedback: orthogonal}` is `RULES["dfa"](feedback=...)`.

The constructor's own signature is the schema. There is not a second description of the options that could disagree.
"""

from bpfree.spec.described import Described
from bpfree.spec.moved import move_old_keys, moved_keys
from bpfree.spec.names import build, imported, lookup, refuse_untrusted, split_spec, without_foreign_code
from bpfree.spec.options import Checked, OptionGroup, absolute_paths, check_options, option_types, shared_options
from bpfree.spec.reference import REQUIRED, Option, fields_of, options_of, summary
from bpfree.spec.values import Spec, convert, describe

__all__ = [
    "REQUIRED",
    "Checked",
    "Described",
    "Option",
    "OptionGroup",
    "Spec",
    "absolute_paths",
    "build",
    "check_options",
    "convert",
    "describe",
    "fields_of",
    "imported",
    "lookup",
    "move_old_keys",
    "moved_keys",
    "option_types",
    "options_of",
    "refuse_untrusted",
    "shared_options",
    "split_spec",
    "summary",
    "without_foreign_code",
]
