"""What finishes the runs of a sweep: this machine, one after the other, or a cluster.

Empty on purpose: a node of a cluster imports `node` without TensorFlow.
"""
