"""Names that COCO files are read with, together; see `data.formats.coco`."""

from vfnet_tf.data.dataset import DetectionDataset as DetectionDataset
from vfnet_tf.data.formats.coco import find_coco_splits as find_coco_splits
from vfnet_tf.data.formats.coco import read_coco as read_coco
from vfnet_tf.data.images.inspect import inspect_image as inspect_image
