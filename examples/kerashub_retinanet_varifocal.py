"""The varifocal loss inside KerasHub's RetinaNet, trained on generated images.

`RetinaNetObjectDetector` hands its classification loss one-hot targets. The varifocal
loss is made for other ones: the IoU of the *predicted* box with its object at the true
class, 0 elsewhere, so that a score says how good the box is. With one-hot targets it
would be a focal loss that does not even weaken the easy positives. So the subclass below
computes its own targets; the model, its anchors, its assignment and its box loss are
KerasHub's.

    pip install 'vfnet_tf[kerashub]'
    python examples/kerashub_retinanet_varifocal.py
"""

import argparse

import keras
import keras_hub
import numpy as np
from keras import ops

from vfnet_tf.losses import VarifocalLoss
from vfnet_tf.ops.boxes import elementwise_iou

NUM_CLASSES = 2  # squares that are bright in red, and in green
IMAGE_SIZE = 128  # pixels


class IoUAwareRetinaNet(keras_hub.models.RetinaNetObjectDetector):
    """KerasHub's RetinaNet, whose classes learn the IoU of the box beside them."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, **kwargs):
        boxes = y["boxes"]
        if self.bounding_box_format != self.label_encoder.bounding_box_format:
            raise ValueError("The model and its label encoder must share a box format.")
        # Deltas [B, P, 4] and labels [B, P]: -1 for background, -2 for "ignore".
        target_deltas, labels = self.label_encoder(
            images=x, gt_boxes=boxes, gt_classes=y["labels"]
        )
        is_positive = ops.cast(labels > -1, "float32")
        quality = self.iou_of(x, target_deltas, y_pred["bbox_regression"])
        one_hot = ops.one_hot(ops.cast(labels, "int32"), self.num_classes)
        # Summed by the losses, divided here by the positives of the whole batch: a mean
        # over all anchors would make the loss thousands of times too small. Ignored
        # anchors weigh nothing. (On several replicas this is each replica's own number.)
        positives = ops.maximum(ops.sum(is_positive), 1.0)
        targets = {
            "bbox_regression": target_deltas,
            # Exactly 0 where there is no object: what the loss takes for a negative.
            "cls_logits": ops.cast(one_hot, "float32") * quality[..., None],
        }
        weights = {
            "bbox_regression": is_positive / positives,
            "cls_logits": ops.cast(labels != -2, "float32") / positives,
        }
        # Past RetinaNet's own targets, to Keras's sum of the compiled losses.
        return super(keras_hub.models.RetinaNetObjectDetector, self).compute_loss(
            x=x, y=targets, y_pred=y_pred, sample_weight=weights, **kwargs
        )

    def iou_of(self, images, target_deltas, predicted_deltas):
        """IoU of predicted boxes with the boxes they learn, without a gradient.

        Args:
            images: `[B, H, W, 3]`.
            target_deltas, predicted_deltas: float `[B, P, 4]`, what the label encoder
                gives and the box head predicts.

        Returns:
            float32 `[B, P]` in [0, 1]; of no meaning where there is no object.
        """
        anchors = ops.concatenate(list(self.anchor_generator(images).values()), axis=0)
        target, predicted = (
            keras.utils.bounding_boxes.decode_deltas_to_boxes(
                anchors=anchors,
                boxes_delta=ops.cast(deltas, "float32"),
                anchor_format=self.anchor_generator.bounding_box_format,
                box_format="xyxy",
                encoded_format=self.label_encoder.encoding_format,
                variance=self.label_encoder.box_variance,
                image_shape=tuple(images.shape[1:]),
            )
            for deltas in (target_deltas, predicted_deltas)
        )
        # A target that followed its prediction would be learned by spoiling the box.
        return ops.stop_gradient(elementwise_iou(predicted, target))


def build_model(classification_loss=None):
    """A small RetinaNet with random weights, compiled.

    Args:
        classification_loss: a `keras.losses.Loss` that sums; the varifocal loss by
            default.
    """
    image_encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder, min_level=3, max_level=5, use_p5=False
    )
    model = IoUAwareRetinaNet(
        backbone=backbone,
        num_classes=NUM_CLASSES,
        bounding_box_format="xyxy",
        pre_logits_num_conv_layers=1,
        use_prediction_head_norm=True,
    )
    # KerasHub 0.32 gives the prior's bias, -4.6, to the box head: boxes would begin a
    # hundred times too small, and the IoUs, which are the targets, at 0.
    for head, bias in ((model.box_head, 0.0), (model.classification_head, -4.6)):
        variable = head.prediction_layer.bias
        variable.assign(ops.full(variable.shape, bias))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        box_loss=keras.losses.Huber(reduction="sum"),
        classification_loss=classification_loss or VarifocalLoss(),
    )
    return model


def make_images(rng, count=4):
    """Images with one or two squares each, and their boxes as KerasHub takes them.

    Args:
        rng: numpy `Generator`.
        count: int, B.

    Returns:
        (float32 `[B, H, W, 3]` around 0, dict of `boxes` `[B, 2, 4]` in pixels (x1, y1,
        x2, y2) and `labels` `[B, 2]`; rows without an object are -1).
    """
    images = rng.normal(0.0, 0.1, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
    boxes = np.full((count, 2, 4), -1.0)
    labels = np.full((count, 2), -1)
    for image, rows, classes in zip(images, boxes, labels, strict=True):
        for row in range(rng.integers(1, 3)):
            side = rng.integers(24, 56)
            # One on the left and one on the right: they do not overlap.
            x = row * IMAGE_SIZE // 2 + rng.integers(0, IMAGE_SIZE // 2 - side + 1)
            y = rng.integers(0, IMAGE_SIZE - side + 1)
            classes[row] = rng.integers(NUM_CLASSES)
            rows[row] = (x, y, x + side, y + side)
            image[y : y + side, x : x + side, classes[row]] += 1.0
    objects = {"boxes": boxes.astype("float32"), "labels": labels.astype("float32")}
    return images.astype("float32"), objects


def train(model, epochs, seed=0):
    """Trains on sixteen images, four at a time.

    Returns:
        The losses of the epochs, a list of floats.
    """
    data = make_images(np.random.default_rng(seed), count=16)
    fitted = model.fit(*data, batch_size=4, epochs=epochs, verbose=0)
    return fitted.history["loss"]


def main():
    """Trains, and prints the loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="of four steps each")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    for epoch, loss in enumerate(train(build_model(), options.epochs), start=1):
        print(f"epoch {epoch:2d}  loss {loss:.3f}")


if __name__ == "__main__":
    main()
