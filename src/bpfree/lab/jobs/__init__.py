"""Many trainings at once, each in its own process.

jobs         a queue of trainings, several at the same time; errors of one do not stop the others
fork_server  a process that has imported everything, and forks for each training
child        the training in the forked process
machine      the processor, and how many trainings fit on it
"""
