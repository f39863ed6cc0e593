"""From files on disk to batches: readers, transforms and the tf.data pipeline.

Nothing is imported here: `normalization`, `example`, `coco`, `formats.readers` and
`synthetic` work without TensorFlow. `transforms`, `pipeline` and `formats.tfds` need it.
"""
