"""Pictures of one run, drawn with matplotlib.

draw        draws all pictures of a run into its folder; imports the modules below only when there is something to draw
trained_run the protocol of a run, as far as pictures need one, so that this room stands below `runs`
plots       curves of training and of trackers, and what all pictures share: colours, labels, PNG and GIF files
labels      labels that do not cover each other, at the ends of lines and beside points
scales      axes with few, plain numbers
images      values of samples as images with values in [0, 1]
confusion   the confusion matrix and the wrong predictions of a classifier
numbers     predicted against true numbers, and rollouts of sequence nets
noprop      all pictures of a NoProp run
trail       paths of samples through inference, and metrics after each step, for the two modules below
curves      curves and maps of NoProp runs
denoising   samples on their way from noise to the prediction, as still and moving pictures
"""
