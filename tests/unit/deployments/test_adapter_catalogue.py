import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.adapters import AdapterCatalogue
from deployments.errors import AdapterUnusable, UnknownAdapter
from deployments.lora_header import MAX_TENSORS
from deployments.models import AdapterSettings, ModelSettings
from deployments.pipelines.base import AdapterTarget

SD15 = AdapterTarget("unet", cross_attention_dim=768)
FLUX = AdapterTarget("transformer", inner_dim=3072)

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
BLOCK = "transformer.transformer_blocks.0.attn.to_q"


def pair(layer: str, width: int = 768, rank: int = 4, names: tuple[str, str] = (".lora_A", ".lora_B")) -> dict:
    return {
        f"{layer}{names[0]}.weight": np.zeros((rank, width), np.float32),
        f"{layer}{names[1]}.weight": np.zeros((320, rank), np.float32),
    }


def catalogue(folder: Path, target: AdapterTarget = SD15, **bounds: int) -> AdapterCatalogue:
    return AdapterCatalogue(AdapterSettings(folder=str(folder), **bounds), target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapters" / "saved").mkdir(parents=True)
    save_file(pair(DIFFUSERS), tmp_path / "secret.safetensors")
    save_file(pair(DIFFUSERS), tmp_path / "adapters" / "style.safetensors")
    save_file(pair(DIFFUSERS), tmp_path / "adapters" / "saved" / "pytorch_lora_weights.safetensors")
    (tmp_path / "adapters" / "notes.txt").write_text("")
    return tmp_path / "adapters"


def test_names_are_those_of_files_and_saved_folders(folder: Path) -> None:
    assert catalogue(folder).names() == ("saved", "style")


@pytest.mark.parametrize("name", ["style", "style.safetensors", "saved"])
def test_an_adapter_is_found_by_its_name(folder: Path, name: str) -> None:
    adapter = catalogue(folder).resolve(name)
    assert (adapter.name, adapter.rank, adapter.layers) == (name.removesuffix(".safetensors"), 4, 1)


def test_without_a_folder_there_are_no_adapters() -> None:
    empty = AdapterCatalogue(AdapterSettings())
    assert empty.names() == ()
    with pytest.raises(UnknownAdapter, match="none are installed"):
        empty.resolve("style")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "../secret.safetensors",
        "./style",
        "saved/../style",
        "/etc/passwd",
        "style\0",
        "STYLE",
        "saved/pytorch_lora_weights",
        "..\\secret",
        "notes.txt",
        "notes",
        "style\n",
        "x" * 500,
        "%2e%2e/secret",
    ],
)
def test_what_is_no_name_in_the_folder_is_unknown_and_the_known_ones_are_listed(folder: Path, name: str) -> None:
    with pytest.raises(UnknownAdapter, match="known adapters: saved, style") as caught:
        catalogue(folder).resolve(name)
    assert caught.value.names == ("saved", "style")


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "outside").mkdir()
    save_file(pair(DIFFUSERS), tmp_path / "outside" / "pytorch_lora_weights.safetensors")
    (folder / "linked").symlink_to(tmp_path / "outside")
    assert catalogue(folder).names() == ("saved", "style")
    for name in ("link", "linked"):
        with pytest.raises(UnknownAdapter):
            catalogue(folder).resolve(name)


def test_links_inside_the_folder_and_a_linked_folder_work(folder: Path, tmp_path: Path) -> None:
    (folder / "alias.safetensors").symlink_to(folder / "style.safetensors")
    (tmp_path / "mount").symlink_to(folder)
    assert catalogue(tmp_path / "mount").resolve("alias").rank == 4


def test_a_replaced_file_has_another_version(folder: Path) -> None:
    before = catalogue(folder).resolve("style").version
    save_file(pair(DIFFUSERS, rank=8), folder / "new")
    (folder / "new").replace(folder / "style.safetensors")
    assert catalogue(folder).resolve("style").version != before


@pytest.mark.parametrize(
    ("tensors", "target"),
    [
        (pair(DIFFUSERS), SD15),
        (pair(DIFFUSERS, names=(".lora.down", ".lora.up")), SD15),
        (pair(KOHYA, names=(".lora_down", ".lora_up")) | {f"{KOHYA}.alpha": np.float32(4)}, SD15),
        (pair("lora_te_text_model_encoder_layers_0_mlp_fc1", names=(".lora_down", ".lora_up")), SD15),
        (pair(BLOCK, 3072), FLUX),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", 3072, names=(".lora_down", ".lora_up")), FLUX),
        (pair("double_blocks.0.processor.qkv_lora1", 3072, names=(".down", ".up")), FLUX),
        (pair(DIFFUSERS, 2048), AdapterTarget()),
    ],
    ids=["peft", "diffusers", "kohya", "kohya text encoder", "flux", "kohya flux", "xlabs flux", "unknown model"],
)
def test_formats_that_fit_are_accepted(tmp_path: Path, tensors: dict, target: AdapterTarget) -> None:
    save_file({key: np.asarray(tensor) for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    assert catalogue(tmp_path, target).resolve("a").rank == 4


def saved(tensors: dict[str, np.ndarray]) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path)


def written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def header(tensors: object, data: bytes = b"") -> Callable[[Path], object]:
    text = json.dumps(tensors).encode()
    return written(len(text).to_bytes(8, "little") + text + data)


def spec(offsets: tuple[int, int], shape: tuple[int, ...] = (2, 2), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def cut_off(path: Path) -> None:
    save_file(pair(DIFFUSERS), path)
    path.write_bytes(path.read_bytes()[:-1])


REFUSALS: list[tuple[str, Callable[[Path], object], AdapterTarget, str]] = [
    ("another U-Net", saved(pair(DIFFUSERS, 2048)), SD15, "another model family.*2048.*768"),
    ("kohya, another U-Net", saved(pair(KOHYA, 1024, names=(".lora_down", ".lora_up"))), SD15, "another model family"),
    ("transformer for a U-Net", saved(pair(BLOCK, 3072)), SD15, "another model family.*transformer.*unet"),
    ("U-Net for a transformer", saved(pair(DIFFUSERS)), FLUX, "another model family"),
    ("smaller Flux", saved(pair(BLOCK, 1536)), FLUX, "another model family.*1536.*3072"),
    ("rank", saved(pair(DIFFUSERS, rank=300)), SD15, "rank 300; the limit is 256"),
    ("a whole model", saved({"unet.conv_in.weight": np.zeros((4, 4), np.float32)}), SD15, "no plain LoRA"),
    ("DoRA", saved(pair(DIFFUSERS) | {f"{DIFFUSERS}.dora_scale": np.zeros(3, np.float32)}), SD15, "no plain LoRA"),
    ("half a pair", saved({f"{DIFFUSERS}.lora_A.weight": np.zeros((4, 768), np.float32)}), SD15, "incomplete"),
    (
        "ranks differ",
        saved(pair(DIFFUSERS) | {f"{DIFFUSERS}.lora_B.weight": np.zeros((320, 5), np.float32)}),
        SD15,
        "do not fit",
    ),
    ("integers", saved({k: v.astype(np.int32) for k, v in pair(DIFFUSERS).items()}), SD15, "I32"),
    ("nothing", written(b""), SD15, "not a safetensors file"),
    ("a pickle", written(b"\x80\x04\x95" + b"x" * 100), SD15, "not a safetensors file"),
    ("huge header", written((1 << 40).to_bytes(8, "little") + b"{}"), SD15, "not a safetensors file"),
    ("no JSON", written((4).to_bytes(8, "little") + b"{\xff}}"), SD15, "header is damaged"),
    ("deep JSON", written((100_000).to_bytes(8, "little") + b"[" * 100_000), SD15, "header is damaged"),
    ("a list", header([1]), SD15, "header is damaged"),
    ("no tensors", header({}), SD15, "0 tensors"),
    # Refused by their number, before anything is made of them.
    ("a host of tensors", header(dict.fromkeys(map(str, range(MAX_TENSORS + 1)))), SD15, "allowed are 1 to"),
    ("cut off", cut_off, SD15, "damaged or cut off"),
    (
        "overlapping",
        header({"a.lora_A.weight": spec((0, 16)), "a.lora_B.weight": spec((8, 24))}, b"x" * 24),
        SD15,
        "cut",
    ),
    ("beyond the file", header({"a.lora_A.weight": spec((0, 1 << 60))}, b"x" * 16), SD15, "cut off"),
    (
        "size and shape differ",
        header({"a.lora_A.weight": spec((0, 16), (1 << 40, 1 << 40))}, b"x" * 16),
        SD15,
        "cut off",
    ),
    ("negative shape", header({"a.lora_A.weight": spec((0, 16), (-2, -2))}, b"x" * 16), SD15, "empty tensor"),
    ("unknown dtype", header({"a.lora_A.weight": spec((0, 4), dtype="F8_E5M2")}, b"x" * 4), SD15, "F8_E5M2"),
]


@pytest.mark.parametrize(
    ("write", "target", "sentence"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_a_file_that_must_not_be_loaded_is_refused_with_a_sentence(
    tmp_path: Path, write: Callable[[Path], object], target: AdapterTarget, sentence: str
) -> None:
    write(tmp_path / "bad.safetensors")
    with pytest.raises(AdapterUnusable, match=sentence) as caught:
        catalogue(tmp_path, target).resolve("bad")
    assert "'bad'" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_above_the_size_limit_is_refused_unread(folder: Path) -> None:
    with pytest.raises(AdapterUnusable, match="the limit is 100"):
        catalogue(folder, max_size_bytes=100).resolve("style")


def test_the_catalogue_of_a_model_knows_what_fits_it(models: Path, adapter_folder: Path) -> None:
    def of(model: str) -> AdapterCatalogue:
        adapters = AdapterSettings(folder=str(adapter_folder))
        return AdapterCatalogue.of(ModelSettings(source=str(models / model), adapters=adapters))

    assert of("sd").resolve("style").layers == 2
    for other in ("sdxl", "flux"):
        with pytest.raises(AdapterUnusable, match="another model family"):
            of(other).resolve("style")
