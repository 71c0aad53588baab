"""Pickles: what the files of CIFAR hold is read, whoever wrote them, and nothing of a hostile one runs."""

import copyreg
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch

from fused_preact.data import cifar10, pickles
from fused_preact.data.source import DataError
from tests.data import cifar_files
from tests.data.cifar_files import sentence

REFUSED = "a file: expected a pickle of CIFAR, got one that asks for ...; nothing of it was run"
DAMAGED = "a file: expected a pickle of CIFAR, got one that is damaged or holds something else: ..."


def matrix(rows=3, columns=5):
    return torch.arange(rows * columns, dtype=torch.uint8).view(rows, columns)


@pytest.mark.parametrize(
    "write", [cifar_files.python2, *map(cifar_files.python3, (2, 3, 4))], ids=["Python 2", "protocol 2", "protocol 3", "protocol 4"]
)
def test_what_every_python_writes_is_read(write):
    content = {b"data": matrix(), b"labels": [0, 5, 70000, -1], b"filenames": [b"a.png", b"\xff" * 300]}
    got = pickles.load(write(content), "a file")
    fields = {key.encode() if isinstance(key, str) else key: value for key, value in got.items()}
    assert torch.equal(fields.pop(b"data").tensor(), content.pop(b"data"))
    assert fields == content


def test_the_test_files_are_what_python_2_means():
    """The pickle of tests is written by hand; the real unpickler must agree."""
    content = {b"data": matrix(), b"labels": [1, 300], b"filenames": [b"a", b"b" * 256]}
    got = pickle.loads(cifar_files.python2(content), encoding="bytes")
    np.testing.assert_array_equal(got.pop(b"data"), matrix().numpy())
    assert got == {key: value for key, value in content.items() if key != b"data"}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_columns_may_lie_first(protocol):
    array = np.asfortranarray(matrix().numpy())
    assert torch.equal(pickles.load(pickle.dumps(array, protocol), "a file").tensor(), matrix())


def test_a_tensor_owns_its_memory():
    array = pickles.load(pickle.dumps(matrix().numpy(), 2), "a file")
    array.tensor().zero_()
    assert torch.equal(array.tensor(), matrix())


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built(Calls):
    """Pickled as a call and a state."""

    def __init__(self, state, function, *arguments):
        self.call = function, arguments, state


def hostile(marker):
    """Pickles that make the file `marker` where they are run, or that could do worse; by what they try."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    shell = b"(S'" + touch.encode() + b"'\n"
    array = np.ndarray, (0,), b"b"
    reconstruct = np.zeros(1, np.uint8).__reduce__()[0]
    objects = np.empty(1, object)
    objects[0] = Calls(os.system, touch)
    return {
        "system": pickle.dumps(Calls(os.system, touch), 2),
        "eval": pickle.dumps(Calls(eval, code), 2),
        "exec, protocol 4": pickle.dumps(Calls(exec, code), 4),
        "nested in data": pickle.dumps({"labels": [0], "data": [Calls(os.system, touch)]}, 2),
        "as the key of a dict": pickle.dumps({"a": 1}, 2)[:-2] + pickle.dumps(Calls(os.system, touch), 2)[2:-1] + b"K\x01s.",
        "in an array of objects": pickle.dumps(objects, 2),
        "as numpy's dtype": pickle.dumps(Calls(np.dtype, Calls(os.system, touch)), 2),
        "as numpy's class": pickle.dumps(Calls(reconstruct, Calls(os.system, touch), (0,), b"b"), 2),
        "as an argument of encode": pickle.dumps(Calls(__import__("_codecs").encode, Calls(eval, code), "latin1"), 2),
        "encode with a codec": pickle.dumps(Calls(__import__("_codecs").encode, "a" * 9, "punycode"), 2),
        "reconstruct of another class": pickle.dumps(Calls(reconstruct, dict, (0,), b"b"), 2),
        "numpy's own eval": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + pickle.dumps((code, {}), 2)[2:-1] + b"R.",
        "numpy.load": b"\x80\x02cnumpy\nload\n(U\x03aaatR.",
        "an attribute of numpy": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "GLOBAL, protocol 0": b"cos\nsystem\n" + shell + b"tR.",
        "INST": shell + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + shell[1:] + b"o.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\nK\x01\x85}\x92.",
        "a persistent id": b"Psystem\n.",
        "a persistent object": b"\x80\x02U\x01aQ.",
        "an extension": b"\x80\x02\x82\x7f" + shell + b"tR.",
        "an extension of two bytes": b"\x80\x02\x83\x7f\x00" + shell + b"tR.",
        "an extension of four bytes": b"\x80\x02\x84\x7f\x00\x00\x00" + shell + b"tR.",
        "a dtype of objects": pickle.dumps(Calls(np.dtype, "O8"), 2),
        "a dtype of a terabyte": pickle.dumps(Calls(np.dtype, "V1000000000000"), 2),
        "an array of a terabyte": pickle.dumps(Built((1, (2**20, 2**20), np.dtype("u1"), False, b"a"), reconstruct, *array), 2),
        "an array of three axes": pickle.dumps(Built((1, (1, 1, 1), np.dtype("u1"), False, b"a"), reconstruct, *array), 2),
        "an array of a length that is text": pickle.dumps(Built((1, ("a", 10**9), np.dtype("u1"), False, b"a"), reconstruct, *array), 2),
        "a shape of negative lengths": pickle.dumps(Built((1, (-1, -1), np.dtype("u1"), False, b"a"), reconstruct, *array), 2),
        "a name of a global that is no text": b"\x80\x04K\x01K\x02\x93.",
        "a call of what is no global": b"\x80\x02U\x06system(U\x01atR.",
        "a state of what has none": b"\x80\x02}}b.",
        "a string of a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
        "an opcode that is none": b"\x80\x02\xff.",
        "nothing on the stack": b"\x80\x02.",
        "more on the stack than one": b"\x80\x02NN.",
        "a tuple of more than there is": b"\x80\x02N\x87.",
        "a mark that is missing": b"\x80\x02Nt.",
        "a memo that is missing": b"\x80\x02h\x05.",
        "a list that is none": b"\x80\x02}K\x01a.",
        "a dict that is none": b"\x80\x02]K\x01K\x01s.",
        "a key that is a list": b"\x80\x02}]K\x01s.",
        "a key that is a number": b"\x80\x02}K\x01K\x01s.",
        "a key nested so deeply that its hash overflows the stack": b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",
        "a dtype nested so deeply": b"\x80\x02cnumpy\ndtype\n)" + b"\x85" * 300_000 + b"\x85R.",
        "a codec nested so deeply": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a)" + b"\x85" * 300_000 + b"\x86R.",
        "a version nested so deeply": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R()"
        + b"\x85" * 300_000
        + b"NNNNtb.",
    }


@pytest.mark.parametrize("attempt", hostile("a file"))
def test_nothing_of_a_hostile_pickle_runs(attempt, tmp_path):
    marker = tmp_path / "ran"
    data = hostile(marker)[attempt]
    copyreg.add_extension("os", "system", 0x7F)
    try:
        # What has been used once comes out of a cache that no `find_class` sees.
        pickle.loads(pickle.dumps(os.system, 2))
        with pytest.raises(DataError) as raised:
            pickles.load(data, "a file")
    finally:
        copyreg.remove_extension("os", "system", 0x7F)
        copyreg.clear_extension_cache()
    message = str(raised.value)
    assert sentence(REFUSED).match(message) or sentence(DAMAGED).match(message)
    assert len(message) < 250
    assert not marker.exists()


@pytest.mark.parametrize("attempt", ["system", "eval", "nested in data", "in an array of objects", "GLOBAL, protocol 0", "INST", "OBJ"])
def test_the_attempts_would_run_elsewhere(attempt, tmp_path):
    """Otherwise the test above would prove nothing."""
    marker = tmp_path / "ran"
    pickle.loads(hostile(marker)[attempt])
    assert marker.exists()


def test_a_refused_global_is_named():
    with pytest.raises(DataError, match=sentence("a file: ... asks for the global 'builtins.eval'; nothing of it was run")):
        pickles.load(pickle.dumps(eval, 4), "a file")


def test_a_file_that_holds_a_hostile_pickle_is_named(tmp_path):
    marker = tmp_path / "ran"
    path = cifar_files.write(tmp_path, "python") / "data_batch_2"
    path.write_bytes(hostile(marker)["nested in data"])
    with pytest.raises(
        DataError, match=sentence(f"{path}: expected a pickle of CIFAR, got one that asks for the global 'posix.system'...")
    ):
        cifar10(tmp_path)
    assert not marker.exists()


BOMBS = {
    "a memo of four billion entries": b"\x80\x02Nr\xff\xff\xff\xff.",
    "one text encoded again and again": b"\x80\x02]q\x00(X"
    + (2**16).to_bytes(4, "little")
    + b"a" * 2**16
    + b"q\x01c_codecs\nencode\nq\x02"
    + b"h\x02h\x01X\x06\x00\x00\x00latin1\x86R" * 10_000
    + b"e.",
    "one array built again and again": b"\x80\x02](T"
    + (2**16).to_bytes(4, "little")
    + b"a" * 2**16
    + b"q\x01cnumpy\ndtype\nU\x02u1\x85Rq\x03"
    + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01M\x00\x01M\x00\x01\x86h\x03\x89h\x01tb" * 5_000
    + b"e.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_within_some_times_the_size_of_a_file(bomb):
    tracemalloc.start()
    try:
        pickles.load(BOMBS[bomb], "a file")
    except DataError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Some objects of Python, of up to 500 bytes each, for as many bytes in the file.
    assert peak < 20 * len(BOMBS[bomb]) + 100_000


def test_one_byte_of_a_file_is_much_memory_only_so_often(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    with pytest.raises(DataError, match=sentence("a file: expected a pickle of CIFAR, got ...: more than 1000 opcodes")):
        pickles.load(b"\x80\x02" + b"]" * 1000 + b".", "a file")


@pytest.mark.filterwarnings("error")
def test_a_name_with_backslashes_is_refused_as_it_is():
    with pytest.raises(DataError, match=sentence("...asks for the global 'os\\\\y.system'; nothing of it was run")):
        pickles.load(b"cos\\y\nsystem\n.", "a file")


SLOW = {
    "digits of a number": b"L" + b"1" * 3_000_000 + b"L\n.",
    "a text without quotes": b"S" + b"a" * 3_000_000 + b"\n.",
    "a text of escapes": b"S'" + b"\\8" * 1_000_000 + b"'\n.",
    "a number that is none": b"F" + b"1" * 3_000_000 + b"x\n.",
    "keys of one hash": b"\x80\x02}("
    + b"".join(b"\x8a\x0c" + (k * sys.hash_info.modulus).to_bytes(12, "little") + b"N" for k in range(1, 20_000))
    + b"u.",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_what_would_take_the_square_of_its_size_is_refused_unread_and_not_quoted(data):
    before = time.process_time()
    with pytest.raises(DataError) as raised:
        pickles.load(data, "a file")
    assert len(str(raised.value)) < 250
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    "write", [cifar_files.python2, *map(cifar_files.python3, range(6))], ids=["Python 2", *map("protocol {}".format, range(6))]
)
def test_a_file_cut_anywhere_is_one_short_sentence(write):
    whole = write({b"data": matrix(), b"labels": [0, 5, 2], b"filenames": [b"a.png", b"b"]})
    for end in range(len(whole)):
        with pytest.raises(DataError) as raised:
            pickles.load(whole[:end], "a file")
        message = str(raised.value)
        assert sentence(REFUSED).match(message) or sentence(DAMAGED).match(message)
        assert len(message) < 250


def test_as_many_opcodes_as_the_largest_file_has_are_read():
    """CIFAR-100's training images, with their names as Python 3 writes bytes in protocol 2."""
    names = [b"a_photograph_s_%06d.png" % i for i in range(50_000)]
    content = {b"filenames": names, b"fine_labels": [i % 100 for i in range(50_000)], b"coarse_labels": [i % 20 for i in range(50_000)]}
    assert pickles.load(cifar_files.python3(2)(content), "a file")["filenames"] == names


@pytest.mark.parametrize("write", [cifar_files.python2, cifar_files.python3(4)], ids=["Python 2", "protocol 4"])
def test_a_file_with_a_few_changed_bytes_is_read_or_refused(write):
    good = write({b"data": matrix(), b"labels": [0, 5, 2], b"filenames": [b"a.png", b"b"]})
    draw = random.Random(0)
    refused = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        try:
            pickles.load(bytes(bad), "a file")
        except DataError:
            refused += 1
    assert 300 < refused < 3000
