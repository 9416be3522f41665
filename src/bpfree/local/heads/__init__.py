"""Heads: small nets that belong to a rule and read the features of a segment.

linear      linear layers, on pixels too, and behind an average over a map
features    the form of a segment's output, and layers that make a vector of it
trunks      layers of the kind of the net's own, up to its read-out
stages      the stages of a net as modules that can be copied
copies      fresh copies of stages
rebuild     decoders, which rebuild the sample
"""
