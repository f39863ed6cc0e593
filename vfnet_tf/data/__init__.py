"""From files on disk to batches: readers, transforms and the tf.data pipeline.

Nothing is imported here: `normalization`, `example`, `coco`, `readers` and `synthetic`
work without TensorFlow, `transforms` and `pipeline` need it, and `tfds` when it reads.
"""
