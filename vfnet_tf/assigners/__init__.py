from vfnet_tf.assigners.assignment import Assignment
from vfnet_tf.assigners.atss import ATSSAssigner

__all__ = ["ATSSAssigner", "Assignment"]
