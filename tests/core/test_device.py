"Which device, in which precision, on machines this one is not."
import pytest
import torch

from ctseg.core import device
from ctseg.core.errors import InputError

KAGGLE = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("capability, "
                         "precision", [(None, "fp32"), ((6, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")])
def test_precision(capability, precision): assert device.pick_precision(capability) == precision


@pytest.mark.parametrize("capability, archs, there", [
    ((6, 0), KAGGLE, False), ((7, 5), KAGGLE, True), ((8, 9), KAGGLE, True), ((12, 1), KAGGLE, True), ((7, 2), ["sm_75"], False),
    ((9, 0), ["sm_80", "compute_80"], True), ((7, 5), ["compute_80"], False), ((9, 0), ["sm_90a"], True), ((9, 0), ["gfx90a"], False),
])
def test_kernels(capability, archs, there): assert device.has_kernels(capability, archs) == there


@pytest.fixture
def machine(monkeypatch):
    "A function that makes this a machine with GPUs of one kind."
    def make(name, capability, count=1, archs=KAGGLE):
        cuda = dict(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            get_device_name=lambda i: name,
            get_device_capability=lambda i: capability,
            get_arch_list=lambda: archs,
            mem_get_info=lambda i: (2**33, 2**34),
        )
        for key, value in cuda.items(): monkeypatch.setattr(torch.cuda, key, value)
    return make


def test_the_plan_follows_the_card(machine, monkeypatch):
    machine("Tesla T4", (7, 5), count=2)
    assert str(device.pick_device()) == "cuda:0 (Tesla T4), fp16" and device.pick_device().can_compile
    assert device.pick_device("cuda:1").device.index == 1
    assert (
        device.pick_device("cpu").precision == "fp32"
        and device.pick_device("cpu", "bf16").precision == "bf16"
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.pick_device().device.index == 1
    with pytest.raises(InputError, match="only emulates it; use fp16"): device.pick_device(precision="bf16")
    with pytest.raises(InputError, match="there are 2 GPUs"): device.pick_device("cuda:2")
    with pytest.raises(InputError, match="did you mean cuda"): device.pick_device("cuda0")


def test_a_card_without_kernels_is_refused_with_a_remedy(machine):
    machine("Tesla P100", (6, 0))
    with pytest.raises(InputError, match=r"sm_60.*choose a T4 or newer.*cu126.*--device cpu"):
        device.pick_device()
    machine("B300", (10, 3), archs=["sm_90"])
    with pytest.raises(InputError, match=r"sm_103.*install a newer torch"): device.pick_device()


def test_without_a_gpu_the_cpu_is_taken_unless_one_is_asked_for(machine):
    machine("", (0, 0), count=0)
    assert device.pick_device().device.type == "cpu"
    with pytest.raises(InputError, match="sees no GPU; use --device cpu"): device.pick_device("cuda")


def test_the_doctor_tells_cards_and_versions(machine):
    machine("Tesla T4", (7, 5))
    facts = device.doctor()
    assert facts["gpus"] == [
        {
            "name": "Tesla T4",
            "capability": "sm_75",
            "kernels": True,
            "precision": "fp16",
            "torch.compile": True,
            "free GiB": 8.,
            "total GiB": 16.,
        }
    ]
    assert facts["training would use"] == "cuda:0 (Tesla T4), fp16; torch.compile possible"
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"].startswith(
        torch.__version__.split("+")[0]
    )
    machine("Tesla P100", (6, 0))
    assert "choose a T4" in device.doctor()["training would use"]


@pytest.fixture
def apple(monkeypatch):
    "A function that makes this a Mac: `built`, a torch for it; `there`, one that can use it."
    def make(built=True, there=True):
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    return make


def test_mps_on_request_alone(machine, apple):
    machine("", (0, 0), count=0)
    apple()
    plan = device.pick_device("mps")
    assert (plan.device.type, plan.precision, plan.can_compile) == ("mps", "fp32", False) and str(
        plan
    ).startswith("mps (")
    assert device.pick_device().device.type == "cpu", "auto does not choose what was never held against a CPU"
    assert device.doctor()["mps"].startswith("there")
    for precision in ("fp16", "bf16"):
        with pytest.raises(InputError, match=f"precision {precision} was never tried on mps; use fp32"):
            device.pick_device("mps", precision)


@pytest.mark.parametrize("built, "
                         "why", [(False, "for Macs with an Apple processor"), (True, "macOS is too old")])
def test_mps_where_there_is_none(apple, built, why):
    apple(built, there=False)
    with pytest.raises(InputError, match=f"device 'mps'.*{why}; use --device cpu"): device.pick_device("mps")
    assert device.doctor()["mps"] == "none"
    with pytest.raises(InputError, match="did you mean mps"): device.pick_device("msp")


def test_the_accelerator_follows_to_mps(apple, monkeypatch):
    "accelerate must not be told to take the CPU."
    import accelerate
    from ctseg.training import setup
    usual = accelerate.Accelerator
    told = {}
    monkeypatch.setattr(accelerate, "Accelerator", lambda **how: told.update(how) or usual(cpu=True))
    apple()
    setup.make_accelerator(device.pick_device("mps"))
    assert told["cpu"] is False and told["mixed_precision"] == "no"


@pytest.mark.parametrize("name, value", [("ACCELERATE_USE_CPU", "banana"), ("ACCELERATE_USE_DEEPSPEED", "true")])
def test_a_variable_that_accelerate_cannot_use_is_one_line_in_a_running_session_too(monkeypatch, name, value):
    from ctseg.training.setup import make_accelerator
    plan = device.pick_device("cpu", "fp32")
    make_accelerator(plan)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="accelerate does not start: .*; look at the variables ACCELERATE_"):
        make_accelerator(plan)


@pytest.fixture
def processor(monkeypatch):
    "A processor that has these instructions, as torch tells of them; nothing is said in the environment."
    monkeypatch.delenv(device.CPU_PRECISION, raising=False)
    def has(amx: bool, avx512_bf16: bool):
        monkeypatch.setattr(device.torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(device.torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    return has


def test_the_processor_is_named(processor, tmp_path):
    facts = tmp_path/"cpuinfo"
    facts.write_text("processor : 0\nmodel name : Some CPU @ 2 GHz\n")
    processor(True, False)
    assert device.describe_processor(facts) == "Some CPU @ 2 GHz, AMX"
    processor(True, True)
    assert device.describe_processor(facts) == "Some CPU @ 2 GHz, AVX512-BF16 and AMX"
    processor(False, False)
    assert device.describe_processor(tmp_path/"none") == f"{device.processor_name()}, no bfloat16"


@pytest.mark.parametrize("amx, avx, precision", [
    (True, True, "bf16"), (True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32"),
])
def test_a_processor_computes_in_bf16_where_it_can(processor, amx, avx, precision):
    processor(amx, avx)
    assert device.pick_device("cpu").precision == precision
    for asked in ("fp32", "bf16"):  # what is asked for is what is done
        assert device.pick_device("cpu", asked).precision == asked


def test_the_environment_says_what_auto_means_on_a_cpu(processor, monkeypatch):
    processor(False, True)
    for wish in ("fp32", "bf16"):
        monkeypatch.setenv(device.CPU_PRECISION, wish)
        assert device.pick_device("cpu").precision == wish
    monkeypatch.setenv(device.CPU_PRECISION, "half")
    with pytest.raises(InputError, match="expected fp32 or bf16"):
        device.pick_device("cpu")


def test_a_torch_that_does_not_know_the_question_says_no(processor, monkeypatch):
    processor(True, True)
    for question in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(device.torch.cpu, question)
    assert not device.computes_bf16()
