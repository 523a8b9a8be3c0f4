"""Estimates from the text of compiled programs, against values computed by hand."""

import pytest

from bertgpt.errors import InputError
from train import estimate, hlo, targets
from train.estimate import Collective

US = 1500  # cycles of the v5e in a microsecond
TARGET = targets.TARGETS["v5e"]


def cycles(number):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{number}","iteration_bounds":["1"]}}}}'


def program(entry, *others):
    """The text of a program with the given lines in its entry, and further computations."""
    text = "HloModule jit_step, is_scheduled=true, replica_count=2, num_partitions=4\n\n" + "\n\n".join(others)
    return hlo.parse(text + "\n\nENTRY %main.1 (x: f32[8]) -> f32[8] {\n" + "".join(f"  {x}\n" for x in entry) + "}\n")


def computation(name, *lines):
    return f"%{name} (x: f32[8]) -> f32[8] {{\n" + "".join(f"  {line}\n" for line in lines) + "}"


def moved(lines, *others):
    """Bytes of main memory that the last line of an entry moves."""
    made = program(lines, *others)
    entry = made.computations["main.1"]
    return hlo.traffic(made, list(entry.values())[-1], entry)


def test_an_instruction_is_taken_apart():
    line = (
        "ROOT %a.1 = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/u32[]{:S(2)}) fusion(%b, /*index=1*/%c-d.2), "
        'kind=kLoop, calls=%fused.3, metadata={op_name="jit(f)/block_0/mul"}, ' + cycles(7)
    )
    (found,) = program([line]).computations["main.1"].values()
    assert (found.name, found.opcode, found.operands, found.is_root) == ("a.1", "fusion", ["b", "c-d.2"], True)
    assert found.shape == "(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/u32[]{:S(2)})"
    assert (found.callees, found.cycles, found.source) == (["fused.3"], 7, "jit(f)/block_0/mul")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("bf16[2,128]{1,0:T(8,128)(2,1)}", [("bf16", 512, True)]),
        ("(f32[3]{0:T(128)S(1)}, u32[]{:S(2)})", [("f32", 12, False), ("u32", 4, False)]),
        ("pred[5]", [("pred", 5, True)]),
        ("s4[8]{0:E(4)}", [("s4", 4, True)]),
        ("f8e4m3fn[8]", [("f8e4m3fn", 8, True)]),
        ("token[]", [("token", 0, True)]),
    ],
)
def test_bytes_and_place_of_arrays(shape, expected):
    assert hlo.arrays(shape) == expected


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[1,8]<=[8]", 8),
        ("{{0},{1}}", 1),
        ("{}", 8),
        ("mesh['a'=4,'b'=2] {'a'}", 4),
        ("mesh['axis_0'=8] {'axis_0'}", 8),
        ("mesh['a'=1,'b'=8,'c'=2], device_ids=([2,8]T(1,0)) {'b'}, use_global_device_ids=true", 8),
    ],
)
def test_devices_of_a_collective(groups, devices):
    made = program([f"%r = f32[8] all-reduce(%x), replica_groups={groups}, to_apply=%add"])
    assert made.group(made.computations["main.1"]["r"]) == devices


def test_groups_of_another_form_are_refused():
    made = program(["%r = f32[8] all-reduce(%x), replica_groups=<0,1>, to_apply=%add"])
    with pytest.raises(InputError, match="cannot read the groups of devices of r: "):
        made.group(made.computations["main.1"]["r"])


PARAMETERS = ("%x = f32[100,8]{1,0} parameter(0)", "%i = s32[4]{0} parameter(1)", "%near = f32[8]{0:S(1)} parameter(2)")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%y = f32[100,8]{1,0} negate(%x)", 3200 + 3200),
        ("%y = f32[100,8]{1,0:T(8)S(1)} negate(%x)", 3200),
        ("%y = f32[8]{0:S(1)} negate(%near)", 0),
        ("%y = f32[2,8]{1,0} slice(%x), slice={[0:2], [0:8]}", 64 + 64),
        ("%y = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]{:S(2)}) copy-start(%x)", 3200),
        ("%y = ((f32[100,8]{1,0}), f32[50,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:50], [0:8]}", 1600),
        ("%y = f32[100,8]{1,0} copy-done(%x)", 0),
        ("%y = f32[800]{0} bitcast(%x)", 0),
        ("%y = f32[4,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%rows", 128 + 16 + 128),
        ("%y = f32[100,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%updated", 16 + 4 * 8),
    ],
)
def test_bytes_that_an_instruction_moves(line, expected):
    rows = computation(
        "rows",
        "%p0 = f32[100,8]{1,0} parameter(0)",
        "%p1 = s32[4]{0} parameter(1)",
        "ROOT %g = f32[4,8]{1,0} gather(%p0, %p1), offset_dims={1}",
    )
    updated = computation(
        "updated",
        "%p0 = f32[100,8]{1,0} parameter(0)",
        "%p1 = s32[4]{0} parameter(1)",
        "%u = f32[1,8]{1,0} iota(), iota_dimension=1",
        "ROOT %d = f32[100,8]{1,0} dynamic-update-slice(%p0, %u, %p1)",
    )
    assert moved([*PARAMETERS, line], rows, updated) == expected


def timed(entry, *others):
    """(compute, what has no estimate, collectives) of a program on a v5e, in microseconds."""
    found = estimate.estimate(program(entry, *others), TARGET)
    return tuple(round(1e6 * seconds, 6) for seconds in (found.compute, found.other, found.collectives))


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    body = computation("body", "%x = f32[8] parameter(0)", "ROOT %n = f32[8] negate(%x), " + cycles(2 * US))
    loop = '%w = f32[8] while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    assert timed(["%x = f32[8] parameter(0)", loop, "ROOT %m = f32[8] negate(%w), " + cycles(US)], body) == (7, 0, 0)


@pytest.mark.parametrize(("direction", "trips"), [("LT", 5), ("NE", None)])
def test_a_loop_runs_until_its_counter_reaches_the_constant(direction, trips):
    lines = ["%i = s32[] parameter(0)", "%n = s32[]{:T(128)} constant(5)"]
    condition = computation("c", *lines, f"ROOT %t = pred[] compare(%i, %n), direction={direction}")
    body = computation("b", "%i = s32[] parameter(0)", "ROOT %n = s32[] negate(%i), " + cycles(2 * US))
    entry = ["%i = s32[] parameter(0)", "ROOT %w = s32[] while(%i), condition=%c, body=%b"]
    made = program(entry, condition, body)
    assert made.trips(made.computations["main.1"]["w"]) == trips
    assert timed(entry, condition, body) == (2 * (trips or 1), 0, 0)


SOURCE = "%x = f32[225000]{0} parameter(0)"  # 900,000 bytes: 10 us over the link
GROUP = "replica_groups={{0,1,2,3,4,5,6,7}}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"%r = f32[225000] all-reduce(%x), {GROUP}, to_apply=%add", 2 * 7 / 8 * 10),
        (f"%r = f32[1800000] all-gather(%x), {GROUP}, dimensions={{0}}", 7 * 10),
        (f"%r = f32[28125] reduce-scatter(%x), {GROUP}, dimensions={{0}}, to_apply=%add", 7 / 8 * 10),
        (f"%r = f32[225000] all-to-all(%x), {GROUP}, dimensions={{0}}", 8 / 4 * 10),
        ("%r = f32[225000] collective-permute(%x), source_target_pairs={{0,1}}", 10),
        ("%r = f32[225000] all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add", 0),
    ],
)
def test_a_collective_takes_the_time_of_a_ring(line, expected):
    assert timed([SOURCE, line])[2] == pytest.approx(expected)


START = f"%s = (f32[225000], f32[225000]) all-reduce-start(%x), {GROUP}, to_apply=%add"  # 17.5 us
SECOND = f"%t = (f32[225000], f32[225000]) all-reduce-start(%x), {GROUP}, to_apply=%add"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([START, "%n = f32[8] negate(%x), " + cycles(10 * US), "%r = f32[225000] all-reduce-done(%s)"], 7.5),
        ([START, "%n = f32[8] negate(%x), " + cycles(30 * US), "%r = f32[225000] all-reduce-done(%s)"], 0),
        ([START, "%r = f32[225000] all-reduce-done(%s)", "%n = f32[8] negate(%x), " + cycles(30 * US)], 17.5),
        (
            [
                START,
                SECOND,
                "%n = f32[8] negate(%x), " + cycles(20 * US),
                "%r = f32[225000] all-reduce-done(%s)",
                "%q = f32[225000] all-reduce-done(%t)",
            ],
            35 - 20,
        ),
    ],
)
def test_work_between_start_and_end_hides_a_collective_once(lines, expected):
    assert timed([SOURCE, *lines])[2] == pytest.approx(expected)


def test_collectives_of_libtpu_start_and_end_in_fusions():
    inner = f"%g = f32[1800000] all-gather(%p), {GROUP}, dimensions={{0}}"
    parameter = "%p = f32[225000] parameter(0)"
    start = computation(
        "f1", parameter, inner, 'ROOT %c = f32[9] custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    )
    middle = computation("async_collective_fusion.2", parameter, inner, "ROOT %m = f32[8] negate(%p)")
    done = computation(
        "f3", parameter, inner, 'ROOT %c = f32[9] custom-call(%g), custom_call_target="AsyncCollectiveDone"'
    )
    lines = [
        SOURCE,
        "%async-collective-start.4 = f32[9] fusion(%x), kind=kCustom, calls=%f1",
        "%n = f32[8] fusion(%x), kind=kOutput, calls=%async_collective_fusion.2, " + cycles(20 * US),
        "ROOT %async-collective-done.4 = f32[9] fusion(%x), kind=kCustom, calls=%f3",
    ]
    assert timed(lines, start, middle, done) == (20, 0, 50)
    found = estimate.collectives(program(lines, start, middle, done))
    assert found == {Collective("all-gather", "f32", 7_200_000, 8, True): 1}


@pytest.mark.parametrize(
    ("attributes", "is_async"), [("", True), (', backend_config={"is_sync":true}', False)], ids=["async", "sync"]
)
def test_a_start_that_the_compiler_runs_at_once_is_not_asynchronous(attributes, is_async):
    lines = [SOURCE, START + attributes, "%r = f32[225000] all-reduce-done(%s)"]
    assert estimate.collectives(program(lines)) == {Collective("all-reduce", "f32", 900_000, 8, is_async): 1}


def test_a_reduce_scatter_may_be_wrapped_or_fused():
    wrapped = computation("w", "%p = f32[225000] parameter(0)", f"ROOT %r = f32[28125] reduce-scatter(%p), {GROUP}")
    fused = computation(
        "f",
        "%p = f32[225000] parameter(0)",
        f"%r = f32[225000] all-reduce(%p), {GROUP}",
        "ROOT %s = f32[28125] dynamic-slice(%r)",
    )
    lines = [
        SOURCE,
        "%s = ((f32[225000]), f32[28125]) async-start(%x), calls=%w",
        "%d = f32[28125] async-done(%s)",
        "ROOT %f = f32[28125] fusion(%x), kind=kCustom, calls=%f",
    ]
    kind = Collective("reduce-scatter", "f32", 900_000, 8)
    assert estimate.collectives(program(lines, wrapped, fused)) == {kind: 1, kind._replace(is_async=True): 1}


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"591000000"}}', 3.0),
        ('custom_call_target="tpu_custom_call"', 2 * 900_000 / 819e9 * 1e6),
        ('custom_call_target="ConcatBitcast"', 0.0),
    ],
    ids=["FLOPs", "bytes", "no work"],
)
def test_a_custom_call_takes_at_least_its_flops_or_bytes(attributes, expected):
    assert timed([SOURCE, f"ROOT %c = f32[225000] custom-call(%x), {attributes}"])[1] == pytest.approx(expected)


def test_a_step_takes_at_least_the_time_of_its_memory_traffic():
    found = estimate.estimate(program([SOURCE, "ROOT %n = f32[225000] negate(%x), " + cycles(US)]), TARGET)
    assert found.step == found.floor == pytest.approx(2 * 900_000 / 819e9)
    slow = estimate.estimate(program([SOURCE, "ROOT %n = f32[225000] negate(%x), " + cycles(9 * US)]), TARGET)
    assert slow.step == slow.compute == pytest.approx(9e-6)


def test_an_instruction_without_an_estimate_takes_at_least_its_traffic():
    lines = [
        SOURCE,
        "%c = (f32[225000]{0:S(1)}, f32[225000], u32[]) copy-start(%x)",
        "ROOT %n = f32[225000] negate(%x)",
    ]
    assert timed(lines) == (0, pytest.approx(2 * 900_000 / 819e9 * 1e6), 0)  # the copy runs beside other work


def test_the_layers_of_a_model_are_one_part():
    lines = [
        f'%n{layer} = f32[8] negate(%x), metadata={{op_name="jit(step)/bert/block_{layer}/up/dot"}}, {cycles(US)}'
        for layer in range(12)
    ]
    (largest, *_) = estimate.estimate(program([SOURCE, *lines]), TARGET).largest
    assert largest == ("bert/block_*/up/dot", pytest.approx(12e-6))
