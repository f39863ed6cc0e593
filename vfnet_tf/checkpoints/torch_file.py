"""Files of `torch.save` as numpy arrays, without PyTorch and without running pickle.

Both formats are read: the zip archive (PyTorch 1.6 and later) and the older stream of
pickles and storages. The unpickler here knows tensors, plain values and containers only.
Python's own unpickler, even a restricted one, allocates the sizes that a file claims (a
byte string of 2**40 bytes, a memo of 2**31 places) before it reads the values.
"""

import collections
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np

#: The first number of the older format, and the second, its version.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: Limits of the pickled part; a checkpoint with its optimizer needs 1 % of them.
_MAX_STEPS, _MAX_PICKLE_BYTES, _MAX_DEPTH = 1_000_000, 64 * 2**20, 100
#: Most entries of an archive; as an object an entry takes ten times its bytes.
_MAX_ENTRIES = 100_000

#: Kind of storage -> dtype in the file. bfloat16, which numpy lacks, is the upper half of
#: a float32 and is converted to float32.
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
# Calls that weights do not need: devices, and the log's curves (numpy arrays) in training
# checkpoints of mmdetection 3. None is called: an `Inert` takes the place of the result.
_INERT = (
    "torch.device",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *(f"{module}.getattr" for module in ("builtins", "__builtin__")),
)


def read_torch_file(path):
    """Reads a file of `torch.save`, bit for bit like `torch.load`.

    Args:
        path: of a file of either format, which must exist.

    Returns:
        The saved value: dicts, lists, tuples, sets, strings, bytes, numbers, and an
        array for each tensor or parameter, bfloat16 as float32. Arrays of one storage
        share memory. Writing into arrays does not change the file, which must stay in
        place while they live. `Inert` stands for devices, dtypes and logs; the
        `_metadata` of modules are left out.

    Raises:
        ValueError: if the file is damaged, of another format or beyond the limits, or
            if it needs a call that could run code: nothing of it is called. Memory is
            only allocated for bytes that the file has.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            if size == 0:
                raise ValueError("it is empty")
            # A private map: arrays can be written without changing the file.
            contents = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            read = _read_zip if contents[:4] == b"PK\3\4" else _read_stream
            value = read(contents, file)
            _check_nesting(value)
            return value
        except _NeedsCodeError as error:
            raise ValueError(
                "A checkpoint must hold tensors and plain values only, since anything "
                f"else can run code when it is read. Received: {path}, which needs "
                f"{error}: nothing was loaded or run. If you trust it, save its "
                "'state_dict' alone with the library that wrote it"
            ) from None
        except Exception as error:  # damaged bytes raise errors of a dozen classes
            # Not `repr`: that of a UnicodeDecodeError has all bytes of the text.
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(
                "The file must be a whole checkpoint of torch.save. Received: "
                f"{path} of {size} bytes, which is truncated or something else "
                f"({kind}{str(error)[:300]}). Fetch or save it again"
            ) from error


class Inert:
    """Stands for a value that weights do not need: a device, a dtype or a log."""


class _NeedsCodeError(Exception):
    """The file uses a name that it must not; the name is the message."""


class _Storage:
    """The numbers of tensors: `array` `[N]`, of a native dtype."""

    def __init__(self, array):
        self.array = array


class _Kind:
    """A kind of storage, by its dtype in the file."""

    def __init__(self, dtype):
        self.is_bfloat16 = dtype == "bfloat16"
        self.stored = np.dtype("uint16" if self.is_bfloat16 else dtype)
        self.native = np.dtype("float32" if self.is_bfloat16 else dtype)

    def fill(self, array, stored):
        """Writes stored numbers, of any byte order, into a native array."""
        if self.is_bfloat16:
            bits = array.view("uint32")
            bits[...] = stored
            bits <<= 16
        else:
            array[...] = stored


class _Callable:
    """A function of this module for a name that a file may call."""

    def __init__(self, call):
        self.call = call


def _rebuild_tensor(storage, offset, size, stride, *_):
    """Views of a storage: `offset` and `stride` in elements, as PyTorch counts them."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    if type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor has no size or stride")
    # Checked before they are part of a message: nested tuples can have a text of 2**60
    # characters.
    are_sizes = all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride))
    if not are_sizes or not len(size) == len(stride) <= 64:
        raise ValueError("a tensor has an offset, size or stride that none can have")
    array = storage.array
    if math.prod(size) == 0:
        return np.empty(size, array.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(array):
        raise ValueError(
            f"a tensor of size {size} and stride {stride} at {offset} leaves its "
            f"storage of {len(array)} elements"
        )
    strides = [step * array.itemsize for step in stride]
    return np.ndarray(size, array.dtype, array, offset * array.itemsize, strides)


def _rebuild_tensor_v2(storage, offset, size, stride, grad, hooks, metadata=None):
    if metadata:  # the bits of a lazy conjugate or negation
        raise ValueError("a tensor is stored to be conjugated or negated")
    return _rebuild_tensor(storage, offset, size, stride)


def _rebuild_parameter(data, *_):
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter has no tensor")
    return data


def _encode(text, encoding):
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes are written in another way than latin1")
    return text.encode("latin1")


def _new_set(values):
    return {_as_key(value) for value in values}


def _ordered_dict(pairs=()):
    # Python 2 passes the pairs here, Python 3 sets them later.
    return collections.OrderedDict((_as_key(key), value) for key, value in pairs)


def _counter(counts):
    if type(counts) is not dict:
        raise ValueError("a Counter is made of something else than a dict")
    return collections.Counter(counts)


#: Every name that a file may use: nothing else is looked up, nothing is imported.
_NAMES = {
    **{name: _Kind(dtype) for name, dtype in _STORAGES.items()},
    **dict.fromkeys((f"torch.{dtype}" for dtype in _STORAGES.values()), Inert()),
    **dict.fromkeys(_INERT, _Callable(lambda *args: Inert())),
    "torch._utils._rebuild_tensor": _Callable(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Callable(_rebuild_tensor_v2),
    "torch._utils._rebuild_parameter": _Callable(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Callable(_rebuild_parameter),
    "torch.Size": _Callable(tuple),
    "collections.OrderedDict": _Callable(_ordered_dict),
    # In the state of a step schedule.
    "collections.Counter": _Callable(_counter),
    "builtins.set": _Callable(_new_set),
    "__builtin__.set": _Callable(_new_set),
    # Bytes in pickles of protocol 2.
    "_codecs.encode": _Callable(_encode),
}

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_CONTAINERS = {
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_SET: set,
    pickle.EMPTY_TUPLE: tuple,
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_NUMBERS = {
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}


def _unicode(data):
    return str(data, "utf-8", "surrogatepass")


def _python_2_string(data):
    return str(data, "utf-8", "replace")


def _long(data):
    return int.from_bytes(data, "little", signed=True)


#: Values that consist of a length and that many bytes.
_SIZED = {
    pickle.SHORT_BINUNICODE: ("<B", _unicode),
    pickle.BINUNICODE: ("<I", _unicode),
    pickle.BINUNICODE8: ("<Q", _unicode),
    pickle.SHORT_BINSTRING: ("<B", _python_2_string),
    pickle.BINSTRING: ("<I", _python_2_string),
    pickle.SHORT_BINBYTES: ("<B", bytes),
    pickle.BINBYTES: ("<I", bytes),
    pickle.BINBYTES8: ("<Q", bytes),
    pickle.LONG1: ("<B", _long),
}


def _as_key(value):
    """Returns a value that is hashed quickly; nested tuples can take for ever."""
    parts = value if type(value) is tuple else (value,)
    for part in parts:
        is_plain = part is None or type(part) in (str, bytes, bool, int, float)
        if not is_plain or (type(part) is int and part.bit_length() > 64):
            raise ValueError(f"a key of a dict is of type {type(part).__name__}")
    return value


class _Unpickler:
    """Reads one pickle; afterwards `position` is the byte behind it.

    Args:
        contents: bytes or a map of the file.
        position: where the pickle begins.
        end: first byte behind its limit.
        load_storage: function from the elements of a persistent id to a `_Storage`.
    """

    def __init__(self, contents, position, end, load_storage=None):
        self.contents = contents
        self.position = position
        self.end = min(end, position + _MAX_PICKLE_BYTES)
        self.load_storage = load_storage
        self.stack, self.marked, self.memo = [], [], {}
        self.elements_to_copy, self.bytes_to_copy = _MAX_STEPS, _MAX_PICKLE_BYTES

    def load(self):
        """The pickled value."""
        for _ in range(_MAX_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.stack.pop()
            self.step(code)
        raise ValueError(f"its pickle has more than {_MAX_STEPS} steps")

    def advance(self, count):
        """Skips the next bytes, which must exist; returns the position of the first."""
        if count > self.end - self.position:
            raise ValueError(
                f"its pickle ends, or is beyond {_MAX_PICKLE_BYTES} bytes, within a value"
            )
        start, self.position = self.position, self.position + count
        return start

    def take(self, count):
        start = self.advance(count)
        return self.contents[start : self.position]

    def convert(self, count, convert):
        """A value of the next bytes, without a copy of them."""
        start = self.advance(count)
        with memoryview(self.contents) as whole, whole[start : self.position] as part:
            return convert(part)

    def number(self, layout):
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self):
        stop = self.contents.find(b"\n", self.position, self.end)
        line = self.take(stop - self.position if stop >= 0 else self.end)
        self.take(1)
        return line.decode()

    def items(self):
        """Removes the last mark and returns the values since then."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def step(self, code):
        stack = self.stack
        if code in _PUTS:
            self.memo[self.number(_PUTS[code])] = stack[-1]
        elif code == pickle.MEMOIZE:
            self.memo[len(self.memo)] = stack[-1]
        elif code in _GETS:
            stack.append(self.memo[self.number(_GETS[code])])
        elif code in _NUMBERS:
            stack.append(self.number(_NUMBERS[code]))
        elif code in _SIZED:
            layout, convert = _SIZED[code]
            stack.append(self.convert(self.number(layout), convert))
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _CONTAINERS:
            stack.append(_CONTAINERS[code]())
        elif code in _TUPLES:
            values = tuple(stack[-_TUPLES[code] :])
            if len(values) < _TUPLES[code]:
                raise ValueError("its pickle takes what is not there")
            stack[-len(values) :] = [values]
        elif code == pickle.MARK:
            self.marked.append(stack)
            self.stack = []
        elif code == pickle.TUPLE:
            values = tuple(self.items())
            self.stack.append(values)
        elif code in (pickle.APPEND, pickle.APPENDS):
            values = [stack.pop()] if code == pickle.APPEND else self.items()
            self.top(list).extend(values)
        elif code in (pickle.SETITEM, pickle.SETITEMS):
            values = self.items() if code == pickle.SETITEMS else self.pair()
            pairs = zip(values[::2], values[1::2], strict=True)
            self.top(dict).update((_as_key(key), value) for key, value in pairs)
        elif code == pickle.ADDITEMS:
            values = self.items()
            self.top(set).update(map(_as_key, values))
        elif code == pickle.GLOBAL:
            stack.append(_named(self.line(), self.line()))
        elif code == pickle.STACK_GLOBAL:
            name, module = stack.pop(), stack.pop()
            if type(name) is not str or type(module) is not str:
                raise ValueError("its pickle names what is no name")
            stack.append(_named(module, name))
        elif code in (pickle.REDUCE, pickle.NEWOBJ):
            arguments, called = stack.pop(), stack.pop()
            if type(called) is not _Callable or type(arguments) is not tuple:
                raise ValueError("its pickle calls what is not a name")
            self.charge(arguments)
            stack.append(called.call(*arguments))
        elif code == pickle.BUILD:
            stack.pop()  # the state of a log, or `_metadata` of a state dict
            self.top((Inert, collections.OrderedDict))
        elif code == pickle.BINPERSID:
            stack.append(self.storage(stack.pop()))
        elif code == pickle.PROTO:
            if not 2 <= self.number("<B") <= 5:
                raise ValueError("its pickle is of an unknown protocol")
        elif code == pickle.FRAME:
            self.take(8)  # its length, of use to readers of streams
        else:
            raise ValueError(
                f"its pickle has a step {code!r}, which torch.save has not"
            )

    def charge(self, arguments):
        """Limits copies: a call copies its arguments, and one may come a million times."""
        for argument in arguments:
            if type(argument) in (list, tuple, set, dict):
                self.elements_to_copy -= len(argument)
            elif type(argument) is str:
                self.bytes_to_copy -= len(argument)
        if min(self.elements_to_copy, self.bytes_to_copy) < 0:
            raise ValueError("its pickle copies one value over and over")

    def top(self, kind):
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"its pickle fills a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def pair(self):
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def storage(self, persistent_id):
        if self.load_storage is None or type(persistent_id) is not tuple:
            raise ValueError("its pickle has a storage where none can be")
        what, kind, key, _, count, *view = persistent_id
        if what != "storage" or type(kind) is not _Kind or type(key) is not str:
            raise ValueError("its pickle names a storage that is none")
        if type(count) is not int or count < 0:
            raise ValueError(f"a storage has {count} elements")
        return self.load_storage(kind, key, count, *view)


def _named(module, name):
    full = f"{module}.{name}"
    if full not in _NAMES:
        raise _NeedsCodeError(full[:200] if full.isprintable() else ascii(full)[:200])
    return _NAMES[full]


class _Storages:
    """The storages of a file by their keys; each is made once.

    Args:
        limit: int, most bytes of all together, those of the file.
        make: function of kind, key and count to the array.
    """

    def __init__(self, limit, make):
        self.left, self.make = limit, make
        self.found = {}

    def load(self, kind, key, count):
        if key not in self.found:
            self.left -= count * kind.stored.itemsize
            if self.left < 0:
                raise ValueError("its storages are larger than the file")
            self.found[key] = kind, _Storage(self.make(kind, key, count))
        known, storage = self.found[key]
        if known is not kind or len(storage.array) != count:
            raise ValueError(f"storage {key} is said to be of two kinds or sizes")
        return storage


def _read_zip(contents, file):
    """The archive: `NAME/data.pkl` and a stored entry `NAME/data/KEY` per storage."""
    found = -1
    for _ in range(_MAX_ENTRIES):
        found = contents.find(b"PK\1\2", found + 1)
        if found < 0:
            break
    else:
        raise ValueError(f"an archive of more than {_MAX_ENTRIES} entries")
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError("two of its entries have one name")
    names = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
    if len(names) != 1:
        raise ValueError("a zip archive without one data.pkl in its folder")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise ValueError("a TorchScript archive: save the module's state_dict instead")
    order = b"little"
    if f"{folder}byteorder" in entries:
        start, end = _locate(contents, entries[f"{folder}byteorder"])
        order = contents[start : min(end, start + 9)]
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order}")

    def make(kind, key, count):
        name = f"{folder}data/{key}"
        if name not in entries:
            raise ValueError(f"storage {key} is missing")
        start, end = _locate(contents, entries[name])
        if end - start != count * kind.stored.itemsize:
            raise ValueError(f"storage {key} has {end - start} bytes")
        return _view(contents, kind, count, start, order == b"big")

    storages = _Storages(len(contents), make)
    start, end = _locate(contents, entries[names[0]])
    return _Unpickler(contents, start, end, storages.load).load()


def _locate(contents, info):
    """(start, end) of an entry's bytes, which are checked against its checksum."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            f"entry {info.filename} is compressed or encrypted, as torch.save leaves none"
        )
    header = contents[info.header_offset : info.header_offset + 30]
    signature, *_, name_length, extra_length = struct.unpack("<4s22x2H", header)
    start = info.header_offset + 30 + name_length + extra_length
    end = start + info.file_size
    if signature != b"PK\3\4" or end > len(contents):
        raise ValueError(f"entry {info.filename} is cut off")
    with memoryview(contents) as view, view[start:end] as part:
        if zlib.crc32(part) != info.CRC:
            raise ValueError(
                f"the bytes of entry {info.filename} do not fit its checksum, or none was "
                "written: torch.serialization.set_crc32_options(True)"
            )
    return start, end


def _view(contents, kind, count, start, is_big_endian=False):
    """Numbers of the file: a view of the map if their dtype is native, else a copy."""
    if count == 0:
        return np.empty(0, kind.native)
    dtype = kind.stored.newbyteorder(">" if is_big_endian else "<")
    stored = np.frombuffer(contents, dtype, count, start)
    if stored.dtype == kind.native and stored.flags.aligned:
        return stored
    array = np.empty(count, kind.native)
    kind.fill(array, stored)
    return array


def _read_stream(contents, file):
    """The older format: five pickles, then the storages that the last one lists."""
    size = len(contents)
    position, kinds = 0, {}

    def load(load_storage=None):
        nonlocal position
        unpickler = _Unpickler(contents, position, size, load_storage)
        value = unpickler.load()
        position = unpickler.position
        return value

    def make(kind, key, count):
        kinds[key] = kind
        return np.empty(count, kind.native)

    storages = _Storages(size, make)

    def load_storage(kind, key, count, view=None):
        storage = storages.load(kind, key, count)
        if view is None:
            return storage
        # Until 2018 a storage could be a part of another one.
        _, offset, length = view
        if not (0 <= offset <= count and 0 <= length <= count - offset):
            raise ValueError(f"a part of storage {key} leaves it")
        return _Storage(storage.array[offset : offset + length])

    if contents[:1] != b"\x80" or load() != _MAGIC or load() != _PROTOCOL:
        raise ValueError("it begins like no file of torch.save")
    load()  # byte order and sizes of the machine; the storages are little-endian on all
    value = load(load_storage)
    keys = load()
    is_list = type(keys) is list and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(storages.found):
        raise ValueError("its list of storages is not the one of its tensors")
    for key in keys:
        kind, array = kinds[key], storages.found[key][1].array
        count = int.from_bytes(contents[position : position + 8], "little")
        position += 8
        end = position + count * kind.stored.itemsize
        if count != len(array) or end > size:
            raise ValueError(f"storage {key} is cut off")
        if count:
            dtype = kind.stored.newbyteorder("<")
            kind.fill(array, np.frombuffer(contents, dtype, count, position))
        position = end
    return value


def _check_nesting(root):
    """Raises a ValueError for containers nested too deeply or in themselves."""
    depth, path = {}, []  # of finished containers; the way to the present one
    pending, open_ids = [root], set()
    while pending:
        value = pending[-1]
        is_container = isinstance(value, dict | list | tuple)
        if not is_container or id(value) in depth:
            pending.pop()
            continue
        children = value.values() if isinstance(value, dict) else value
        inner = [c for c in children if isinstance(c, dict | list | tuple)]
        if path and path[-1] is value:
            depth[id(value)] = 1 + max((depth[id(c)] for c in inner), default=0)
            if depth[id(value)] > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} times")
            open_ids.discard(id(path.pop()))
            pending.pop()
            continue
        path.append(value)
        open_ids.add(id(value))
        if any(id(c) in open_ids for c in inner):
            raise ValueError("a container holds itself")
        pending.extend(c for c in inner if id(c) not in depth)
