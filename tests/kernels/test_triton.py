"""Triton where there is no GPU: its interpreter runs the kernels, its compiler shows their instructions."""

import os
import re

import pytest

from tests.processes import python

triton = pytest.importorskip("triton", minversion="3.6")


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param("triton and not every_word_length", id="every pass"),
        pytest.param("triton", id="every word length too", marks=pytest.mark.long),
    ],
)
def test_the_interpreter_gives_the_bits_of_the_other_back_ends(selection):
    """In a new process, because Triton reads the variable when it is imported."""
    command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", selection]
    command.append("tests/kernels/test_agreement.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = python(*command, environment=environment)
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 30


ROUNDING = {"WIDTH": 7, "ALIGNED": True, "BLOCK": 2048}
PASSES = {
    "quantize_pass": ({"blocks": "*i64", "table": "*i64"}, {**ROUNDING, "STOCHASTIC": True, "partial": None}),
    "store_pass": ({"blocks": "*i64", "table": "*i64", "partial": "*fp64"}, {**ROUNDING, "STOCHASTIC": False}),
    "add_pass": (
        {"blocks": "*i64", "table": "*i64", "squared": "*fp64", "partial": "*fp64"},
        {"WIDTH": 4, "ALIGNED": True, "BLOCK": 2048},
    ),
    "restore_pass": (
        {"blocks": "*i64", "table": "*i64", "squared": "*fp64"},
        {"WIDTH": 5, "ALIGNED": True, "BLOCK": 2048, "NORMALIZE": True, "partial": None},
    ),
    "descend_pass": (
        {"blocks": "*i64", "table": "*i64", "squared": "*fp64", "partial": "*fp64"},
        {"WIDTH": 13, "ALIGNED": True, "BLOCK": 2048, "NORMALIZE": True, "STOCHASTIC": True},
    ),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", PASSES)
def test_the_compiled_code_rounds_where_the_others_do_and_moves_four_elements_at_a_time(name):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adapt.kernels.triton_ import weights_device as triton_device

    function = getattr(triton_device, name)
    signature, constants = PASSES[name]
    source = ASTSource(
        fn=function,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs={(function.arg_names.index(key),): value for key, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(signature))},
    )
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm["ptx"]
    assert not re.search(r"fma\.rn\.f32|\.ftz", code), "one rounding instead of two, or subnormal numbers lost"
    assert re.search(r"ld\.global[.\w]*v4", code)
    assert re.search(r"st\.global[.\w]*v4", code)
