"""What the simulator does not know it refuses by name, when the library is loaded."""

import subprocess

import pytest

from tests.ptxsim.build import BUILD, NVCC, build, missing, nvcc
from tests.ptxsim.simulator import simulator

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

INSTRUCTIONS = {
    "named-barrier": ('asm volatile("bar.sync 1, 64;");', "bar.sync 1, 64"),
    "mma-of-bits": (
        'unsigned r[4] = {}; asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%0,%1}, {%2}, {%0,%1,%2,%3};"'
        ' : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])); out[1] = r[0];',
        "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32",
    ),
    "rounding": ('unsigned short r; asm volatile("cvt.rz.bf16.f32 %0, %1;" : "=h"(r) : "f"(out[0])); out[1] = r;', "cvt.rz.bf16.f32"),
    "saturating": ('float r; asm volatile("add.sat.f32 %0, %1, %1;" : "=f"(r) : "f"(out[0])); out[1] = r;', "add.sat.f32"),
    "special-register": ('unsigned r; asm volatile("mov.u32 %0, %%smid;" : "=r"(r)); out[1] = r;', "%smid"),
}


@pytest.mark.parametrize(("statement", "named"), INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_is_named(tmp_path, statement, named):
    build()
    source, library = tmp_path / "unsupported.cu", tmp_path / "libunsupported.so"
    source.write_text(
        f'__global__ void kernel(float* out) {{ {statement} }}\nextern "C" void run(float* out) {{ kernel<<<1, 32>>>(out); }}\n'
    )
    link = ["-shared", "-cudart", "none", "-Xlinker", f"-rpath={BUILD}", f"-L{BUILD}", "-lptxsim"]
    subprocess.run([str(nvcc()), *NVCC, *link, str(source), "-o", str(library)], check=True, capture_output=True)
    sim = simulator()
    with pytest.raises(RuntimeError, match="unsupported PTX: ") as raised:
        sim.load(library)
    assert named in str(raised.value)
    sim.clear()
