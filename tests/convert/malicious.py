"""Pickles and files made to run something, to fill the memory or to take forever; each with what a refusal names."""

import io
import pickle
import stat
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.convert.torch_files import legacy_of, pickled, zip_entries, zip_of


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def calls(canary: str) -> dict[str, tuple[bytes, str]]:
    """Returns name -> (instructions that run something in Python's unpickler, what the refusal has to name)."""
    code = f"open({canary!r}, 'w')"
    functions = {
        "posix.system": text(f"touch {canary}"),
        "os.system": text(f"touch {canary}"),
        "nt.system": text(f"touch {canary}"),
        "subprocess.Popen": b"]" + text("touch") + b"a" + text(canary) + b"a",
        "subprocess.check_output": b"]" + text("touch") + b"a" + text(canary) + b"a",
        "builtins.eval": text(code),
        "builtins.exec": text(code),
        "__builtin__.eval": text(code),
        "builtins.open": text(canary),
        "builtins.compile": text(code),
        "builtins.getattr": text(canary),
        "builtins.__import__": text("this"),
        "importlib.import_module": text("this"),
        "runpy.run_path": text(canary),
        "webbrowser.open": text(canary),
        "pathlib.Path": text(canary),
        "operator.attrgetter": text("system"),
        "functools.partial": text(canary),
        "types.CodeType": text(code),
        "pickle.loads": text(code),
        "torch.load": text(canary),
        "torch.hub.load": text(canary),
        "torch.serialization.load": text(canary),
        "torch._utils._rebuild_tensor_v2.__globals__": text(canary),
        "torch.jit.unsupported_tensor_ops.execWrapper": text(code),
        "torch.utils._config_module.ConfigModule.load_config": text(canary),
        "numpy.load": text(canary),
        "numpy._core.multiarray._reconstruct": text(canary),
        "numpy.testing._private.utils.runstring": text(code),
        "collections.OrderedDict.fromkeys": text(canary),
        "collections.defaultdict": text(canary),
        "argparse.Namespace": text(canary),
    }
    found = {}
    for name, argument in functions.items():
        module, _, function = name.rpartition(".")
        named = f"{module}\n{function}\n".encode()
        plain = b"c" + named + argument + b"\x85R."
        found[f"global {name}"] = b"\x80\x02" + plain, name
        found[f"stack global {name}"] = (
            b"\x80\x04" + text(module) + text(function) + b"\x93" + argument + b"\x85R.",
            name,
        )
        found[f"in a dict {name}"] = b"\x80\x02}" + text("model") + plain[:-1] + b"s.", name
        found[f"only named {name}"] = b"\x80\x02c" + named + b".", name
        found[f"text protocol {name}"] = b"(S'" + canary.encode() + b"'\ni" + named + b".", "STRING"
        found[f"instance {name}"] = b"\x80\x02(" + argument + b"i" + named + b".", f"INST ('{module} {function}')"
        found[f"object {name}"] = b"\x80\x02(c" + named + argument + b"o.", name
        found[f"new object {name}"] = b"\x80\x02c" + named + argument + b"\x85\x81.", name
    known = b"ctorch._utils\n_rebuild_tensor_v2\n"
    ordered = b"ccollections\nOrderedDict\n)R"
    found |= {
        "extension 1": (b"\x80\x02\x82\x01.", "EXT1"),
        "extension 2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
        "extension 4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        "persistent text": (b"\x80\x02Px\n.", "PERSID"),
        "persistent module": (b"\x80\x02(" + text("module") + text(canary) + b"NNtQ.", "no storage"),
        "persistent number": (b"\x80\x02K\x01Q.", "no storage"),
        "persistent call": (b"\x80\x02cos\nsystem\nQ.", "os.system"),
        "state of a list": (b"\x80\x02]}" + text("__class__") + text(canary) + b"sb.", "sets the state of a list"),
        "state of a dict": (b"\x80\x02}}" + text("__setstate__") + text(canary) + b"sb.", "sets the state of a dict"),
        "state of a function": (b"\x80\x02" + known + b"}b.", "sets the state of a Constructor"),
        "state of a type": (b"\x80\x02cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\x03" + text("<") + b"]NNtb.",
                            "numpy.dtype that is not one of a plain number"),
        "slots of a dict": (b"\x80\x02" + ordered + b"N}\x86b.", "sets the state of a OrderedDict"),
        "call of text": (b"\x80\x02" + text("os.system") + text(canary) + b"\x85R.", "calls a str"),
        "call of a type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls a StorageType"),
        "call with a list": (b"\x80\x02" + known + b"]R.", "calls a Constructor"),
        "call with too little": (b"\x80\x02" + known + b")R.", "damaged"),
        "call with text": (b"\x80\x02" + known + b"(" + text("a") * 6 + b"tR.", "arguments of an"),
        "encoding": (b"\x80\x02c_codecs\nencode\n" + text("a") + text("zip") + b"\x86R.", "arguments of an"),
        "object type": (b"\x80\x02cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R.", "arguments of an unknown form"),
        "only a function": (b"\x80\x02" + known + b".", "_rebuild_tensor_v2 as a value"),
        "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    }  # fmt: skip
    return found


def bombs() -> dict[str, tuple[bytes, str]]:
    """Returns name -> (pickle that asks for memory or time, what the refusal says)."""
    doubled = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(40))
    cycle = b"\x80\x02]q\x00h\x00a."
    return {
        "doubled lists": (doubled + b".", "left over"),
        "doubled tuples": (
            b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(45)) + b".",
            "left over",
        ),
        "doubled, nested": (b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b".", "are more than"),
        "deep by sharing": (
            b"\x80\x02(" + b"".join(
                (b")" if i == 0 else b"h%c" % (i - 1)) + b"\x85" * 50 + b"q%c" % i for i in range(5)
            ) + b"t.",
            "nested deeper than 64",
        ),
        "tens": (
            b"\x80\x02)q\x00" + b"".join(b"(" + b"h%c" % i * 10 + b"tq%c" % (i + 1) for i in range(20)) + b".",
            "left over",
        ),
        "tens, nested": (b"\x80\x02)" + b"q\x00(" + b"(".join([b"h\x00" * 10 + b"tq\x00"] * 12) + b".", "left over"),
        "marks": (b"\x80\x02" + b"(" * 400_000 + b".", "more than 250000 containers"),
        "cycle": (cycle, "nested deeper than 64"),
        "cycle in a dict": (b"\x80\x02}q\x00" + text("a") + b"h\x00s.", "nested deeper than 64"),
        "deep lists": (b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".", "nested deeper than 64"),
        "deep tuples": (b"\x80\x02)" + b"\x85" * 60_000 + b".", "nested deeper than 64"),
        "deep dicts": (b"\x80\x02" + b"}N" * 60_000 + b"}" + b"s" * 60_000 + b".", "nested deeper than 64"),
        "deep marks": (b"\x80\x02" + b"(" * 60_000 + b"t" * 60_000 + b".", "nested deeper than 64"),
        "deep key": (b"\x80\x02})" + b"\x85" * 60_000 + b"Ns.", "a key of a dict"),
        "many sets": (b"\x80\x04" + b"\x8f" * 1_000_000 + b".", "more than 250000 containers"),
        "many numbers": (b"\x80\x02(" + b"N" * 1_000_000 + b"t.", "more than 1000000 instructions"),
        "colliding keys": (
            b"\x80\x02}(" + b"".join(
                b"\x8a\x0d" + ((2**61 - 1) * (k + 2**40)).to_bytes(13, "little") + b"N" for k in range(20_000)
            ) + b"u.",
            "a key of a dict",
        ),
        "key a list": (b"\x80\x02}]Ns.", "a key of a dict or a member of a set is a list"),
        "set of lists": (b"\x80\x04\x8f(]\x90.", "a key of a dict or a member of a set is a list"),
        "key twice": (b"\x80\x02}(K\x01NK\x01Nu.", "occurs twice"),
        "long text": (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
        "longer text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fab.", "damaged"),
        "long bytes": (b"\x80\x03B\xff\xff\xff\xffab.", "damaged"),
        "longer bytes": (b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00ab.", "damaged"),
        "long bytearray": (b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00ab.", "damaged"),
        "frame": (b"\x80\x04\x95" + b"\xff" * 8 + b"X\xff\xff\xff\xff.", "damaged"),
        "long number": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "damaged"),
        "number": (b"\x80\x02\x8b\x00\x00\x01\x00" + b"\x7f" * 65536 + b".", "LONG4"),
        "decimal number": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "damaged"),
        "huge memo": (b"\x80\x02Nr\xff\xff\xff\xff.", "remembers a value under the number 4294967295"),
        "huge memo, text": (b"\x80\x02Np99999999999\n.", "PUT"),
        "unknown memo": (b"\x80\x02j\xff\xff\xff\x7f.", "damaged"),
        "copies": (b"\x80\x02" + b"(" + b"2" * 1000 + b"t.", "DUP"),
        "empty": (b"", "damaged"),
        "no end": (b"\x80\x02N", "damaged"),
        "pops": (b"\x80\x02N0.", "POP"),
        "left over": (b"\x80\x02NN.", "left over"),
        "open mark": (b"\x80\x02(N.", "left over"),
        "no mark": (b"\x80\x02Nt.", "damaged"),
        "nothing to end": (b"\x80\x02.", "left over"),
        "pair": (b"\x80\x02}(Nu.", "sets 1 items"),
        "append to text": (b"\x80\x02" + text("a") + b"Na.", "adds an item to a str"),
    }  # fmt: skip


def tensor(numel: bytes, shape: bytes, strides: bytes, count: int = 1) -> bytes:
    """Returns a pickle of a list of tensors over the same storage of 3 numbers."""
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        + numel + b"tQK\x00" + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    return b"\x80\x02](" + one * count + b"e."


def tensors() -> dict[str, tuple[bytes, str]]:
    """Returns name -> (pickle of tensors that are larger than the file, what the refusal says)."""
    huge = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
    wide = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    ordered, one = b"ccollections\nOrderedDict\n)R", (b"K\x03", b"K\x03\x85", b"K\x01\x85")
    return {
        "hooks": (tensor(*one).replace(ordered, b"]K\x01a"), "arguments of an unknown form"),
        "metadata": (tensor(*one).replace(ordered, ordered + b"}" + text("neg") + b"\x88s"), "arguments of an unknown"),
        "gradient": (tensor(*one).replace(b"\x89", b"K\x01"), "arguments of an unknown form"),
        "empty": (tensor(b"K\x00", b"K\x00\x8a\x08" + b"\x00" * 7 + b"\x04\x86", b"K\x00K\x00\x86"), "does not lie"),
        "expanded": (tensor(b"K\x03", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"), "times as large as the file"),
        "expanded twice": (tensor(b"K\x03", b"J\x00\x00\x00\x7fK\x03\x86", b"K\x00K\x01\x86"), "times as large"),
        "expanded, many": (tensor(b"K\x03", b"J\x00\x00\x01\x00\x85", b"K\x00\x85", 100), "times as large"),
        "beyond 64 bits": (tensor(b"K\x03", huge + b"\x85", b"K\x00\x85"), "does not lie within"),
        "product beyond 64 bits": (tensor(b"K\x03", b"(" + b"J\xff\xff\xff\x7f" * 3 + b"t", b"(" + b"K\x00" * 3 + b"t"),
                                   "does not lie within"),
        "255 bytes": (tensor(b"K\x03", wide + b"\x85", wide + b"\x85"), "does not lie within"),
        "stride": (tensor(b"K\x03", b"K\x02\x85", huge + b"\x85"), "does not lie within"),
        "dimensions": (tensor(b"K\x03", b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), "does not lie"),
        "storage": (tensor(huge, b"K\x01\x85", b"K\x01\x85"), "do not exist"),
        "storage, negative": (tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), "do not exist"),
        "storage, other": (tensor(b"M\x00\x10", b"M\x00\x10\x85", b"K\x01\x85"), "expected 4096 x float32"),
    }  # fmt: skip


def archives() -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, zip file made to reach outside or to unpack to more than it is, what the refusal says)."""
    data, storages = pickled({"a": np.arange(1000.0)})
    entries = zip_entries(data, storages)
    for path in (
        "../x",
        "/etc/x",
        "model.pth/../../x",
        "a\\..\\x",
        "model.pth//x",
        "./x",
        "C:\\x",
        "model.pth/x/",
        "x\0y",
    ):
        plain = path.replace("\0", "?")
        content = zip_of({**entries, plain: b"x"}).replace(plain.encode(), path.encode())
        yield f"path {plain.translate(dict.fromkeys(map(ord, '/?'), '_'))}", content, "expected a plain relative path"
    zeros = {**entries, "model.pth/data/1": bytes(50 << 20)}
    yield "bomb", zip_of(zeros, compression=zipfile.ZIP_DEFLATED, descriptors=False), "is compressed (method 8"
    stored = zip_of(zeros, descriptors=False, compression=zipfile.ZIP_BZIP2)
    yield "bomb, bzip2", stored, "is compressed (method 12"
    good = zip_of(entries, descriptors=False)
    at = good.rindex(b"PK\x01\x02", 0, good.rindex(b"model.pth/version"))
    for name, offset, form, number, message in (
        ("size beyond the file", 24, "<L", 0x7FFFFFFF, "is compressed (method 0"),
        ("encrypted", 8, "<H", 1, "is encrypted"),
        ("disk", 34, "<H", 1, "damaged"),
        ("link", 38, "<L", (stat.S_IFLNK | 0o777) << 16, "a symbolic link"),
        ("offset of another", 42, "<L", 0, "overlap"),
        ("offset beyond", 42, "<L", 0x7FFFFFFF, "leave gaps"),
    ):
        changed = bytearray(good)
        struct.pack_into(form, changed, at + offset, number)
        yield name, bytes(changed), message
    changed = bytearray(good)
    struct.pack_into("<LL", changed, at + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    yield "sizes beyond the file", bytes(changed), "disagree"
    end = bytearray(good)
    struct.pack_into("<HH", end, len(good) - 14, 65535, 65535)
    yield "many entries", bytes(end), "not where its end record says"
    out = io.BytesIO(good)
    with zipfile.ZipFile(out, "a") as archive:
        archive.comment = b"PK\x05\x06" + bytes(18)
    yield "comment", out.getvalue(), "not where its end record says"
    yield "prefix", b"PK\x03\x04" + good, "zip archive"
    yield "twice", good + good, "zip archive"


def files(canary: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, content, what the refusal says) of every malicious file, pickles in both formats."""
    storage = np.zeros(3, np.float32)
    for name, (data, message) in (calls(canary) | bombs() | tensors()).items():
        yield f"zip {name}", zip_of(zip_entries(data, [storage])), message
        old = data.replace(b"tQK\x00", b"NtQK\x00")
        yield (
            f"legacy {name}",
            legacy_of(old, [storage] if old != data else []),
            "" if name == "storage, other" else message,
        )
    for name, content, message in archives():
        yield f"zip {name}", content, message
