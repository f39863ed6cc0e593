"""Bilinear sampling and the convolutions built on it, without a compiled operator.

Every sampler treats what lies outside the map as zero: a point with
`-1 < y < H` and `-1 < x < W` is the weighted sum of those of its four neighbours that
exist, any other point is 0 (Dai et al., Deformable ConvNets, ICCV 2017, Eq. 3-4).
Coordinates are in cells of the map, row first.
"""

import itertools

from keras import ops

from vfnet_tf.ops.convolution import (
    centered_padding,
    merge_groups,
    project_channels,
)
from vfnet_tf.ops.kernels import runs_under_xla, tensorflow_kernels
from vfnet_tf.ops.shapes import as_pair, sizes_of

#: Signs of the distances (l, t, r, b) when they are added to a cell's place.
STAR_SIGNS = (-1.0, -1.0, 1.0, 1.0)


def _fused_sampling_is_available():
    """Whether TensorFlow's `crop_and_resize` may be used, which XLA does not have."""
    return tensorflow_kernels() and not runs_under_xla()


def _index_dtype():
    # Without XLA, TensorFlow computes with int32 on the host, also where there is a GPU,
    # which then waits for each sum.
    return "int64" if _fused_sampling_is_available() else "int32"


def _inside(coordinates, size):
    """Coordinates in (-1, size); all others, NaN too, become -1, where samples are 0.

    As in the official operator, those get no gradient. A NaN still reaches the loss
    through the boxes that it came from.
    """
    is_inside = ops.logical_and(coordinates > -1.0, coordinates < size)
    return ops.where(is_inside, coordinates, -1.0)


def _taps(coordinates, size, integral):
    """Two neighbours per coordinate: `[(index in the padded map, weight), ...]`."""
    shifted = coordinates + 1.0  # the padded map starts one cell earlier
    dtype = _index_dtype()
    if integral:
        return [(ops.cast(shifted, dtype), None)]
    low = ops.stop_gradient(ops.floor(shifted))
    fraction = shifted - low
    index = ops.cast(low, dtype)
    # Casts for JAX, where this is float if floatx is bfloat16.
    following = ops.minimum(index + 1, ops.cast(size + 1, dtype))
    return [(index, 1.0 - fraction), (ops.cast(following, dtype), fraction)]


class _Sampler:
    """Samples P small grids of points from a map; computes once what they share."""

    def __init__(self, features, images):
        # `features` are `[B, H, W, C]`, `images` the image of each grid, `[P, 1, 1]`.
        _, height, width, self._channels = sizes_of(features)
        self._sizes = height, width
        self._limits = ops.cast(height, "float32"), ops.cast(width, "float32")
        self._ends = self._limits[0] + 1.0, self._limits[1] + 1.0
        self._padded = ops.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
        self._images = images

    def inside(self, ys, xs):
        """Rows and columns, float32 of any shape, as `sample` takes them."""
        return _inside(ys, self._limits[0]), _inside(xs, self._limits[1])

    def sample(self, ys, xs, integral_y=False, integral_x=False):
        """The values at `(ys[p, i, 0], xs[p, 0, j])`.

        Args:
            ys: float32 `[P, h, 1]`, rows in cells, h in {1, 2}, each `inside`.
            xs: float32 `[P, 1, w]`, columns in cells, w in {1, 2}, each `inside`.
            integral_y: True promises whole-numbered `ys` that need no gradient; half
                of the work is then left out.
            integral_x: the same for `xs`.

        Returns:
            `[P, h, w, C]` of the dtype of the map. Gradients reach the map, `ys` and
            `xs`; at whole-numbered coordinates the one from the right-hand cell is
            used.
        """
        if _fused_sampling_is_available():
            return self._sample_fused(ys, xs, integral_y, integral_x)
        return self._sample_portable(ys, xs, integral_y, integral_x)

    def _grid_taps(self, ys, xs, integral_y, integral_x):
        """`taps[i][j]`: index in the flat padded map, weights of row and column or None."""
        height, width = self._sizes
        images, stride, size = (
            ops.cast(number, _index_dtype())
            for number in (self._images, width + 2, (height + 2) * (width + 2))
        )
        first = images * size
        columns = [(first + x, weight) for x, weight in _taps(xs, width, integral_x)]
        rows = [(y * stride, weight) for y, weight in _taps(ys, height, integral_y)]
        return [
            [(y + x, y_weight, x_weight) for x, x_weight in columns]
            for y, y_weight in rows
        ]

    def _sample_portable(self, *grid):
        """`sample` by gathering each neighbour."""
        flat = ops.reshape(self._padded, (-1, self._channels))
        result = None
        for index, *weights in itertools.chain(*self._grid_taps(*grid)):
            value = ops.take(flat, index, axis=0)
            weight = _product(weights)
            if weight is not None:
                value = value * ops.cast(ops.expand_dims(weight, -1), value.dtype)
            result = _add(result, value)
        return result

    def _sample_fused(self, ys, xs, integral_y, integral_x):
        """`sample` with TensorFlow's fused kernel in the forward pass.

        `crop_and_resize` with crops of 1 or 2 samples a side reads exactly the grid's
        points. Its own gradients are not used: on CPU that of the image adds from several
        threads without a lock, so that runs differ; that of the boxes is 0 at
        whole-numbered points, where a deformable convolution starts.
        """
        import tensorflow as tf

        @tf.custom_gradient
        def sample(padded, ys, xs):
            # First and last row and column, as fractions of the map's sides.
            y_share = (ys + 1.0) / self._ends[0]
            x_share = tf.reshape((xs + 1.0) / self._ends[1], (-1, xs.shape[2], 1))
            corners = tf.concat(
                [
                    share if share.shape[1] == 2 else tf.concat([share, share], axis=1)
                    for share in (y_share, x_share)
                ],
                axis=2,
            )
            # The kernel takes no bfloat16, and always returns float32.
            is_half = padded.dtype == tf.bfloat16
            crops = tf.image.crop_and_resize(
                tf.cast(padded, "float32") if is_half else padded,
                tf.reshape(corners, (-1, 4)),
                tf.reshape(self._images, (-1,)),
                (ys.shape[1], xs.shape[2]),
            )
            crops = tf.cast(crops, padded.dtype)

            def gradient(upstream):
                return self._gradients(
                    padded, upstream, self._grid_taps(ys, xs, integral_y, integral_x)
                )

            return crops, gradient

        return sample(self._padded, ys, xs)

    def _gradients(self, padded, upstream, taps):
        """Gradients of the padded map, of the rows and of the columns."""
        import tensorflow as tf

        flat = tf.reshape(padded, (-1, self._channels))
        cells = tf.shape(flat)[0]
        of_flat = of_ys = of_xs = None
        done = upstream
        for number, row in enumerate(taps):
            for other, (index, y_weight, x_weight) in enumerate(row):
                # One neighbour after the other, when `upstream` is there: a graph would
                # gather all in the forward pass, and keep them in memory.
                with tf.control_dependencies([done]):
                    neighbor = tf.gather(flat, index)
                share = tf.reduce_sum(tf.cast(upstream * neighbor, "float32"), axis=-1)
                # Of two weights the first is 1 - fraction, the second the fraction.
                if y_weight is not None:
                    part = share if x_weight is None else share * x_weight
                    of_ys = _add(of_ys, part if number else -part)
                if x_weight is not None:
                    part = share if y_weight is None else share * y_weight
                    of_xs = _add(of_xs, part if other else -part)
                weight = _product([y_weight, x_weight])
                weight = tf.cast(tf.expand_dims(weight, -1), upstream.dtype)
                part = tf.math.unsorted_segment_sum(upstream * weight, index, cells)
                of_flat = done = _add(of_flat, part)
        if of_ys is not None:
            of_ys = tf.reduce_sum(of_ys, axis=2, keepdims=True)
        if of_xs is not None:
            of_xs = tf.reduce_sum(of_xs, axis=1, keepdims=True)
        return tf.reshape(of_flat, tf.shape(padded)), of_ys, of_xs


def _add(total, part):
    """The sum of two. One operation for many summands would choose their order itself."""
    return part if total is None else total + part


def _product(weights):
    """The product of those that are not None, so that values are multiplied once."""
    product = None
    for weight in weights:
        if weight is not None:
            product = weight if product is None else product * weight
    return product


def _images(like):
    """The image's number of each of the P values of `[B, ...]`: int32 `[P, 1, 1]`."""
    numbers = ops.arange(sizes_of(like)[0], dtype="int32")
    numbers = ops.reshape(numbers, (-1, *[1] * (len(like.shape) - 1)))
    return ops.reshape(numbers + ops.zeros_like(like, dtype="int32"), (-1, 1, 1))


def sample_points(features, y, x):
    """Bilinear values of a map at points.

    Args:
        features: float `[B, H, W, C]`.
        y, x: float `[B, N]`, in cells.

    Returns:
        `[B, N, C]` of the dtype of `features`.
    """
    y, x = ops.cast(y, "float32"), ops.cast(x, "float32")
    sampler = _Sampler(features, _images(y))
    ys, xs = sampler.inside(ops.reshape(y, (-1, 1, 1)), ops.reshape(x, (-1, 1, 1)))
    values = sampler.sample(ys, xs)
    return ops.reshape(values, (*sizes_of(y), features.shape[-1]))


def cell_grid(height, width):
    """Coordinates of the cells of a map, row by row: y and x, float32 `[H * W]`."""
    y = ops.repeat(ops.arange(height, dtype="float32"), width)
    x = ops.tile(ops.arange(width, dtype="float32"), [height])
    return y, x


def star_conv(features, distances, kernel):
    """3x3 convolution whose taps are the nine points of a star (paper, Sec. 4.3).

    The taps of the cell (x, y) are the cell itself, the middles of the four sides and
    the four corners of its box `(x - l, y - t, x + r, y + b)`. Of the 36 neighbours
    that a general deformable convolution reads, 25 are enough: the middle of a side
    shares its row or its column with the cell.

    Args:
        features: float `[B, H, W, C]`.
        distances: float `[B, H, W, 4]`, `(l, t, r, b)` in cells of `features`.
        kernel: float `[3, 3, C, F]`, rows top to bottom, columns left to right.

    Returns:
        float `[B, H, W, F]`.
    """
    batch, height, width, channels = sizes_of(features)
    filters = kernel.shape[-1]
    y = ops.arange(height, dtype="float32")[:, None, None]
    x = ops.arange(width, dtype="float32")[:, None]
    signs = ops.convert_to_tensor(STAR_SIGNS, dtype="float32")
    signed = ops.cast(distances, "float32") * signs
    sampler = _Sampler(features, _images(signed[..., 0]))
    ys, xs = sampler.inside(y + signed[..., 1::2], x + signed[..., 0::2])
    # `broadcast_to` needs a known shape where JAX traces.
    zeros = ops.zeros_like(signed[..., :1])
    own_y = ops.reshape(y + zeros, (-1, 1, 1))
    own_x = ops.reshape(x + zeros, (-1, 1, 1))
    ys, xs = ops.reshape(ys, (-1, 2, 1)), ops.reshape(xs, (-1, 1, 2))
    samples = [
        (sampler.sample(ys, xs), (0, 2, 6, 8)),
        (sampler.sample(own_y, xs, integral_y=True), (3, 5)),
        (sampler.sample(ys, own_x, integral_x=True), (1, 7)),
        (features, (4,)),
    ]
    # The gradient of a split is one concatenation; that of each slice a whole kernel.
    taps = ops.split(ops.reshape(kernel, (9 * channels, filters)), 9, axis=0)
    total = None
    for values, numbers in samples:
        weights = ops.concatenate([taps[number] for number in numbers], axis=0)
        shape = (batch, height, width, len(numbers) * channels)
        total = _add(total, project_channels(ops.reshape(values, shape), weights))
    return total


def deform_conv(
    features, offsets, kernel, mask=None, strides=1, padding=None, dilation=1, groups=1
):
    """Deformable convolution, version 1 and, with a mask, version 2.

    Dai et al., ICCV 2017, Eq. 2; Zhu et al., CVPR 2019, Eq. 1.

    Args:
        features: float `[B, H, W, C]`.
        offsets: float `[B, Ho, Wo, D * kh * kw * 2]`, `(dy, dx)` in cells per tap, taps
            row by row; D deformable groups, the group is the outer index.
        kernel: float `[kh, kw, C / groups, F]`.
        mask: float `[B, Ho, Wo, D * kh * kw]` that multiplies each tap, or None.
        strides: int or pair, for rows and columns.
        padding: int or pair, cells above and on the left, also scalar tensors; None
            keeps the size at stride 1.
        dilation: int or pair.
        groups: int, groups of the convolution itself.

    Returns:
        float `[B, Ho, Wo, F]`.
    """
    kernel_height, kernel_width, _, filters = kernel.shape
    taps = kernel_height * kernel_width
    batch, _, _, channels = sizes_of(features)
    out_height, out_width = sizes_of(offsets)[1:3]
    strides, dilation = as_pair(strides), as_pair(dilation)
    padding = centered_padding(kernel, dilation) if padding is None else padding
    padding = [
        side if isinstance(side, int) else ops.cast(side, "float32")
        for side in as_pair(padding)
    ]
    deform_groups = offsets.shape[-1] // (2 * taps)
    y, x = cell_grid(out_height, out_width)
    tap_y, tap_x = cell_grid(kernel_height, kernel_width)
    base_y = (y * strides[0] - padding[0])[:, None] + tap_y * dilation[0]
    base_x = (x * strides[1] - padding[1])[:, None] + tap_x * dilation[1]
    offsets = ops.cast(offsets, "float32")
    offsets = ops.reshape(offsets, (batch, -1, deform_groups, taps, 2))
    if mask is not None:
        mask = ops.reshape(mask, (batch, -1, deform_groups, taps, 1))
    per_group = channels // deform_groups
    columns = []
    for group in range(deform_groups):
        part = features[..., group * per_group : (group + 1) * per_group]
        sampled = sample_points(
            part,
            ops.reshape(base_y + offsets[:, :, group, :, 0], (batch, -1)),
            ops.reshape(base_x + offsets[:, :, group, :, 1], (batch, -1)),
        )
        sampled = ops.reshape(sampled, (batch, -1, taps, per_group))
        if mask is not None:
            sampled = sampled * ops.cast(mask[:, :, group], sampled.dtype)
        columns.append(sampled)
    columns = columns[0] if deform_groups == 1 else ops.concatenate(columns, axis=-1)
    kernel, blocks = merge_groups(kernel, groups)
    # Each block has its channels of all taps.
    shape = (batch, out_height, out_width, taps * channels // blocks)
    columns = ops.reshape(columns, (batch, -1, taps, channels))
    outputs = [
        project_channels(
            ops.reshape(part, shape),
            ops.reshape(part_kernel, (-1, filters // blocks)),
        )
        for part, part_kernel in zip(
            ops.split(columns, blocks, axis=-1),
            ops.split(kernel, blocks, axis=-1),
            strict=True,
        )
    ]
    return outputs[0] if blocks == 1 else ops.concatenate(outputs, axis=-1)
