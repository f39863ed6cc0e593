"""Configs of published results, one file each; installed as `vfnet_tf.configs`."""
