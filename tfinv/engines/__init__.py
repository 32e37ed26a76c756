"""What finishes the runs of a sweep: this machine, some at once, or a cluster.

Empty on purpose: a node of a cluster imports `node` without TensorFlow.
"""
