"""Every fault has its one place in the sources, and its line in the docs."""

import pytest

from tests.gpu.sanitizers import planted


def test_every_fault_can_be_planted(tmp_path):
    planted.plant(tmp_path)
    for number, mutation in planted.faults().items():
        assert f"== {number})" in (tmp_path / mutation.file).read_text()


def test_the_docs_have_the_table_of_all_faults():
    """`python -m tests.gpu.sanitizers.planted write` puts it there."""
    rows = planted.DOCS.read_text().partition(planted.HEADER)[2].splitlines()
    chosen = [m for kind in planted.RUNS for m in planted.faults().values() if m.kind == kind]
    assert len(rows) == len(chosen)
    for line, mutation in zip(rows, chosen):
        assert line.startswith(planted.row(mutation, "x").removesuffix("x |"))


@pytest.mark.parametrize(
    "written, cause",
    [
        (
            "RuntimeError: kernel a<float, 1>(P), block (0, 0, 0), thread (0, 0, 0): waits at __syncthreads (a.cu:3), "
            "but thread (1, 0, 0) has exited (b.cuh:4)",
            "waits at __syncthreads, but thread (1, 0, 0) has exited",
        ),
        (
            "==9==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1",
            "address sanitizer: heap-buffer-overflow",
        ),
        ("WARNING: ThreadSanitizer: data race (pid=1)", "thread sanitizer: data race"),
        ("a.h:1:2: runtime error: index 4 out of bounds", "undefined behaviour: index 4 out of bounds"),
        (
            "IndexError: _kernel writes 4 bytes that no tensor holds",
            "out of bounds: writes 4 bytes that no tensor holds",
        ),
        ("AssertionError: exp on cpu, torch.float32, inverse=True: y is wrong by 3", "reference, inverse: y is wrong"),
        ("AssertionError: grad y is wrong by 3 units", "reference: grad y is wrong"),
        ("AssertionError: stage is wrong: Tensor-likes are not close!", "reference: stage is wrong"),
    ],
)
def test_what_differs_from_run_to_run_is_left_out(written, cause):
    assert planted.cause_of(f"Traceback\n{written}\n") == cause


def test_a_cause_in_the_table_keeps_its_template_arguments():
    (mutation, *_) = planted.faults().values()
    assert "f&lt;float>::a" in planted.row(mutation, "uninitialised: reads f<float>::a")


def test_a_place_is_found_whatever_its_white_space():
    text = "a = 1;\nif (b  <\n    c) d();\nif (b > c) d();\n"
    assert [text[slice(*place)] for place in planted.found("if (b < c) d()", text)] == ["if (b  <\n    c) d()"]
