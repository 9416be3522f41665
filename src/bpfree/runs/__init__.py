"""Runs: from a config to a trained net in a folder on disk, and back.

config           the sections of a config, and their checks
data_config      the section `data`
config_file      reads a config from a file or a shipped one by name, with overrides
markers          values that a config leaves open for `bpfree tune`
assemble         builds net, rule, task and trainer from a config
device           finds the device that computes
train            trains as a config says
keeper           keeps a training in a run folder, or its best weights in memory
run              the trained run: predicts, evaluates, saves, draws
load             loads a run from its folder
folder           names and checks of the files in a run folder
lock             lets one process at a time write to a run folder
checkpoint       saves and loads the state of a training
saved            models of state.json and result.json, so that damaged files are refused
optimizer_state  splits an optimiser's state into tensors and plain values
result           sums up a training for result.json
events           writes scalars for TensorBoard
progress_bar     shows the progress at a terminal
"""
