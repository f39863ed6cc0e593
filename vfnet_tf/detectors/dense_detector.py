import inspect
import math
import os
import pathlib
import re

import keras
from keras import ops

from vfnet_tf.detectors import execution, input_checks
from vfnet_tf.detectors.postprocess import merge_candidates, select_candidates
from vfnet_tf.files import reserve
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.boxes import elementwise_iou
from vfnet_tf.ops.nms import suppress
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS, check_settings
from vfnet_tf.ops.shapes import sizes_of
from vfnet_tf.priors import make_points
from vfnet_tf.processor import check_weights_may_change
from vfnet_tf.weights_file import check_seal, seal

_VIEW_KEYS = ("images", "image_size", "scale", "flipped")


class DenseDetector(TrainableParts, keras.Model):
    """What all dense detectors share: points, the loss call, metrics and detection.

    A subclass gives `decode`, `assign` and `_loss_parts`, and says in its attributes what
    differs: the names of its losses and boxes, where its points lie, anchors per cell.

    Args:
        backbone: a model with the outputs `"C3"`, `"C4"`, `"C5"` as a dict.
        neck: layer from that dict to a dict of pyramid levels.
        head: layer from that dict to predictions by level, with `num_classes` and
            `strides`.
        class_loss: `FocalLoss`, `QualityFocalLoss`, `VarifocalLoss` or any Keras loss
            that maps `[B, P, K]` pairs to `[B, P]`. A loss that declares
            `hard_targets = True` gets 1 instead of the IoU at the true class.
        score_threshold: detections below or at this score are dropped.
        nms_iou_threshold: IoU above which the weaker of two boxes is dropped, or from
            which linear soft-NMS lowers its score.
        candidates_per_level: points of a level that enter NMS at most.
        max_detections: detections per image at most, D.
        nms: `"hard"`, `"soft_linear"` or `"soft_gaussian"`.
        soft_nms_sigma: of the Gaussian.
        soft_nms_min_score: soft-NMS drops what falls below this score.
    """

    #: arguments of the subclass's own, parts and plain values, each an attribute
    config_names = ()
    #: for callbacks: function of the loss parts, called in each training step, to a bool
    #: scalar, whether they count in the metrics
    loss_watch = None
    #: whether `fit` and the first eager calls check the values that they are given
    check_inputs = True
    #: names of the loss parts, in the order they are shown
    loss_names = ("class_loss", "box_loss")
    #: predictions per cell
    anchors_per_cell = 1
    #: where points lie in their cells, see `make_points`
    point_offset = 0.0
    #: class losses that take points which are not valid as negatives, as the official
    #: code does: docs/parity.md, S20
    unmasked_losses = ()
    #: pixels at the right and lower border that boxes of detections do not reach
    clip_margin = 0.0

    #: outputs that are boxes; detections have the last ones
    _box_names = ("boxes",)
    #: further outputs of each point, name -> channels
    _further_outputs = {}

    def __init__(
        self,
        backbone,
        neck,
        head,
        class_loss,
        score_threshold=0.05,
        nms_iou_threshold=0.6,
        candidates_per_level=1000,
        max_detections=100,
        nms="hard",
        soft_nms_sigma=0.5,
        soft_nms_min_score=1e-3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.class_loss = class_loss
        self.score_threshold = score_threshold
        self.nms_iou_threshold = nms_iou_threshold
        self.candidates_per_level = candidates_per_level
        self.max_detections = max_detections
        self.nms = nms
        self.soft_nms_sigma = soft_nms_sigma
        self.soft_nms_min_score = soft_nms_min_score
        self._settings({})
        if not getattr(class_loss, "from_logits", True):
            raise ValueError(
                "`class_loss` must take logits, which is what heads predict. Received: "
                f"{class_loss.name} with from_logits=False"
            )
        self._part_metrics = {
            name: keras.metrics.Mean(name=name)
            for name in (*self.loss_names, "num_positives")
        }
        self._loss_weights = {}
        self._traces = execution.Traces(self)
        self._checked_methods = set()  # whose first inputs were checked
        self.build((None, None, None, 3))
        parts = (backbone, neck, head)
        if all(isinstance(part, TrainableParts) for part in parts):
            self._keep_initial_flags()
        else:  # other layers lose their flags in a file, so the detector has them
            self._initial_flags = None

    @property
    def num_classes(self):
        return self.head.num_classes

    @property
    def strides(self):
        return self.head.strides

    def build(self, input_shape):
        if self.built:
            return
        features = {
            level: tuple(tensor.shape) for level, tensor in self.backbone.output.items()
        }
        # Layers that come from a file are built.
        if not self.neck.built:
            self.neck.build(features)
        self._check_levels(features)
        if not self.head.built:
            self.head.build(self.neck.compute_output_shape(features))
        self.built = True

    def _check_levels(self, features):
        """Refuses a head whose levels the neck does not give, or of other strides."""
        levels = getattr(self.head, "levels", None)
        if levels is None or not all(re.fullmatch(r"C\d", name) for name in features):
            return  # a custom part, whose strides are unknown
        size = 32 * max(self.strides)
        # C<n> has the stride 2**n in every backbone.
        sides = {level: size // 2 ** int(level[1:]) for level in features}
        sized = {
            level: (shape[0], sides[level], sides[level], shape[-1])
            for level, shape in features.items()
        }
        shapes = self.neck.compute_output_shape(sized)
        found = {level: size // shape[1] for level, shape in shapes.items()}
        strides = dict(zip(levels, self.strides, strict=True))
        if not strides.items() <= found.items():
            raise ValueError(
                "The head's levels must be among the neck's, with the same strides: give "
                "the head the neck's `levels` and `strides`. Received: "
                f"{strides} of the head, {found} of the neck"
            )

    def _check_assigners(self):
        """Refuses assigners for other strides than the head's."""
        for name in ("assigner", "initial_assigner"):
            assigner = getattr(self, name, None)
            strides = getattr(assigner, "strides", None)
            if strides is not None and tuple(strides) != tuple(self.strides):
                raise ValueError(
                    f"`{name}` must have the head's strides: "
                    f"{type(assigner).__name__}(strides={tuple(self.strides)}), or leave "
                    f"it out. Received: strides={tuple(strides)}"
                )

    def compute_output_spec(self, inputs, training=None, **kwargs):
        outputs = {"class_logits": self.num_classes}
        outputs.update(dict.fromkeys(self._box_names, 4))
        outputs.update(self._further_outputs)
        batch = input_checks.find_images(inputs).shape[0]
        spec = {
            name: keras.KerasTensor((batch, None, size), "float32")
            for name, size in outputs.items()
        }
        spec["points"] = keras.KerasTensor((None, 2), "float32")
        spec["strides"] = keras.KerasTensor((None,), "float32")
        if self.anchors_per_cell > 1:
            spec["anchors"] = keras.KerasTensor((None, 4), "float32")
        return spec

    def level_shapes(self, height, width):
        """`(height, width)` in cells of every level, for images of this size in pixels."""
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def make_priors(self, level_shapes):
        """The points that predictions are relative to.

        Args:
            level_shapes: see the method `level_shapes`.

        Returns:
            dict of float32 `"points"` `[P, 2]`, `"strides"` `[P]`, in pixels.
        """
        points, strides = make_points(level_shapes, self.strides, self.point_offset)
        return {"points": points, "strides": strides}

    def call(self, inputs, training=None):
        """Dense predictions.

        Args:
            inputs: images float `[B, H, W, 3]`, normalised, or a batch dict of the
                pipeline, whose `"images"` is taken.
            training: bool, for batch norm that is trained.

        Returns:
            dict of float32 `"class_logits"` `[B, P, K]`, boxes `[B, P, 4]` in pixels of
            the network input (not clipped), what else a detector predicts, and the
            priors that they belong to: `"points"` `[P, 2]`, `"strides"` `[P]` and, for
            RetinaNet, `"anchors"` `[P, 4]`.
        """
        execution.check_eager_call()
        images = input_checks.find_images(inputs)
        features = self.neck(self.backbone(images, training=training))
        predictions = self.head(features)
        height, width = sizes_of(images)[1:3]
        priors = self.make_priors(self.level_shapes(height, width))
        return {**self.decode(priors, predictions), **priors}

    @property
    def loss(self):
        """None: a detector has its own losses, see `compute_loss`."""
        return None

    @loss.setter
    def loss(self, loss):
        if loss is not None:
            raise ValueError(
                "A detector brings its losses: leave `loss` out of `compile`. Another "
                "loss of the classes is the argument `class_loss` of the detector. "
                f"Received: loss={loss}"
            )

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """See `keras.Model.compile`; a detector has its own losses and metrics.

        Args:
            optimizer: see `keras.Model.compile`.
            loss: None. Another loss of the classes is the detector's `class_loss`.
            loss_weights: dict from names of `loss_names` to floats that the parts of the
                loss are multiplied by, or a list of them, one for each name.
            metrics, weighted_metrics: None. The parts of the loss are metrics; COCO's
                are computed by the callback `CocoEvaluation`.
            **kwargs: see `keras.Model.compile`.

        Raises:
            ValueError: for a loss, metrics, or weights of other losses.
        """
        if metrics or weighted_metrics:
            raise ValueError(
                "A detector has its own metrics: leave `metrics` and `weighted_metrics` "
                "out of `compile`. AP is computed by the callback "
                "`vfnet_tf.training.coco_evaluation.CocoEvaluation`. "
                f"Received: metrics={metrics}, weighted_metrics={weighted_metrics}"
            )
        self._loss_weights = self._find_loss_weights(loss_weights)
        super().compile(optimizer, loss, loss_weights=loss_weights, **kwargs)

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def _find_loss_weights(self, loss_weights):
        """The argument of `compile` as a dict from names of losses to factors."""
        weights = {} if loss_weights is None else loss_weights
        if isinstance(weights, list | tuple) and len(weights) == len(self.loss_names):
            weights = dict(zip(self.loss_names, weights, strict=True))
        if not isinstance(weights, dict) or not set(weights) <= set(self.loss_names):
            raise ValueError(
                f"`loss_weights` must be a dict with some of the keys {self.loss_names}, "
                f"or a list of {len(self.loss_names)} floats. "
                f"Received: loss_weights={loss_weights}"
            )
        return {name: float(weight) for name, weight in weights.items()}

    def save_weights(self, filepath, overwrite=True, *args, **kwargs):
        """See `keras.Model.save_weights`; a `.weights.h5` gets a checksum.

        Raises:
            OSError: there is no room for the file, or it cannot be written.
        """
        is_local = str(filepath).endswith(".weights.h5") and "://" not in str(filepath)
        # Otherwise Keras asks the user first.
        if is_local and (overwrite or not os.path.exists(filepath)):
            reserve(filepath, self._size_of_weights())
        super().save_weights(filepath, overwrite, *args, **kwargs)
        if pathlib.Path(filepath).is_file():  # shards have another name
            seal(filepath)

    def _size_of_weights(self):
        """Bytes of the file of weights, a little more than it takes."""
        optimizer = getattr(self, "optimizer", None)
        variables = [*self.variables, *(optimizer.variables if optimizer else ())]
        # 4096: groups and names of HDF5; 65536: checksum and place in the run.
        return 65536 + sum(4096 + 4 * math.prod(v.shape) for v in variables)

    def load_weights(self, filepath, *args, **kwargs):
        """See `keras.Model.load_weights`.

        Raises:
            ValueError: if the file is damaged, or the weights do not fit; it names
                another number of classes.
        """
        if str(filepath).endswith(".weights.h5"):
            check_seal(filepath)
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except RuntimeError as error:  # of h5py
            raise ValueError(f"The file is damaged: {filepath} ({error})") from error
        except ValueError as error:
            number = self._stored_classes(filepath)
            if number in (None, self.num_classes):
                raise
            raise ValueError(
                "Weights must be of as many classes as the detector: build it with "
                f"num_classes={number}, or start a training from them with `vfnet train "
                f"--weights`. Received: {filepath} of {number} classes for "
                f"num_classes={self.num_classes}"
            ) from error

    def _stored_classes(self, path):
        """The number of classes of a `.weights.h5` file, None if it is unknown."""
        import h5py

        try:
            with h5py.File(path, "r") as file:
                (size,) = file["head/class_predictor/conv/vars/1"].shape
        except (OSError, KeyError, ValueError):
            return None
        return size // self.anchors_per_cell

    def fit(self, x=None, y=None, *args, **kwargs):
        """See `keras.Model.fit`; the values of the batches are checked.

        Args:
            x: batch dicts with `images` and the targets of `compute_losses`, or images;
                in any form that Keras takes.
            y: dict of targets, if `x` are images.
            *args, **kwargs: see `keras.Model.fit`, and `compute_loss` for
                `sample_weight`. `class_weight` is refused.

        Raises:
            ValueError: for targets that are wrong or probably wrong, with the remedy.
                `check_inputs = False` leaves out the checks of values.
        """
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        if given.pop("class_weight", None) is not None:
            raise ValueError(
                "`class_weight` has no meaning for a detector, as an image has objects "
                "of several classes. Weigh images by `sample_weight`. "
                "Received: class_weight"
            )
        x, y, kwargs = _with_targets(**given)
        # Several replicas split a dataset by its form, which the check would change.
        strategy = getattr(self, "distribute_strategy", None)
        is_split = strategy is not None and strategy.num_replicas_in_sync > 1
        if not self.check_inputs or is_split:
            return super().fit(x, y, **kwargs)
        checker = input_checks.BatchChecker(self.num_classes)
        try:
            return super().fit(checker.checked(x, y), y, **kwargs)
        except Exception:
            if checker.error is not None:  # tf.data raises one of its own
                raise checker.error from None
            raise

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """See `keras.Model.evaluate`, and `fit` for `x`, `y` and `sample_weight`."""
        given = inspect.signature(super().evaluate).bind(x, y, *args, **kwargs)
        x, y, kwargs = _with_targets(**given.arguments)
        return super().evaluate(x, y, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Sum of `compute_losses` and of `losses`; the parts become metrics.

        `losses` are those of regularizers and of `add_loss`, as in any Keras model.

        Args:
            x, y, y_pred, training: see `keras.Model.compute_loss`.
            sample_weight: float `[B]` or `[B, 1]`, factors of the images' losses. The
                divisors (the number of positives, sums of IoUs) do not depend on them:
                like Keras's own losses, the loss is linear in the weights. A dict with
                the keys of the targets weighs the class loss by `"labels"`, all others
                by `"boxes"`.

        Raises:
            ValueError: for targets or weights of another structure or shape.
        """
        targets = input_checks.find_targets(x, y)
        losses, num_positives = self._weighted_parts(y_pred, targets, sample_weight)
        replicas = num_replicas()
        is_good = None if self.loss_watch is None else self.loss_watch(losses)
        # The parts of all replicas add up to the loss, but `Mean` averages over replicas.
        values = {name: value * replicas for name, value in losses.items()}
        for name, value in {**values, "num_positives": num_positives}.items():
            weight = None
            if is_good is not None:
                weight = ops.cast(is_good, "float32")
                value = ops.where(is_good, value, 0.0)
            self._part_metrics[name].update_state(value, weight)
        # Losses of regularizers are the same on all replicas.
        others = [ops.sum(ops.cast(loss, "float32")) / replicas for loss in self.losses]
        return sum([*losses.values(), *others])

    def compute_losses(self, outputs, targets, sample_weight=None):
        """The weighted and normalised parts of the loss.

        Args:
            outputs: see `call`.
            targets: dict of `"boxes"` float32 `[B, M, 4]` in pixels of the network
                input, `"labels"` int32 `[B, M]` (-1 pads) and `"image_size"` `[B, 2]`,
                `(height, width)` of the images without padding.
            sample_weight: see `compute_loss`.

        Returns:
            dict of float32 scalars. Under `tf.distribute` each replica gets its share;
            the shares add up to the loss of the global batch.

        Raises:
            ValueError: for targets of another structure or shape and, in the first eager
                call, for wrong values.
        """
        targets = input_checks.find_targets(targets, None)
        values = [targets[name] for name in input_checks.TARGET_KEYS]
        if self._must_check_values("compute_losses", values):
            values = map(ops.convert_to_numpy, values)
            input_checks.check_target_values(*values, self.num_classes)
        return self._weighted_parts(outputs, targets, sample_weight)[0]

    def _weighted_parts(self, outputs, targets, sample_weight):
        """`_loss_parts` times the weights of `compile` and of the call."""
        self._check_assigners()
        # Without weights none are passed: a subclass may have no such argument.
        weights = input_checks.find_sample_weight(sample_weight, targets)
        more = () if weights is None else (weights,)
        losses, num_positives = self._loss_parts(outputs, targets, *more)
        for name, factor in self._loss_weights.items():
            losses[name] = losses[name] * factor
        return losses, num_positives

    def _must_check_values(self, method, values):
        """Whether this is a method's first eager call: reading values waits for a GPU."""
        is_done = not self.check_inputs or method in self._checked_methods
        if is_done or not execution.is_eager(values):
            return False
        self._checked_methods.add(method)
        return True

    def decode(self, priors, predictions):
        """Turns predictions by level into the `[B, P, ...]` outputs of `call`."""
        raise NotImplementedError

    def assign(self, outputs, targets):
        """Which point learns which box.

        Args:
            outputs, targets: see `compute_losses`.

        Returns:
            The `Assignment` of the last boxes, which detections have.
        """
        return self.assigner(
            outputs["points"],
            outputs["strides"],
            targets["boxes"],
            targets["labels"],
            targets["image_size"],
        )

    def _loss_parts(self, outputs, targets, weights=None):
        """The parts of the loss by name, and the number of positives over all replicas.

        Args:
            outputs, targets: see `compute_losses`.
            weights: None, or dict of the factors of images, float32 `[B]`: `"labels"`
                for the class loss, `"boxes"` for the others; see `weighted_sum`.
        """
        raise NotImplementedError

    def _sum_class_loss(self, outputs, assignment, ious, weights=None):
        """Sum of the class loss on this replica; soft losses have `ious` as targets."""
        is_hard = getattr(self.class_loss, "hard_targets", False)
        quality = ops.cast(assignment.is_positive, "float32") if is_hard else ious
        one_hot = ops.one_hot(assignment.labels, self.num_classes, dtype="float32")
        losses = self.class_loss.call(
            one_hot * quality[..., None], outputs["class_logits"]
        )
        if not isinstance(self.class_loss, self.unmasked_losses):
            losses = losses * ops.cast(assignment.is_valid, "float32")
        return weighted_sum(losses, weights, "labels")

    def detect(self, images, image_size=None, scale=None, **overrides):
        """Detections after NMS.

        Args:
            images: float `[B, H, W, 3]`, normalised.
            image_size: `[B, 2]`, `(height, width)` of the images without padding;
                None means that they have none.
            scale: `[B, 2]`, `(vertical, horizontal)` factors that the images were
                resized by; boxes are divided by them. None leaves network pixels.
            **overrides: any of `DETECTION_SETTINGS`, for this call only.

        Returns:
            dict of `boxes` float32 `[B, D, 4]`, `scores` float32 `[B, D]` (descending),
            `labels` int32 `[B, D]` (-1 pads) and `num_detections` int32 `[B]`.
        """
        images, image_size, scale = _view_tensors(images, image_size, scale)
        if self._must_check_values("detect", [images]):
            pixels = ops.convert_to_numpy(input_checks.sample_pixels(images))
            input_checks.warn_of_unnormalized(pixels)
        return self._run(self._detect, images, image_size, scale, **overrides)

    def detect_augmented(self, views, **overrides):
        """Detections in images of which there are several views.

        The candidates of all views enter one NMS, and nothing is averaged, as in the
        official code: docs/parity.md, S29.

        Args:
            views: list of dicts with the arguments of `detect`: `images` `[B, Hv, Wv,
                3]` and, optional, `image_size`, `scale`, and `flipped`: bool, scalar or
                `[B]`, for images mirrored left and right before padding. The B images
                are the same in all views; their sizes may differ.
            **overrides: any of `DETECTION_SETTINGS`, for this call only.

        Returns:
            What `detect` returns, boxes in pixels of the images before `scale`.

        Raises:
            ValueError: for no views, another key, or images of the wrong shape.
        """
        views = [dict(view) for view in views]
        unknown = {key for view in views for key in view} - set(_VIEW_KEYS)
        if not views or unknown or any("images" not in view for view in views):
            raise ValueError(
                "`views` must be dicts with `images` and some of "
                f"{_VIEW_KEYS[1:]}, one at least. "
                f"Received: {[sorted(view) for view in views]}"
            )
        candidates = []
        for view in views:
            arguments = _view_tensors(
                view["images"], view.get("image_size"), view.get("scale")
            )
            flipped = ops.convert_to_tensor(view.get("flipped", False), dtype="bool")
            flipped = ops.broadcast_to(flipped, sizes_of(arguments[0])[:1])
            candidates.append(
                self._run(self._candidates, *arguments, flipped, **overrides)
            )
        candidates = merge_candidates(candidates)
        return self._run(self.suppress_candidates, *candidates, **overrides)

    def _settings(self, overrides):
        unknown = sorted(set(overrides) - set(DETECTION_SETTINGS))
        if unknown:
            raise ValueError(
                f"`detect` takes the settings {sorted(DETECTION_SETTINGS)}. "
                f"Received: {unknown}"
            )
        own = {name: getattr(self, name) for name in DETECTION_SETTINGS}
        settings = {**own, **overrides}
        check_settings(**settings)
        return settings

    def _detect(self, images, image_size, scale, **overrides):
        candidates = self._candidates(images, image_size, scale, **overrides)
        return self.suppress_candidates(*candidates, **overrides)

    def _candidates(self, images, image_size, scale, flipped=None, **overrides):
        outputs = self(images, training=False)
        return self.candidates(
            *self.ranking(outputs),
            sizes_of(images)[1:3],
            image_size,
            scale,
            flipped,
            **overrides,
        )

    def ranking(self, outputs):
        """Boxes and scores that detections are selected from.

        Args:
            outputs: see `call`.

        Returns:
            Boxes float32 `[B, P, 4]`, class scores `[B, P, K]` in [0, 1], and the
            centerness `[B, P]`, a factor of the scores' rank, or None.
        """
        boxes = outputs[self._box_names[-1]]
        scores = ops.sigmoid(outputs["class_logits"])
        if "centerness_logits" not in outputs:
            return boxes, scores, None
        return boxes, scores, ops.sigmoid(outputs["centerness_logits"][..., 0])

    def rank_all(self, images):
        """Boxes and ranked scores of all points, for an NMS outside of the detector.

        Args:
            images: float32 `[B, H, W, 3]`, normalised.

        Returns:
            Boxes float32 `[B, P, 4]`, not clipped, and scores `[B, P, K]`, multiplied by
            the centerness if there is one.
        """
        boxes, scores, factors = self.ranking(self(images, training=False))
        return boxes, scores if factors is None else scores * factors[..., None]

    def candidates(
        self,
        boxes,
        scores,
        factors,
        canvas_size,
        image_size,
        scale=None,
        flipped=None,
        **overrides,
    ):
        """Selects the boxes and scores that enter NMS.

        Args:
            boxes, scores, factors: see `ranking`.
            canvas_size: `(height, width)` of the batch in pixels, with padding.
            image_size, scale: see `detect`.
            flipped: see `detect_augmented`.
            **overrides: any of `DETECTION_SETTINGS`.

        Returns:
            Boxes `[B, N, 4]` and scores `[B, N, K]`, for `suppress_candidates`.
        """
        settings = self._settings(overrides)
        cells = self.anchors_per_cell
        return select_candidates(
            boxes,
            scores,
            [h * w * cells for h, w in self.level_shapes(*canvas_size)],
            image_size,
            scale,
            flipped,
            settings["candidates_per_level"],
            factors=factors,
            score_threshold=settings["score_threshold"],
            clip_margin=self.clip_margin,
        )

    def suppress_candidates(self, boxes, scores, **overrides):
        """NMS: from the result of `candidates` to the detections of `detect`."""
        settings = self._settings(overrides)
        threshold = settings["score_threshold"]
        if "centerness_logits" in self._further_outputs:
            # `select_candidates` applied it, before scores were multiplied.
            threshold = 0.0
        return suppress(
            boxes,
            scores,
            settings["nms_iou_threshold"],
            threshold,
            settings["max_detections"],
            settings["nms"],
            settings["soft_nms_sigma"],
            settings["soft_nms_min_score"],
        )

    def _run(self, method, *arguments, **overrides):
        """`method(*arguments, **overrides)`, traced once if there are no overrides."""
        if overrides:
            return method(*arguments, **overrides)
        return execution.run(self._traces, method, *arguments)

    def in_graph(self, method, *arguments):
        """`method(*arguments)` of tensors, on TensorFlow in one graph for all sizes.

        The graph is kept until the detector is changed, see `execution.Traces`.
        """
        return execution.in_graph(self._traces, method, *arguments)

    def make_train_function(self, force=False):
        check_weights_may_change("Training")
        return super().make_train_function(force or self._traces.is_stale("train"))

    def make_test_function(self, force=False):
        return super().make_test_function(force or self._traces.is_stale("test"))

    def make_predict_function(self, force=False):
        return super().make_predict_function(force or self._traces.is_stale("predict"))

    def predict_step(self, *arguments):
        """Detections, for `model.predict`; batch dicts have the sizes of their images.

        Args:
            *arguments: the batch. On JAX Keras gives the values of the variables before
                it, and expects them with the detections.
        """
        *state, data = arguments
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        if not isinstance(inputs, dict):
            inputs = {"images": inputs}
        inputs = [inputs.get(name) for name in ("images", "image_size", "scale")]
        if not state:
            return self.detect(*inputs)
        ((trainable, others),) = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping):
            return self.detect(*inputs), others

    # `vfnet_tf.presets` sets both: what builds detectors lies above them.
    _from_preset = _save_to_preset = None

    @classmethod
    def from_preset(cls, preset, load_weights=True, num_classes=None):
        """Builds a detector with the weights of a preset.

        Args:
            preset: a directory with `config.json` and `model.weights.h5` (a run directory
                too), the name of a published model such as
                `"vfnet_r50_fpn_mstrain_2x_coco"`, or `"hf://USER/REPOSITORY"`.
            load_weights: bool; False leaves the weights as they are initialised, and
                downloads none.
            num_classes: int; None takes the preset's. Another number leaves the
                classifier as it is initialised.

        Raises:
            TypeError: if `load_weights` is a number: that of classes is `num_classes=`.
            ValueError: if the preset does not exist, cannot be downloaded now, or is of
                another detector than the class that is asked.
        """
        return cls._from_preset(preset, load_weights, num_classes, detector_class=cls)

    def save_to_preset(self, preset_dir, config=None):
        """Writes `config.json` and `model.weights.h5` to a directory.

        Args:
            preset_dir: path of the directory; `from_preset` reads it.
            config: the `vfnet_tf.config.Config` of the detector; None for the one that
                `build_detector` built it from.

        Raises:
            ValueError: if the detector was built by hand and `config` is None.
        """
        self._save_to_preset(self, preset_dir, config)

    def _own_config(self):
        names = ("backbone", "neck", "head", "class_loss", *self.config_names)
        parts = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in names
        }
        settings = {name: getattr(self, name) for name in DETECTION_SETTINGS}
        return {**keras.Model.get_config(self), **parts, **settings}

    @classmethod
    def _from_own_config(cls, config, custom_objects):
        config = {
            key: keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )
            if isinstance(value, dict) and "class_name" in value
            else value
            for key, value in config.items()
        }
        return cls(**config)


def _view_tensors(images, image_size, scale):
    """The checked arguments of `DenseDetector.detect` as float32 tensors."""
    images = ops.convert_to_tensor(images, dtype="float32")
    input_checks.check_images(images)
    if image_size is None:
        batch, height, width = sizes_of(images)[:3]
        size = ops.cast(ops.stack([height, width]), "float32")
        image_size = ops.broadcast_to(size, (batch, 2))
    image_size = ops.cast(image_size, "float32")
    scale = ops.ones_like(image_size) if scale is None else ops.cast(scale, "float32")
    return images, image_size, scale


def _with_targets(x=None, y=None, args=(), kwargs=None, **others):
    """Arguments of `fit` or `evaluate` as (x, y, dict of the others).

    Keras drops weights where there is no `y`, so a batch dict's targets become `y`.
    """
    others.update(kwargs or {})
    has_weights = others.get("sample_weight") is not None
    if has_weights and y is None and isinstance(x, dict):
        targets = input_checks.find_targets(x, None)
        y = {name: targets[name] for name in input_checks.TARGET_KEYS}
    return x, y, others


def flatten_levels(maps, channels=None):
    """Joins `{level: [B, H, W, C]}` to `[B, P, C]`, levels in order, row by row.

    With `channels`, which divide C, each cell has `C / channels` rows of that size.
    """
    flat = []
    for level in maps.values():
        shape = sizes_of(level)
        flat.append(ops.reshape(level, (shape[0], -1, channels or shape[-1])))
    return ops.concatenate(flat, axis=1)


def weighted_sum(losses, weights, name):
    """Sum of `[B, ...]` losses, those of each image times its weight.

    Args:
        losses: float32 `[B, ...]`.
        weights: see `DenseDetector._loss_parts`; None for 1.
        name: which of the weights, `"labels"` or `"boxes"`.
    """
    if weights is not None:
        shape = (-1, *[1] * (len(losses.shape) - 1))
        losses = losses * ops.reshape(weights[name], shape)
    return ops.sum(losses)


def positive_ious(boxes, assignment):
    """IoUs of positives with the boxes they learn, without gradients.

    Args:
        boxes: float32 `[B, P, 4]`, predictions; negatives may be anything.
        assignment: `Assignment`.

    Returns:
        float32 `[B, P]`, zeros at negatives.
    """
    is_positive = assignment.is_positive
    boxes = ops.where(is_positive[..., None], ops.stop_gradient(boxes), 0.0)
    return ops.where(is_positive, elementwise_iou(boxes, assignment.boxes), 0.0)


def count_positives(assignment, per_image=0):
    """Positives of all replicas as a float32 scalar, at least `per_image` in each."""
    counts = ops.sum(ops.cast(assignment.is_positive, "float32"), axis=1)
    return sum_over_replicas(ops.sum(ops.maximum(counts, per_image)))


def num_replicas():
    """The number of replicas of this step under `tf.distribute`, 1 elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(value):
    """Sum of a scalar over all replicas of this step (arrays of JAX are global).

    Every replica must call it, also one without objects, or the others wait forever.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or num_replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
