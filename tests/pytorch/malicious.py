"""Files made to run something, to fill the memory or to take forever; each with what the refusal names."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

STORAGE = bytes(range(12))  # of 3 numbers of float32
FUNCTIONS = (
    "posix.system os.system subprocess.Popen builtins.eval builtins.exec __builtin__.eval builtins.getattr "
    "builtins.__import__ importlib.import_module runpy.run_path webbrowser.open operator.attrgetter functools.partial "
    "types.CodeType pickle.loads torch.load torch.hub.load torch._utils._rebuild_tensor_v2.__globals__ "
    "torch.jit.unsupported_tensor_ops.execWrapper numpy.load numpy._core.multiarray._reconstruct "
    "numpy.testing._private.utils.runstring collections.OrderedDict.fromkeys argparse.Namespace.__init__"
)
ORDERED, KNOWN = b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n"
HUGE = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
INSTRUCTION, CUT, NO_NETWORK = "uses the instruction", "cannot be read", "expected a dict with a state dict"


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip file with these entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def zip_file(data: bytes) -> bytes:
    """Returns a checkpoint in the zip format with this pickle and one storage."""
    return zip_of({"model/data.pkl": data, "model/data/0": STORAGE})


def legacy_file(data: bytes, keys: tuple[str, ...] = (), little_endian: bool = True) -> bytes:
    """Returns a checkpoint in the older format with this pickle and a storage for every key."""
    system = {"protocol_version": 1001, "little_endian": little_endian}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + data + pickle.dumps(list(keys), 2) + (struct.pack("<q", 3) + STORAGE) * len(keys)


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
        yield f"instance {name}", b"\x80\x02(" + argument + b"i" + named + b".", INSTRUCTION
        yield f"object {name}", b"\x80\x02(c" + named + argument + b"o.", name
        yield f"new object {name}", b"\x80\x02c" + named + argument + b"\x85\x81.", name
    for index, (data, message) in enumerate(
        (
            (b"\x82\x01.", INSTRUCTION),  # an extension of copyreg
            (b"Px\n.", INSTRUCTION),
            (b"(S'a'\nios\nsystem\n.", INSTRUCTION),
            (b"\x97.", INSTRUCTION),
            (b"(" + text("module") + text(canary) + b"NNNtQ.", "describes a storage in an unknown way"),
            (b"cos\nsystem\nQ.", "os.system"),
            (b"]}" + text("__class__") + text(canary) + b"sb.", NO_NETWORK),
            (KNOWN + b"N}" + text("__defaults__") + b")s\x86b.", NO_NETWORK),
            (b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\x03" + text(">") + b"NNNtb.", "byte order 'big'"),
            (b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R.", "not one of a plain number"),
            (b"cnumpy\ndtype\n" + text("f8,(9999999,)f8") + b"\x89\x88\x87R.", "not one of a plain number"),
            (text("os.system") + text(canary) + b"\x85R.", "'str' object is not callable"),
            (b"ctorch\nFloatStorage\n)R.", "object is not callable"),
            (KNOWN + b"]R.", "calls a function in an unknown way"),
            (KNOWN + b"(" + text("a") * 6 + b"tR.", "describes a tensor in an unknown way"),
            (b"c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R.", "encodes text in an unknown way"),
        )
    ):
        yield f"call {index}", b"\x80\x05" + data, message


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, pickle that asks for memory or time, what the refusal says)."""
    doubled = b"".join(b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(40))
    colliding = b"".join(b"\x8a\x0d" + ((2**61 - 1) * (k + 2**40)).to_bytes(13, "little") + b"N" for k in range(20_000))
    tuples = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(45))
    key = "a key of a dict is a"
    for name, data, message in (
        ("doubled lists", b"]q\x00" + doubled + b".", NO_NETWORK),
        ("doubled tuples", tuples + b".", NO_NETWORK),
        ("doubled tuples, key", b"}" + tuples + b"Ns.", key),
        ("doubled tuples, name", text("a") + tuples + b"\x93.", CUT),
        ("deep encoding", b"c_codecs\nencode\n" + text("a") + b")" + b"\x85" * 300_000 + b"\x86R.", "encodes text"),
        ("marks", b"(" * 400_000 + b".", CUT),
        ("cycle", b"]q\x00h\x00a.", NO_NETWORK),
        ("cycle in a dict", b"}q\x00" + text("a") + b"h\x00s.", "no state dict"),
        ("cycle as an epoch", b"}" + text("epoch") + b"]q\x00h\x00as.", "no state dict"),
        ("deep lists", b"]" * 60_000 + b"a" * 59_999 + b".", NO_NETWORK),
        ("deep tuples", b")" + b"\x85" * 60_000 + b".", NO_NETWORK),
        ("deep dicts", b"}N" * 60_000 + b"}" + b"s" * 60_000 + b".", "no state dict"),
        ("deep key", b"})" + b"\x85" * 60_000 + b"Ns.", key),
        ("many dicts", b"(" + b"}" * 300_000 + b"t.", NO_NETWORK),
        ("colliding keys", b"}(" + colliding + b"u.", key),
        ("key a list", b"}]Ns.", key),
        ("long text", b"X\xff\xff\xff\x7fab.", CUT),
        ("longer text", b"\x8d" + b"\xff" * 7 + b"\x7fab.", INSTRUCTION),
        ("long bytes", b"B\xff\xff\xff\xffab.", CUT),
        ("long bytearray", b"\x96\x00\x00\x00\x00\x00\x01\x00\x00ab.", INSTRUCTION),
        ("frame", b"\x95" + b"\xff" * 8 + b"X\xff\xff\xff\xff.", CUT),
        ("frame, shorter", b"\x95" + b"\x00" * 5 + b"\x01\x00\x00N.", ""),
        ("long number", b"\x8b\xff\xff\xff\x7f\x01.", INSTRUCTION),
        ("decimal number", b"L" + b"9" * 100_000 + b"L\n.", INSTRUCTION),
        ("huge memo", b"Nr\xff\xff\xff\xff.", NO_NETWORK),
        ("unknown memo", b"j\xff\xff\xff\x7f.", CUT),
        ("copies", b"(" + b"2" * 1000 + b"t.", INSTRUCTION),
        ("no end", b"N", CUT),
        ("no mark", b"Nt.", CUT),
        ("odd items", b"}(Nu.", CUT),
        ("item of a list", b"]K\x00Ns.", CUT),
        ("append to text", text("a") + b"Na.", CUT),
    ):
        yield name, b"\x80\x04" + data, message


def tensor(numel: bytes, shape: bytes, strides: bytes, count: int = 1, offset: bytes = b"K\x00") -> bytes:
    """Returns a pickle of a state dict of tensors over one storage of 3 numbers."""
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + numel + b"tQ"
    one = KNOWN + storage + offset + shape + strides + b"\x89" + ORDERED + b"tR"
    return b"\x80\x02}(" + b"".join(text(f"{index}") + one for index in range(count)) + b"u."


def tensors() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, pickle of tensors that lie outside the file or are larger than it, what the refusal says)."""
    wide = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    one, outside, large = tensor(b"K\x03", b"K\x03\x85", b"K\x01\x85"), "does not lie within", "times as large"
    wrapped = b"\x8a\x08" + (1 << 60).to_bytes(8, "little")  # times 4 bytes times 4 steps it is 0 in 64 bits
    unknown = "describes a tensor in an unknown way"
    expanded = tensor(b"K\x03", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85")
    value = one[one.index(KNOWN) : -2]
    yield from (
        ("metadata", one.replace(ORDERED, ORDERED + b"}" + text("neg") + b"\x88s"), unknown),
        ("length a tensor", one.replace(b"K\x00K\x03\x85", b"K\x00" + value + b"\x85"), unknown),
        ("arguments a tensor", b"\x80\x02" + KNOWN + expanded[expanded.index(KNOWN) : -2] + b"R.", "in an unknown way"),
        ("offset", tensor(b"K\x03", b"K\x02\x85", b"K\x01\x85", offset=b"K\x02"), outside),
        ("offset, negative", tensor(b"K\x03", b"K\x02\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff"), outside),
        ("stride, negative", tensor(b"K\x03", b"K\x02\x85", b"J\xff\xff\xff\xff\x85", offset=b"K\x02"), outside),
        ("stride", tensor(b"K\x03", b"K\x02\x85", HUGE + b"\x85"), outside),
        ("stride that wraps", tensor(b"K\x03", b"K\x05\x85", wrapped + b"\x85"), outside),
        ("no stride", tensor(b"K\x03", b"K\x02\x85", b")"), CUT),
        ("empty, huge", tensor(b"K\x00", b"K\x00" + HUGE + b"\x86", b"K\x00K\x00\x86"), "expected 0 x float32"),
        ("expanded", expanded, large),
        ("expanded, many", tensor(b"K\x03", b"J\x00\x00\x01\x00\x85", b"K\x00\x85", 100), large),
        ("beyond 64 bits", tensor(b"K\x03", HUGE + b"\x85", b"K\x00\x85"), CUT),
        ("product", tensor(b"K\x03", b"(" + b"J\xff\xff\xff\x7f" * 3 + b"t", b"(" + b"K\x00" * 3 + b"t"), CUT),
        ("255 bytes", tensor(b"K\x03", wide + b"\x85", wide + b"\x85"), outside),
        ("dimensions", tensor(b"K\x03", b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), CUT),
        ("storage", tensor(HUGE, b"K\x01\x85", b"K\x01\x85"), "x float32"),
        ("storage, negative", tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), "storage in an unknown way"),
        ("storage, other", tensor(b"M\x00\x10", b"M\x00\x10\x85", b"K\x01\x85"), "4096 x float32"),
    )


def files(canary: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, content, what the refusal says) of every malicious file, in both formats."""
    for name, data, message in (*calls(canary), *bombs()):
        yield f"zip {name}", zip_file(data), message
        yield f"legacy {name}", legacy_file(data), message
    for name, data, message in tensors():
        yield f"zip {name}", zip_file(data), message
        yield f"legacy {name}", legacy_file(data, ("0",)), ""  # what is no tensor is found later, or is no storage
