import keras
from keras import ops

from vfnet_tf.detectors import input_checks
from vfnet_tf.detectors.postprocess import merge_candidates, select_candidates
from vfnet_tf.ops.boxes import elementwise_iou
from vfnet_tf.ops.nms import check_nms, suppress
from vfnet_tf.ops.shapes import sizes_of
from vfnet_tf.priors import make_points

_VIEW_KEYS = ("images", "image_size", "scale", "flipped")

#: Arguments of a `DenseDetector` that `detect` takes for one call, too.
DETECTION_SETTINGS = (
    "score_threshold",
    "nms_iou_threshold",
    "candidates_per_level",
    "max_detections",
    "nms",
    "soft_nms_sigma",
    "soft_nms_min_score",
)


class DenseDetector(keras.Model):
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
    #: function of the loss parts, called in each training step; it says, as a bool
    #: scalar, whether they count in the metrics. For callbacks.
    loss_watch = None
    #: whether values are looked at that `fit` and the first eager calls are given
    check_inputs = True
    #: names of the loss parts, in the order they are shown
    loss_names = ("class_loss", "box_loss")
    #: predictions per cell
    anchors_per_cell = 1
    #: where points lie in their cells, see `make_points`
    point_offset = 0.0
    #: class losses for which points that are not valid are ordinary negatives (fact S20)
    unmasked_losses = ()
    #: detections are clipped to so many pixels less than the image on the right and below
    clip_margin = 0.0

    #: outputs that are boxes; the last ones are the detections'
    _box_names = ("boxes",)
    #: further outputs by point, name -> channels
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
        self.nms = check_nms(nms)
        self.soft_nms_sigma = soft_nms_sigma
        self.soft_nms_min_score = soft_nms_min_score
        self._part_metrics = {
            name: keras.metrics.Mean(name=name)
            for name in (*self.loss_names, "num_positives")
        }
        self._graphs = {}  # by the name of the method that they were traced from
        self._looked_at = set()  # methods whose first inputs have been
        self.build((None, None, None, 3))

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
        # Layers that were loaded from a file have been built already.
        if not self.neck.built:
            self.neck.build(features)
        if not self.head.built:
            self.head.build(self.neck.compute_output_shape(features))
        self.built = True

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
        """`(height, width)` in cells of every level for images of that many pixels."""
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def make_priors(self, level_shapes):
        """What predictions are relative to.

        Args:
            level_shapes: as of `level_shapes`.

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
        images = input_checks.find_images(inputs)
        features = self.neck(self.backbone(images, training=training))
        predictions = self.head(features)
        height, width = sizes_of(images)[1:3]
        priors = self.make_priors(self.level_shapes(height, width))
        return {**self.decode(priors, predictions), **priors}

    @property
    def loss(self):
        """None: what `compile` would take has no place, see `compute_loss`."""
        return None

    @loss.setter
    def loss(self, loss):
        # Set by Keras's `compile`. Were that overridden instead, Keras would not compile
        # a detector that it loads.
        if loss is not None:
            raise ValueError(
                "A detector brings its losses: leave `loss` out of `compile`. Another "
                "loss of the classes is the argument `class_loss` of the detector. "
                f"Received: loss={loss}"
            )

    def load_weights(self, filepath, *args, **kwargs):
        """As of `keras.Model`.

        Raises:
            ValueError: if they do not fit; another number of classes is named.
        """
        try:
            return super().load_weights(filepath, *args, **kwargs)
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
        """Number of classes that a `.weights.h5` file is of; None if it does not say."""
        import h5py

        try:
            with h5py.File(path, "r") as file:
                (size,) = file["head/class_predictor/conv/vars/1"].shape
        except (OSError, KeyError, ValueError):
            return None
        return size // self.anchors_per_cell

    def fit(self, x=None, y=None, *args, **kwargs):
        """As of `keras.Model`, with a look at the values of the batches.

        Args:
            x: batch dicts with `images` and what `compute_losses` takes as targets, or
                images; in any form that Keras takes.
            y: dict of targets, if `x` are images.
            *args, **kwargs: as of `keras.Model.fit`.

        Raises:
            ValueError: for what `input_checks` knows to be a mistake, with the remedy.
                `check_inputs = False` leaves out what takes time, a look at each batch.
        """
        # Several replicas split a dataset by its form, which a look would change.
        strategy = getattr(self, "distribute_strategy", None)
        is_split = strategy is not None and strategy.num_replicas_in_sync > 1
        if not self.check_inputs or is_split:
            return super().fit(x, y, *args, **kwargs)
        watch = input_checks.BatchWatch(self.num_classes)
        try:
            return super().fit(watch.watch(x, y), y, *args, **kwargs)
        except Exception:
            if watch.error is not None:  # that of tf.data hides it
                raise watch.error from None
            raise

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Sum of `compute_losses`; the parts become metrics.

        Raises:
            ValueError: for targets of another structure or shape.
        """
        targets = input_checks.find_targets(x, y)
        losses, num_positives = self._loss_parts(y_pred, targets)
        replicas = num_replicas()
        is_good = None if self.loss_watch is None else self.loss_watch(losses)
        # The parts of all replicas add up to the loss; Mean averages replicas.
        values = {name: value * replicas for name, value in losses.items()}
        for name, value in {**values, "num_positives": num_positives}.items():
            weight = None
            if is_good is not None:
                weight = ops.cast(is_good, "float32")
                value = ops.where(is_good, value, 0.0)
            self._part_metrics[name].update_state(value, weight)
        return sum(losses.values())

    def compute_losses(self, outputs, targets):
        """The weighted and normalised parts of the loss.

        Args:
            outputs: what calling the detector returned.
            targets: dict of `"boxes"` float32 `[B, M, 4]` in pixels of the network
                input, `"labels"` int32 `[B, M]` (-1 pads) and `"image_size"` `[B, 2]`,
                `(height, width)` of the images without padding.

        Returns:
            dict of float32 scalars. Under `tf.distribute` each replica gets its share:
            they add up to the loss of the global batch.

        Raises:
            ValueError: for targets of another structure or shape. Values are looked at
                in the first eager call.
        """
        targets = input_checks.find_targets(targets, None)
        values = [targets[name] for name in input_checks.TARGET_KEYS]
        if self._is_first_look("compute_losses", values):
            values = map(ops.convert_to_numpy, values)
            input_checks.check_target_values(*values, self.num_classes)
        return self._loss_parts(outputs, targets)[0]

    def _is_first_look(self, method, values):
        """Whether values can be looked at, and were not: it costs a wait for a GPU."""
        if not self.check_inputs or method in self._looked_at or not _is_eager(values):
            return False
        self._looked_at.add(method)
        return True

    def decode(self, priors, predictions):
        """Predictions by level to `[B, P, ...]` tensors; see `call`."""
        raise NotImplementedError

    def assign(self, outputs, targets):
        """Which point learns which box.

        Args:
            outputs, targets: as of `compute_losses`.

        Returns:
            An `Assignment`, that of the boxes which become detections.
        """
        return self.assigner(
            outputs["points"],
            outputs["strides"],
            targets["boxes"],
            targets["labels"],
            targets["image_size"],
        )

    def _loss_parts(self, outputs, targets):
        """`compute_losses` and the number of positives over all replicas."""
        raise NotImplementedError

    def _sum_class_loss(self, outputs, assignment, ious):
        """Sum of the class loss over the points of this replica.

        Args:
            outputs: what calling the detector returned.
            assignment: `Assignment`.
            ious: float32 `[B, P]`, the target of soft losses at the true class.
        """
        is_hard = getattr(self.class_loss, "hard_targets", False)
        quality = ops.cast(assignment.is_positive, "float32") if is_hard else ious
        one_hot = ops.one_hot(assignment.labels, self.num_classes, dtype="float32")
        losses = self.class_loss.call(
            one_hot * quality[..., None], outputs["class_logits"]
        )
        if not isinstance(self.class_loss, self.unmasked_losses):
            losses = losses * ops.cast(assignment.is_valid, "float32")
        return ops.sum(losses)

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
        if self._is_first_look("detect", [images]):
            pixels = ops.convert_to_numpy(input_checks.sample_pixels(images))
            input_checks.warn_of_unnormalized(pixels)
        return self._run(self._detect, images, image_size, scale, **overrides)

    def detect_augmented(self, views, **overrides):
        """Detections in images of which there are several views (fact S29).

        The candidates of all views enter one NMS; nothing is averaged.

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
        check_nms(overrides.get("nms", self.nms))
        return {**own, **overrides}

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
        """What becomes detections.

        Args:
            outputs: what calling the detector returned.

        Returns:
            Boxes float32 `[B, P, 4]`, class scores `[B, P, K]` in [0, 1], and the factor
            `[B, P]` that ranks beside them (centerness) or None.
        """
        boxes = outputs[self._box_names[-1]]
        scores = ops.sigmoid(outputs["class_logits"])
        if "centerness_logits" not in outputs:
            return boxes, scores, None
        return boxes, scores, ops.sigmoid(outputs["centerness_logits"][..., 0])

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
        """What enters NMS of all that was predicted.

        Args:
            boxes, scores, factors: as of `ranking`.
            canvas_size: `(height, width)` of the batch, with padding.
            image_size, scale: as of `detect`.
            flipped: as of `detect_augmented`.
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
        """NMS: detections, as of `detect`, from what `candidates` returned."""
        settings = self._settings(overrides)
        threshold = settings["score_threshold"]
        if "centerness_logits" in self._further_outputs:
            # It has been applied, to the scores before they were multiplied.
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
        """`method(*arguments, **overrides)` in the backend's fastest way."""
        if keras.backend.backend() == "tensorflow" and not overrides:
            return self._in_graph(method, *arguments)
        if keras.backend.backend() == "jax" and not overrides:
            return self._compiled(method, *arguments)
        return method(*arguments, **overrides)

    def _in_graph(self, method, *arguments):
        """`method(*arguments)` in one graph for all sizes, unless in a graph already.

        As fast as a graph for each size, which would be traced each time.
        """
        import tensorflow as tf

        if not tf.executing_eagerly():
            return method(*arguments)
        name = method.__name__
        if name not in self._graphs:
            # Batches, heights and widths vary; channels, sides and classes do not.
            shapes = [[None, *[None] * (len(x.shape) - 2)] for x in arguments]
            signature = [
                tf.TensorSpec([*shape, *x.shape[len(shape) :]], x.dtype)
                for shape, x in zip(shapes, arguments, strict=True)
            ]
            self._graphs[name] = tf.function(method, signature, autograph=False)
        return self._graphs[name](*arguments)

    def _compiled(self, method, *arguments):
        """`method(*arguments)` compiled by JAX for each size; op by op takes minutes.

        Images that are spread over several devices are detected on where they lie, and
        so is what is found; others on one device, whatever the weights are spread over.
        """
        import jax

        is_spread = _is_spread(arguments[0])
        name = (method.__name__, is_spread)
        if name not in self._graphs:

            def call(values, arguments):
                mapping = zip(self.variables, values, strict=True)
                with keras.StatelessScope(state_mapping=mapping):
                    return method(*arguments)

            if is_spread:
                # No device sends or waits for anything. Left to itself XLA gathers what
                # NMS sorts and picks from.
                sharding = arguments[0].sharding
                rows = jax.sharding.PartitionSpec(*sharding.spec[:1])
                call = jax.shard_map(
                    call,
                    mesh=sharding.mesh,
                    in_specs=(jax.sharding.PartitionSpec(), rows),
                    out_specs=rows,
                    check_vma=False,
                )
            self._graphs[name] = jax.jit(call)
        values = [variable.value for variable in self.variables]
        if not is_spread:
            values = [value.addressable_data(0) for value in values]
        return self._graphs[name](values, arguments)

    def predict_step(self, data, **kwargs):
        """`model.predict` gives detections; batch dicts bring their sizes along."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        if not isinstance(inputs, dict):
            return self.detect(inputs)
        return self.detect(
            inputs["images"], inputs.get("image_size"), inputs.get("scale")
        )

    def get_config(self):
        names = ("backbone", "neck", "head", "class_loss", *self.config_names)
        parts = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in names
        }
        settings = {name: getattr(self, name) for name in DETECTION_SETTINGS}
        return {**keras.Model.get_config(self), **parts, **settings}

    @classmethod
    def from_config(cls, config, custom_objects=None):
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
    """The first arguments of `DenseDetector.detect` as float32 tensors, checked."""
    images = ops.convert_to_tensor(images, dtype="float32")
    input_checks.check_images(images)
    if image_size is None:
        batch, height, width = sizes_of(images)[:3]
        size = ops.cast(ops.stack([height, width]), "float32")
        image_size = ops.broadcast_to(size, (batch, 2))
    image_size = ops.cast(image_size, "float32")
    scale = ops.ones_like(image_size) if scale is None else ops.cast(scale, "float32")
    return images, image_size, scale


def _is_eager(values):
    """Whether all values are known, and not those of a graph that is being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly() and not any(
            map(keras.utils.is_keras_tensor, values)
        )
    if backend == "jax":
        import jax

        # Of several processes each can read its own share only.
        return not any(
            isinstance(value, jax.core.Tracer)
            or not getattr(value, "is_fully_addressable", True)
            for value in values
        )
    return True


def _is_spread(images):
    """Whether each of several devices of JAX has a share of the images."""
    import jax

    # While JAX traces there are no devices yet.
    is_traced = isinstance(images, jax.core.Tracer)
    return not is_traced and not images.sharding.is_fully_replicated


def flatten_levels(maps, channels=None):
    """Joins `{level: [B, H, W, C]}` to `[B, P, C]`, levels in order, row by row.

    With `channels`, which divide C, each cell gives `C / channels` rows of so many.
    """
    flat = []
    for level in maps.values():
        shape = sizes_of(level)
        flat.append(ops.reshape(level, (shape[0], -1, channels or shape[-1])))
    return ops.concatenate(flat, axis=1)


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
    """Replicas that share this step under `tf.distribute`; 1 elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(value):
    """Sum of a scalar over all replicas of this step (JAX arrays are global already).

    It runs on every replica, whether it has objects or not: a sum that some skip would
    leave the others waiting.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or num_replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
