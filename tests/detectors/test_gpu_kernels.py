"""A GPU has a kernel for each operation of a training step and of a detection.

TensorFlow's wheel for Linux lists the kernels of GPUs on machines without one, too.
"""

import collections
import functools

import pytest

from tests.conftest import SMALL, build_small
from tests.contracts import on_tensorflow, with_policy
from vfnet_tf.backbones import Res2Net, ResNet
from vfnet_tf.detectors import VFNet, execution
from vfnet_tf.heads import VFNetHead
from vfnet_tf.losses import QualityFocalLoss
from vfnet_tf.necks import FPN, PAFPN
from vfnet_tf.training.nonfinite import NonFiniteAlarm
from vfnet_tf.training.optimizers import SGD, AdamW
from vfnet_tf.training.schedules import WarmupStepSchedule

pytestmark = on_tensorflow

#: What a GPU leaves to the host, and why. Nothing else may be without a GPU's kernel.
ON_HOST = {
    "training": {},
    "hard": {"CombinedNonMaxSuppression": "TensorFlow has no kernel of it for GPUs"},
    "soft_linear": {},
}

#: Operations that call Python, for which TensorFlow has kernels of GPUs.
PYTHON = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}

#: Of VFNet: operations that read in the host's memory what a GPU has computed from the
#: images or boxes, by the operations that computed it. int32 is of the host. The arrays
#: hold an element for a point, a box or an image, none for a channel.
CROSSINGS = {
    "training": {
        ("Cast", "GreaterEqual"),  # the rows of boxes, of which -1 are none
        ("GatherV2", "Reshape"),  # labels of the points
        ("SelectV2", "StridedSlice"),  # the same
        ("TopKV2", "ConcatV2"),  # the candidates of all levels
    },
    "hard": {
        ("ConcatV2", "CombinedNonMaxSuppression"),  # scores
        ("StridedSlice", "CombinedNonMaxSuppression"),  # boxes
        ("LogicalOr", "StatelessIf"),  # are any two scores equal?
        ("SelectV2", "Identity"),  # labels of the detections
        ("StatelessIf", "Identity"),  # number of the detections
    },
}

SHAPES = {"fixed": (2, 64, 96, 2), "open": (None,) * 4}
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def _with_backbone(backbone, neck=FPN, **head):
    return VFNet(backbone, neck(32), VFNetHead(3, 32, 1, **head))


#: Name -> function that builds a detector with operations which those of SMALL lack.
VARIANTS = {
    "star": lambda: _with_backbone(ResNet(18), refine=False),
    "quality focal loss": lambda: build_small("vfnet", class_loss=QualityFocalLoss()),
    "batch norm": lambda: _with_backbone(
        ResNet(18, norm="batch_norm", frozen_stages=-1)
    ),
    "deformable": lambda: _with_backbone(
        ResNet(18, deformable=(4,)), PAFPN, deformable_towers=True
    ),
    "ResNeXt": lambda: _with_backbone(ResNet(50, groups=32, width_per_group=4)),
    "deformable Res2Net": lambda: _with_backbone(Res2Net(50, deformable=(4,))),
}


@pytest.fixture(autouse=True)
def list_is_complete():
    if not any(kernel.device_type == "GPU" for kernel in kernels_of("Conv2D")):
        pytest.skip("this build of TensorFlow has no kernels for GPUs")


@pytest.fixture
def with_gpu(monkeypatch):
    """TensorFlow lists a GPU, so that traces take what is chosen for one."""
    import tensorflow as tf

    listed = tf.config.list_logical_devices

    def list_logical_devices(kind=None):
        gpu = tf.config.LogicalDevice("/device:GPU:0", "GPU")
        return [gpu] if kind == "GPU" else listed(kind)

    monkeypatch.setattr(tf.config, "list_logical_devices", list_logical_devices)


@functools.cache
def kernels_of(kind):
    from tensorflow.python.framework import kernels

    return tuple(kernels.get_registered_kernels_for_op(kind).kernel)


def gpu_kernel(node):
    """The kernel that a GPU has for a `NodeDef`, one for any device, or None."""

    def fits(constraint):
        value = node.attr[constraint.name]
        types = [value.type] if value.WhichOneof("value") == "type" else value.list.type
        return set(types) <= set(constraint.allowed_values.list.type)

    found = [
        kernel
        for kernel in kernels_of(node.op)
        if kernel.device_type in ("GPU", "DEFAULT")
        and all(map(fits, kernel.constraint))
    ]
    # Where both are there, a GPU takes its own.
    return max(found, key=lambda kernel: kernel.device_type == "GPU", default=None)


def nodes_of(graph):
    """All operations of a graph and of the functions that it calls, as `NodeDef`."""
    definition = graph.as_graph_def()
    functions = definition.library.function
    return [*definition.node, *(node for f in functions for node in f.node_def)]


def assert_a_gpu_runs(graph, on_host):
    kinds = {node.op for node in nodes_of(graph)}
    assert len(kinds) > 20 and not kinds & PYTHON
    missing = {node.op for node in nodes_of(graph) if gpu_kernel(node) is None}
    assert missing == set(on_host)


def compiled(build, policy, optimizer=None):
    """A detector whose steps do all that those of a run can do."""
    detector = with_policy(policy, build)
    detector.compile(
        optimizer
        or SGD(
            WarmupStepSchedule(0.1, 4, 0.5, boundaries=[7]),
            momentum=0.9,
            weight_decay=1e-4,
            summed_clipnorm=35.0,
            use_ema=True,
        )
    )
    detector.optimizer.build(detector.trainable_variables)
    return detector


def step_graph(detector, shapes):
    import tensorflow as tf

    batch, height, width, rows = SHAPES[shapes]
    batch = {
        "images": tf.TensorSpec((batch, height, width, 3)),
        "boxes": tf.TensorSpec((batch, rows, 4)),
        "labels": tf.TensorSpec((batch, rows), "int32"),
        "image_size": tf.TensorSpec((batch, 2)),
    }
    step = tf.function(detector.train_step, autograph=False)
    # A value that Python needs, as `.numpy()` does, would be an error here.
    return step.get_concrete_function((batch,)).graph


def detection_graph(detector, shapes):
    import tensorflow as tf

    batch, height, width, _ = SHAPES[shapes]
    inputs = [tf.TensorSpec((batch, height, width, 3))] + 2 * [
        tf.TensorSpec((batch, 2))
    ]
    detect = tf.function(detector._detect, autograph=False)
    return detect.get_concrete_function(*inputs).graph


@pytest.mark.parametrize(
    "kind", ["vfnet", "fcos", "retinanet", "foveabox", "reppoints"]
)
def test_a_gpu_runs_steps_and_detections(kind, with_gpu):
    detector = compiled(lambda: build_small(kind), "mixed_bfloat16")
    assert_a_gpu_runs(step_graph(detector, "open"), ON_HOST["training"])
    assert_a_gpu_runs(detection_graph(detector, "open"), ON_HOST["hard"])


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", [*SMALL, *VARIANTS])
def test_a_gpu_runs_each_detector_with_each_precision(name, shapes, policy, with_gpu):
    build = VARIANTS.get(name) or functools.partial(build_small, name)
    detector = compiled(build, policy)
    assert_a_gpu_runs(step_graph(detector, shapes), ON_HOST["training"])
    assert_a_gpu_runs(detection_graph(detector, shapes), ON_HOST["hard"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vfnet", "ResNeXt", "deformable"])
def test_a_gpu_runs_graphs_that_were_traced_without_one(name):
    build = VARIANTS.get(name) or functools.partial(build_small, name)
    graph = step_graph(compiled(build, "float32"), "open")
    assert_a_gpu_runs(graph, ON_HOST["training"])


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["soft_linear", "soft_gaussian"])
def test_a_gpu_runs_soft_nms(nms, with_gpu):
    graph = detection_graph(build_small("vfnet", nms=nms), "open")
    assert_a_gpu_runs(graph, ON_HOST["soft_linear"])


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_gpu_runs_what_else_a_step_can_do(policy, with_gpu, tmp_path):
    optimizer = AdamW(1e-3, weight_decay=0.01, gradient_accumulation_steps=2)
    detector = compiled(lambda: build_small("fcos"), policy, optimizer)
    assert_a_gpu_runs(step_graph(detector, "open"), ON_HOST["training"])
    detector = compiled(lambda: build_small("fcos"), policy)
    alarm = NonFiniteAlarm(tmp_path / "nonfinite.json", "skip", lambda step: [])
    alarm.set_model(detector)
    assert_a_gpu_runs(step_graph(detector, "open"), ON_HOST["training"])


def test_a_trace_leaves_no_mark_in_python(with_gpu, capsys, recwarn):
    detector = compiled(lambda: build_small("retinanet"), "float32")
    traces = []
    for _ in range(2):
        before = execution.state_of(detector)
        traces.append(
            collections.Counter(n.op for n in nodes_of(step_graph(detector, "open")))
        )
        is_same = execution._is_same(before, execution.state_of(detector))
    assert is_same and traces[0] == traces[1]
    assert capsys.readouterr() == ("", "") and not recwarn


def placed(operation):
    """Which inputs and outputs of an operation a GPU has in the host's memory."""
    node = operation.node_def  # read once: each read copies it
    kernel = gpu_kernel(node)

    def flags(arguments):
        for argument in arguments:
            number = 1
            if argument.number_attr:
                number = node.attr[argument.number_attr].i
            elif argument.type_list_attr:
                number = len(node.attr[argument.type_list_attr].list.type)
            on_host = kernel is None or argument.name in kernel.host_memory_arg
            yield from [on_host] * number

    definition = operation.op_def
    return [*flags(definition.input_arg)], [*flags(definition.output_arg)]


def crossings(graph):
    """(kind, kind) of operations between which data go from a GPU to the host.

    What depends on shapes and constants alone is left out: TensorFlow folds it, or has
    it on the host. An argument of int32 comes from the host.
    """
    found, on_host = set(), {}  # of the tensors that vary: are they on the host?
    for operation in graph.get_operations():
        if operation.type in ("Shape", "ShapeN", "Size", "ZerosLike", "OnesLike"):
            continue
        reads, writes = placed(operation)
        for value, reads_host in zip(operation.inputs, reads, strict=True):
            if reads_host and not on_host.get(value.name, True):
                found.add((value.op.type, operation.type))
        if any(value.name in on_host for value in operation.inputs):
            names = (value.name for value in operation.outputs)
            on_host.update(zip(names, writes, strict=True))
        elif operation.type in ("Placeholder", "ReadVariableOp"):
            value = operation.outputs[0]
            if value.dtype.name != "resource":
                on_host[value.name] = value.dtype.name == "int32"
    return found


@pytest.mark.parametrize("part", CROSSINGS)
def test_data_go_from_a_gpu_to_the_host_in_known_places_only(part, with_gpu):
    detector = compiled(lambda: build_small("vfnet"), "float32")
    make = step_graph if part == "training" else detection_graph
    assert crossings(make(detector, "fixed")) == CROSSINGS[part]
