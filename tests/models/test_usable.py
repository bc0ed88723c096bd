"""Networks of others: refused, cast, and put back as they were given."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrizations, prune

from fskd.errors import SettingError
from fskd.models.usable import check_kind, check_rows, format_of, make_usable, restore


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 64, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *head)


def images(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def mixed() -> nn.Module:
    net = conv_net().double()
    net[0].half()
    return net


@pytest.mark.parametrize(
    ("make", "notes"),
    [
        (conv_net, []),
        (lambda: conv_net().half(), ["parameters cast from float16 to float32"]),
        (lambda: conv_net().bfloat16(), ["parameters cast from bfloat16 to float32"]),
        (mixed, ["parameters cast from float16 and float64 to float32"]),
    ],
)
def test_precision(make, notes):
    net = make()
    weight, values = net[0].weight, net[0].weight.detach().clone()
    assert make_usable(net, "student") == notes
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32, torch.int64}
    assert net[0].weight is weight
    assert torch.equal(weight, values.float())
    assert net(images()).shape == (2, 5)


def frozen(net: nn.Module, names: str = "") -> nn.Module:
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return net


def test_frozen_parameters():
    assert make_usable(frozen(conv_net(), "0."), "student") == [
        "2 of 6 parameters are frozen and stay as they are"
    ]
    with pytest.raises(SettingError, match=r"student: 'Sequential' .none of its 6 parameters"):
        make_usable(frozen(conv_net()), "student")
    assert make_usable(frozen(conv_net()), "teacher") == []
    assert make_usable(frozen(conv_net()), "student", trains=False) == []


def test_values_that_are_not_finite_are_told():
    net = conv_net()
    net[0].weight.data[0] = float("nan")
    assert make_usable(net, "teacher") == ["1 of 6 parameters hold NaN or infinity"]


def weight_normed() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))


def spectral_normed() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)))


def pruned() -> nn.Module:
    return nn.Sequential(prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5))


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (weight_normed, "parametrizations.weight_norm"),
        (spectral_normed, "parametrizations.spectral_norm"),
        (pruned, "prune.remove"),
    ],
)
def test_old_reparametrisations_cannot_be_copied(make, way_out):
    net = make()
    net(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(net)
    for setting in ("student", "teacher"):
        with pytest.raises(SettingError, match=way_out):
            make_usable(net, setting)


def test_kept_activations_cannot_be_copied():
    net = conv_net()
    net[2].last = net(images())
    with pytest.raises(SettingError, match=r"ReLU keeps a computed tensor as \.last"):
        check_kind(net, "teacher", trains=False)
    net[2].last = net[2].last.detach()
    check_kind(net, "teacher", trains=False)
    copy.deepcopy(net)


def test_new_parametrisations_work(tmp_path):
    net = conv_net()
    parametrizations.weight_norm(net[0])
    net(images())
    assert make_usable(net.half(), "student") == ["parameters cast from float16 to float32"]
    twin = copy.deepcopy(net)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(twin.eval()(images()), net.eval()(images()))


def int8() -> nn.Module:
    net = conv_net()
    net[5].weight = nn.Parameter(torch.zeros(5, 256, dtype=torch.int8), requires_grad=False)
    return net


def float8() -> nn.Module:
    net = conv_net()
    net[5].weight = nn.Parameter(net[5].weight.to(torch.float8_e4m3fn), requires_grad=False)
    return net


def packed() -> nn.Module:
    net = conv_net()
    kind = type("Linear", (nn.Identity,), {"__module__": "torch.ao.nn.quantized.dynamic.modules"})
    net[5] = kind()
    return net


def traced() -> nn.Module:
    return torch.jit.trace(conv_net().eval(), images())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (int8, "quantised: torch.int8"),
        (float8, "quantised: torch.float8"),
        (packed, "quantised: Linear"),
        (lambda: conv_net().to("meta"), "meta device"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "LazyLinear is not known yet"),
        (lambda: nn.Sequential(nn.LazyBatchNorm2d(affine=False)), "is not known yet"),
        (lambda: nn.DataParallel(conv_net()), r"DataParallel around .* expected its \.module"),
        (traced, "torch.jit module.*the nn.Module it was traced from"),
        (lambda: nn.Sequential(traced()), "torch.jit module"),
    ],
)
def test_kinds_that_are_refused(make, says):
    with pytest.raises(SettingError, match=rf"^student: .*{says}") as caught:
        make_usable(make(), "student")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_module_has_one_mode_and_may_teach():
    net = traced()
    assert torch.equal(net.train()(images()), net(images()))  # though it has dropout
    assert make_usable(net, "teacher") == []


def test_a_lazy_network_that_was_run_is_fine():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    net(images())
    assert make_usable(net, "student") == []


def test_one_row_and_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).eval()
    other = conv_net()
    state, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    says = "optim.batch_size: 1 .batch norm of the student 'Sequential'.*at least 2"
    with pytest.raises(SettingError, match=says):
        check_rows(net, (3, 8, 8), 1, "student")
    check_rows(net, (3, 8, 8), 2, "student")
    check_rows(net, (3, 16, 16), 1, "student")  # more than one pixel; the rest is not its business
    check_rows(other, (3, 8, 8), 1, "student")
    assert not net.training
    assert torch.equal(random, torch.random.get_rng_state())
    for key, value in state.items():
        assert torch.equal(net.state_dict()[key], value)


def given(kind: str) -> nn.Module:
    net = frozen(conv_net(), "5.bias")
    net[1].eval()
    if kind == "half":
        return net.half()
    return net.to(memory_format=torch.channels_last) if kind == "channels_last" else net


@pytest.mark.parametrize("kind", ["plain", "half", "channels_last"])
def test_a_network_comes_back_as_it_was_given(kind, tmp_path):
    net = given(kind)
    weight, before = net[0].weight, format_of(net)
    make_usable(net, "student")
    net.to(
        memory_format=torch.channels_last if kind != "channels_last" else torch.contiguous_format
    )
    net.train().requires_grad_(True)
    net(images()).sum().backward()
    with torch.no_grad():
        weight.add_(1)
    learned = weight.detach().clone()
    assert format_of(net) != before
    restore(net, before)
    assert format_of(net) == before
    assert net[0].weight is weight
    assert torch.equal(weight, learned.to(weight.dtype))
    assert not net[1].training
    assert net[0].training
    assert not net[5].bias.requires_grad
    if kind != "channels_last":  # of which neither knows
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        assert parameters_to_vector(net.parameters()).dtype == weight.dtype
    else:
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_what_is_tied_stays_tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    net[1].weight = net[0].weight
    before = format_of(net)
    make_usable(net, "student")
    restore(net, before)
    assert net[1].weight is net[0].weight
    assert net[1].weight.dtype == torch.float16


def test_a_format_can_be_kept():
    before = format_of(given("half"))
    assert pickle.loads(pickle.dumps(before)) == before
