"""Files made to run something, to fill the memory or to take forever; each with what the refusal names."""

import pickle
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.pytorch.torch_files import legacy_of, pickled, zip_entries, zip_of

FUNCTIONS = (
    "posix.system os.system nt.system subprocess.Popen subprocess.check_output builtins.eval builtins.exec "
    "__builtin__.eval builtins.open builtins.compile builtins.getattr builtins.__import__ importlib.import_module "
    "runpy.run_path webbrowser.open pathlib.Path operator.attrgetter functools.partial types.CodeType pickle.loads "
    "torch.load torch.hub.load torch.serialization.load torch._utils._rebuild_tensor_v2.__globals__ "
    "torch.jit.unsupported_tensor_ops.execWrapper numpy.load numpy._core.multiarray._reconstruct "
    "numpy.testing._private.utils.runstring collections.OrderedDict.fromkeys argparse.Namespace.__init__"
)
ORDERED, KNOWN = b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n"
HUGE = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def calls(canary: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, instructions that run something in Python's unpickler, what the refusal says)."""
    argument = text(f"touch {canary}")
    for name in FUNCTIONS.split():
        module, _, function = name.rpartition(".")
        named = f"{module}\n{function}\n".encode()
        call = b"c" + named + argument + b"\x85R."
        yield f"global {name}", b"\x80\x02" + call, name
        yield f"stack {name}", b"\x80\x04" + text(module) + text(function) + b"\x93" + argument + b"\x85R.", name
        yield f"in a dict {name}", b"\x80\x02}" + text("model") + call[:-1] + b"s.", name
        yield f"only named {name}", b"\x80\x02c" + named + b".", name
        yield f"text protocol {name}", b"(S'" + canary.encode() + b"'\ni" + named + b".", "STRING"
        yield f"instance {name}", b"\x80\x02(" + argument + b"i" + named + b".", "INST"
        yield f"object {name}", b"\x80\x02(c" + named + argument + b"o.", name
        yield f"new object {name}", b"\x80\x02c" + named + argument + b"\x85\x81.", name
    for index, (data, message) in enumerate(
        (
            (b"\x82\x01.", "EXT1"),
            (b"\x83\x01\x00.", "EXT2"),
            (b"\x84\x01\x00\x00\x00.", "EXT4"),
            (b"Px\n.", "PERSID"),
            (b"(" + text("module") + text(canary) + b"NNNtQ.", "describes a storage in an unknown way"),
            (b"cos\nsystem\nQ.", "os.system"),
            (b"]}" + text("__class__") + text(canary) + b"sb.", "sets the state of a list"),
            (KNOWN + b"}" + text("__defaults__") + b")sb.", "sets the state of a function"),
            (KNOWN + b"N}" + text("__defaults__") + b")s\x86b.", "sets the state of a function"),
            (b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\x03" + text(">") + b"NNNtb.", "sets the state of a"),
            (b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R.", "not one of a plain number"),
            (b"cnumpy\ndtype\n" + text("f8,(9999999,)f8") + b"\x89\x88\x87R.", "not one of a plain number"),
            (text("os.system") + text(canary) + b"\x85R.", "'str' object is not callable"),
            (b"ctorch\nFloatStorage\n)R.", "object is not callable"),
            (KNOWN + b"]R.", "cannot be read"),
            (KNOWN + b"(" + text("a") * 6 + b"tR.", "describes a tensor in an unknown way"),
            (b"c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R.", "encodes text in an unknown way"),
            (KNOWN + b".", "holds a function"),
            (b"\x97.", "NEXT_BUFFER"),
        )
    ):
        yield f"call {index}", b"\x80\x05" + data, message


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, pickle that asks for memory or time, what the refusal says)."""
    doubled = b"".join(b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(40))
    sharing = b"".join((b")" if i == 0 else b"h%c" % (i - 1)) + b"\x85" * 50 + b"q%c" % i for i in range(5))
    colliding = b"".join(b"\x8a\x0d" + ((2**61 - 1) * (k + 2**40)).to_bytes(13, "little") + b"N" for k in range(20_000))
    doubled_tuples = b"q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(45))
    nested, key, cut = "nested deeper than 64", "a key of a dict is a", "cannot be read"
    for name, data, message in (
        ("doubled lists", b"]q\x00" + doubled + b".", nested),
        ("doubled tuples", b")" + doubled_tuples + b".", nested),
        ("tens", b")q\x00" + b"".join(b"(" + b"h%c" % i * 10 + b"tq%c" % (i + 1) for i in range(20)) + b".", nested),
        ("deep by sharing", b"(" + sharing + b"t.", nested),
        ("deep encoding", b"c_codecs\nencode\n" + text("a") + b")" + b"\x85" * 300_000 + b"\x86R.", "encodes text"),
        ("doubled name", text("a") + b")" + doubled_tuples + b"\x93.", "names a tuple"),
        ("marks", b"(" * 400_000 + b".", cut),
        ("cycle", b"]q\x00h\x00a.", nested),
        ("cycle in a dict", b"}q\x00" + text("a") + b"h\x00s.", nested),
        ("deep lists", b"]" * 60_000 + b"a" * 59_999 + b".", nested),
        ("deep tuples", b")" + b"\x85" * 60_000 + b".", nested),
        ("deep dicts", b"}N" * 60_000 + b"}" + b"s" * 60_000 + b".", nested),
        ("deep marks", b"(" * 60_000 + b"t" * 60_000 + b".", nested),
        ("deep key", b"})" + b"\x85" * 60_000 + b"Ns.", key),
        ("many sets", b"\x8f" * 300_000 + b".", "holds a list"),
        ("many dicts", b"(" + b"}" * 300_000 + b"t.", "more than 250000"),
        ("colliding keys", b"}(" + colliding + b"u.", key),
        ("key a list", b"}]Ns.", key),
        ("long text", b"X\xff\xff\xff\x7fab.", cut),
        ("longer text", b"\x8d" + b"\xff" * 7 + b"\x7fab.", "in a unicodestring8"),
        ("long bytes", b"B\xff\xff\xff\xffab.", cut),
        ("longer bytes", b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00ab.", "in a bytes8"),
        ("long bytearray", b"\x96\x00\x00\x00\x00\x00\x01\x00\x00ab.", "in a bytearray8"),
        ("frame", b"\x95" + b"\xff" * 8 + b"X\xff\xff\xff\xff.", cut),
        ("frame, shorter", b"\x95" + b"\x00" * 5 + b"\x01\x00\x00N.", ""),
        ("long number", b"\x8b\xff\xff\xff\x7f\x01.", "read long4"),
        ("decimal number", b"L" + b"9" * 100_000 + b"L\n.", "4300 digits"),
        ("huge memo", b"Nr\xff\xff\xff\xff.", "holds a NoneType"),
        ("huge memo, text", b"Np99999999999\n.", "PUT"),
        ("unknown memo", b"j\xff\xff\xff\x7f.", cut),
        ("copies", b"(" + b"2" * 1000 + b"t.", "DUP"),
        ("empty", b"", cut),
        ("no end", b"N", cut),
        ("pops", b"N0.", "POP"),
        ("no mark", b"Nt.", cut),
        ("nothing to end", b".", cut),
        ("odd items", b"}(Nu.", cut),
        ("item of a list", b"]K\x00Ns.", "sets an item"),
        ("append to text", text("a") + b"Na.", "appends to a str"),
    ):
        yield name, b"\x80\x04" + data, message


def tensor(numel: bytes, shape: bytes, strides: bytes, count: int = 1, offset: bytes = b"K\x00") -> bytes:
    """Returns a pickle of tensors over one storage of 3 numbers."""
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + numel + b"tQ"
    return b"\x80\x02](" + (KNOWN + storage + offset + shape + strides + b"\x89" + ORDERED + b"tR") * count + b"e."


def tensors() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, pickle of tensors that lie outside the file or are larger than it, what the refusal says)."""
    wide = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    one, outside, large = tensor(b"K\x03", b"K\x03\x85", b"K\x01\x85"), "does not lie within", "times as large"
    wrapped = b"\x8a\x08" + (1 << 60).to_bytes(8, "little")  # times 4 bytes times 4 steps it is 0 in 64 bits
    unknown = "describes a tensor in an unknown way"
    forged = one.replace(b"K\x00K\x03\x85", b"K\x00" + one[4:-2] + b"\x85")  # a tensor as the length of another one
    yield from (
        ("metadata", one.replace(ORDERED, ORDERED + b"}" + text("neg") + b"\x88s"), unknown),
        ("length a tensor", forged, unknown),
        ("offset", tensor(b"K\x03", b"K\x02\x85", b"K\x01\x85", offset=b"K\x02"), outside),
        ("offset, negative", tensor(b"K\x03", b"K\x02\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff"), outside),
        ("stride, negative", tensor(b"K\x03", b"K\x02\x85", b"J\xff\xff\xff\xff\x85", offset=b"K\x02"), outside),
        ("stride", tensor(b"K\x03", b"K\x02\x85", HUGE + b"\x85"), outside),
        ("stride that wraps", tensor(b"K\x03", b"K\x05\x85", wrapped + b"\x85"), outside),
        ("no stride", tensor(b"K\x03", b"K\x02\x85", b")"), "cannot be read"),
        ("empty, huge", tensor(b"K\x00", b"K\x00" + HUGE + b"\x86", b"K\x00K\x00\x86"), "expected 0 x float32"),
        ("expanded", tensor(b"K\x03", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"), large),
        ("expanded twice", tensor(b"K\x03", b"J\x00\x00\x00\x7fK\x03\x86", b"K\x00K\x01\x86"), large),
        ("expanded, many", tensor(b"K\x03", b"J\x00\x00\x01\x00\x85", b"K\x00\x85", 100), large),
        ("beyond 64 bits", tensor(b"K\x03", HUGE + b"\x85", b"K\x00\x85"), "cannot be read"),
        ("product", tensor(b"K\x03", b"(" + b"J\xff\xff\xff\x7f" * 3 + b"t", b"(" + b"K\x00" * 3 + b"t"), "cannot be"),
        ("255 bytes", tensor(b"K\x03", wide + b"\x85", wide + b"\x85"), outside),
        ("dimensions", tensor(b"K\x03", b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), "cannot be read"),
        ("storage", tensor(HUGE, b"K\x01\x85", b"K\x01\x85"), "x float32"),
        ("storage, negative", tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), "storage in an unknown way"),
        ("storage, other", tensor(b"M\x00\x10", b"M\x00\x10\x85", b"K\x01\x85"), "4096 x float32"),
    )


def archives() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, zip file that unpacks to more than it is or describes itself wrongly, what the refusal says)."""
    entries = zip_entries(*pickled({"a": np.arange(1000.0)}))
    zeros = {**entries, "model.pth/data/1": bytes(50 << 20)}
    for name, method in (("deflated", zipfile.ZIP_DEFLATED), ("bzip2", zipfile.ZIP_BZIP2)):
        yield name, zip_of(zeros, compression=method, descriptors=False), "is compressed"
    yield "outside", zip_of({**entries, "../x": b"x"}), "a zip archive that torch.save did not write"
    good = zip_of(entries, descriptors=False)
    at = good.rindex(b"PK\x01\x02", 0, good.rindex(b"model.pth/data/0"))
    for name, offset, form, number in (
        ("packed size", 20, "<L", 0x7FFFFFFF),
        ("size", 24, "<L", 0x7FFFFFFF),
        ("encrypted", 8, "<H", 1),
        ("offset of another", 42, "<L", 0),
        ("offset beyond", 42, "<L", 0x7FFFFFFF),
    ):
        changed = bytearray(good)
        struct.pack_into(form, changed, at + offset, number)
        yield name, bytes(changed), ""
    changed = bytearray(good)
    struct.pack_into("<LL", changed, at + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    yield "both sizes", bytes(changed), ""


def files(canary: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, content, what the refusal says) of every malicious file, pickles in both formats."""
    storage = np.zeros(3, np.float32)
    for name, data, message in (*calls(canary), *bombs(), *tensors()):
        yield f"zip {name}", zip_of(zip_entries(data, [storage])), message
        old = data.replace(b"tQ" + b"K\x00", b"NtQK\x00")
        yield f"legacy {name}", legacy_of(old, [storage] if old != data else []), "" if old != data else message
    for name, content, message in archives():
        yield f"archive {name}", content, message
