"""Many trainings, each in its own process or one after the other in this one.

jobs         a queue of trainings, several at the same time; errors of one do not stop the others
here         trainings in this process, for nets, rules and data that are Python objects
fork_server  a process that has imported everything, and forks for each training
child        the training in the forked process
launcher     the choice who starts the processes: bpfree, Slurm, or submitit on this machine
cluster      functions as jobs of submitit: submit, watch, cancel
submitted    the function that such a job runs, and Slurm's signals
on_cluster   a queue of trainings, each a job of submitit
machine      the processor, and how many trainings fit on it
"""
