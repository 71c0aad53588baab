import platform

import pytest

from fused_preact.bench.machine import cpu_name

EPYC = "processor\t: {}\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"


CASES = {
    "x86: the first processor": (EPYC.format(0, 25, 17) + "\n" + EPYC.format(1, 26, 2), "AMD EPYC (family 25, model 17)"),
    "no numbers": ("model name\t: POWER: something\n", "POWER: something"),
    "no name, as on ARM": ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.processor() or platform.machine()),
    "no file": (None, platform.processor() or platform.machine()),
}


@pytest.mark.parametrize(("cpuinfo", "name"), CASES.values(), ids=CASES)
def test_a_processor_is_told_from_its_namesakes(tmp_path, cpuinfo, name):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert cpu_name(path) == name
