"""Image metrics: the libraries' arithmetic, where weights do not matter, compared with closed
forms.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from refusals import refused

from tdmvid.data.video import write_image
from tdmvid.scoring.image_metrics import METRICS
from tdmvid.scoring.image_metrics.base import ImageSet, Pictures, read_rgb
from tdmvid.scoring.image_metrics.clip import Clip, aesthetic
from tdmvid.scoring.image_metrics.diversity import diversity, lpips_distance
from tdmvid.scoring.image_metrics.fid import set_metrics
from tdmvid.scoring.image_metrics.text import edit_distance, legibility, wanted_text

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None,
    reason="text was not read: no tesseract here (apt-get install tesseract-ocr)",
)


def library(name):
    return pytest.importorskip(
        name,
        reason=f"{name} was left out: pip install '.[image-metrics]'",
        exc_type=(ImportError, RuntimeError),
    )


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    files = [tmp_path / f"{index}.png" for index in range(6)]
    for file in files:
        write_image(file, torch.rand(3, 40, 48, generator=generator) * 2 - 1)
    return files


def test_a_real_image_is_read_upright_and_on_white(tmp_path):
    """Like the first frames of image-to-video, so that a photo of a phone is not on its side."""
    turned, clear = tmp_path / "a.jpg", tmp_path / "b.png"
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    Image.new("RGB", (16, 8), "red").save(turned, exif=exif)
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(clear)
    assert read_rgb(turned).size == (8, 16)
    assert read_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "a, b, distance",
    [
        ("", "", 0),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("same", "same", 0),
    ],
)
def test_edits_are_counted(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    "prompt, text",
    [
        ('a sign that says "Open now"', "Open now"),
        ("a shop called “Tea”, with 'Buns'", "Tea Buns"),
        ("a dog's bone on the dog's rug", ""),
        ("a cat", ""),
        ('a sign that says "!!!"', ""),
        ('"?" beside "Exit"', "Exit"),
        ("the dogs' toys and the cats' toys", ""),
        ("It's the players' cup", ""),
        ("a 'Stop' sign", "Stop"),
    ],
)
def test_what_is_to_be_written_stands_in_quotation_marks(prompt, text):
    assert wanted_text(prompt) == text


@needs_tesseract
def test_what_is_written_is_read_and_another_word_is_not(tmp_path):
    image = Image.new("RGB", (640, 200), "white")
    ImageDraw.Draw(image).text(
        (40, 50), "OPEN NOW", fill="black", font=ImageFont.load_default(size=90)
    )
    image.save(tmp_path / "sign.png")
    assert legibility(tmp_path / "sign.png", "Open now") == 1
    assert legibility(tmp_path / "sign.png", "Fresh bread") < 0.4
    Image.new("RGB", (640, 200), "white").save(tmp_path / "blank.png")
    assert legibility(tmp_path / "blank.png", "Open now") == 0


def test_pictures_of_different_sizes_show_their_middle_square(tmp_path):
    image = torch.full((3, 20, 40), -1.0)
    image[:, :, 10:30] = 1.0
    write_image(tmp_path / "wide.png", image)
    assert (
        Pictures([tmp_path / "wide.png"], 16)[0].shape == (3, 16, 16)
        and (Pictures([tmp_path / "wide.png"], 16)[0] == 255).all()
    )


def test_diversity_is_the_mean_over_pairs_of_a_prompt(pictures):

    def first(file):
        return Pictures([file], 8)[0].float().div(127.5).sub(1)

    def distance(a, b):
        return (a - b).abs().mean().item()

    found = diversity(
        {"one": pictures[:1], "three": pictures[:3], "copies": [pictures[0]] * 2}, distance, side=8
    )
    a, b, c = (first(file) for file in pictures[:3])
    assert found == {
        "three": pytest.approx((distance(a, b) + distance(a, c) + distance(b, c)) / 3),
        "copies": 0,
    }
    with refused("seeds", "2"):
        diversity({"one": pictures[:1]}, distance, side=8)


def test_the_aesthetic_head_is_linear(tmp_path):
    weight, features = (
        torch.randn(1, 768),
        torch.nn.functional.normalize(torch.randn(3, 768), dim=1),
    )
    torch.save({"weight": weight, "bias": torch.tensor([5.0])}, tmp_path / "head.pth")
    assert torch.allclose(
        aesthetic(features, tmp_path / "head.pth"), features @ weight[0] + 5, atol=1e-5
    )


def test_clip_and_aesthetic_scores_share_one_pass_and_average_over_a_prompt(
    pictures, tmp_path, monkeypatch
):
    """Unit-length features of 1, 2, ...: the cosine with the only text is known."""
    loaded = []

    def load(cache, device):
        loaded.append(cache)
        return SimpleNamespace(
            images=lambda files: torch.eye(3)[: len(files)],
            texts=lambda prompts: torch.tensor([[1.0, 0, 0]] * len(prompts)),
        )

    monkeypatch.setattr("tdmvid.scoring.image_metrics.clip.load_clip", load)
    head = tmp_path / METRICS["aesthetic"].needs[0].path
    head.parent.mkdir()
    torch.save({"weight": torch.tensor([[1.0, 2, 4]]), "bias": torch.tensor([5.0])}, head)
    images = ImageSet(pictures[:3], ["a", "a", "b"], side=32, cache=tmp_path)
    assert METRICS["clip"].score(images) == {"a": 50, "b": 0}
    assert METRICS["aesthetic"].score(images) == {"a": 6.5, "b": 9} and len(loaded) == 1


def test_hps_pads_an_image_and_clip_crops_it(tmp_path):
    library("open_clip")
    wide = torch.ones(3, 64, 128)
    wide[..., :20] = -1  # outside the central square
    write_image(tmp_path / "wide.png", wide)
    with Image.open(tmp_path / "wide.png") as image:
        whole, middle = (
            Clip("RN50", None, whole=whole).transform(image) for whole in (True, False)
        )
    black = whole[:, 0, 0]
    assert (whole[:, :56] == black.view(3, 1, 1)).all() and (black == whole[:, :, 0].T).all()
    assert not (middle[:, 0, 0] == black).any() and (middle - middle[:, :1, :1]).abs().max() < 1e-5


@pytest.mark.slow
def test_clip_scores_are_cosines_of_loaded_weights(pictures, tmp_path):
    """Stored random weights are loaded. A score is 100 cos, and an image with its own features
    scores 100.
    """
    library("open_clip")
    made = Clip("RN50", None)  # the smallest architecture; random weights
    torch.save({"state_dict": made.model.state_dict()}, tmp_path / "clip.pt")
    loaded = Clip("RN50", tmp_path / "clip.pt", batch=2)
    features, texts = loaded.images(pictures[:3]), loaded.texts(["a", "b", "c"])
    assert torch.allclose(features, made.images(pictures[:3]), atol=1e-5) and torch.allclose(
        features.norm(dim=1), torch.ones(3), atol=1e-5
    )
    assert torch.allclose(
        loaded.similarity(pictures[:3], ["a", "b", "c"]),
        100 * torch.cosine_similarity(features, texts),
        atol=1e-3,
    )


def test_a_batch_of_images_is_encoded_before_the_next_is_read(pictures):
    """Otherwise 30,000 images would take 18 GB."""
    clip, events = object.__new__(Clip), []
    clip.batch, clip.device = 2, "cpu"
    clip.transform = lambda image: events.append("read") or torch.zeros(3, 2, 2)
    clip.model = SimpleNamespace(
        encode_image=lambda part, normalize: events.append("encoded") or part.flatten(1)
    )
    assert clip.images(pictures[:4]).shape == (4, 12)
    assert events == ["read", "read", "encoded"] * 2


@pytest.fixture
def inception(tmp_path):
    """Random weights in the format of the extractor. The checks do not depend on their values."""
    library("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(
            self, state
        ):  # the constructor loads a file, so write this network's weights to one
            return super().load_state_dict(super().state_dict())

    torch.manual_seed(0)
    empty = tmp_path / "empty.pth"
    torch.save({}, empty)
    torch.save(
        Random(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty)
        ).state_dict(),
        tmp_path / "inception.pth",
    )
    return tmp_path / "inception.pth"


@pytest.mark.slow
def test_a_set_against_itself_has_no_distance_and_whole_precision_and_recall(pictures, inception):
    found = set_metrics(pictures, pictures, ["fid", "precision_recall"], inception, side=32)
    assert found["fid"] == pytest.approx(0, abs=1e-2) and found["precision"] == found["recall"] == 1


@pytest.mark.slow
def test_fid_precision_and_recall_are_their_papers_formulas_of_the_extractor_s_features(
    tmp_path, pictures, inception
):
    """Formulas of arXiv 1706.08500 and 1904.06991, on features of the library's own network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(1)
    others = [tmp_path / f"other_{index}.png" for index in range(5)]
    for file in others:
        write_image(file, torch.rand(3, 40, 48) * torch.rand(3, 1, 1) * 2 - 1)
    extractor = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception)
    ).eval()
    with torch.no_grad():
        a, b = (
            extractor(torch.stack([Pictures([file], 32)[0] for file in files]))[0].double()
            for files in (pictures, others)
        )
    a0, b0 = a - a.mean(0), b - b.mean(0)
    # tr sqrt(Ca Cb) is the nuclear norm of A0 B0' / sqrt((n - 1) (m - 1)): no root of a 2048 x 2048
    # matrix.
    shared = torch.linalg.matrix_norm(a0 @ b0.T, "nuc") / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    fid = (
        (a.mean(0) - b.mean(0)).square().sum()
        + a0.square().sum() / (len(a) - 1)
        + b0.square().sum() / (len(b) - 1)
        - 2 * shared
    )

    def inside(x, y):  # within 3 neighbours and the point itself
        reach = torch.cdist(y, y).kthvalue(4, 1).values
        return (torch.cdist(x, y) <= reach).any(1).double().mean().item()

    found = set_metrics(pictures, others, ["fid", "precision_recall"], inception, side=32)
    assert found["fid"] == pytest.approx(fid.item(), rel=1e-3) and fid > 0
    assert (found["precision"], found["recall"]) == pytest.approx(
        (inside(a, b), inside(b, a)), abs=1e-6
    )


def test_lpips_is_the_library_s_distance_on_the_weights_of_the_cache(tmp_path, pictures):
    """Random weights in the place where torchvision looks for AlexNet's. Nothing is downloaded."""
    library("lpips")
    import lpips
    from torchvision.models import alexnet

    torch.manual_seed(0)
    made = alexnet(weights=None)
    path = tmp_path / METRICS["diversity"].needs[0].path
    path.parent.mkdir(parents=True)
    torch.save(made.state_dict(), path)
    distance = lpips_distance(tmp_path)
    a, b = (Pictures([file], 64)[0].float().div(127.5).sub(1) for file in pictures[:2])
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    network.net.load_state_dict(alexnet_slices(network, made))
    with torch.no_grad():
        assert distance(a, b) == pytest.approx(network(a[None], b[None]).item(), rel=1e-4)
    assert (
        distance(a, a) == 0
        and distance(a, b) == pytest.approx(distance(b, a))
        and distance(a, b) > 0
    )


def alexnet_slices(network, alexnet):
    """Return AlexNet's convolutions by their names in LPIPS: five slices with AlexNet's layer
    numbers.
    """
    return {
        key: alexnet.features.state_dict()[key.split(".", 1)[1]] for key in network.net.state_dict()
    }


def test_too_few_images_are_refused(pictures, tmp_path):
    library("torch_fidelity")
    with refused("3", "6", "4"):
        set_metrics(pictures[:3], pictures, ["fid"], tmp_path, side=32)


def test_fid_and_precision_of_given_features_are_the_closed_forms():
    """The library's functions give |m1 - m2|^2 + tr(...) for Gaussians, and 0 precision for a copy
    shifted out of reach.
    """
    library("torch_fidelity")
    import numpy as np
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a = {"mu": np.array([0.0, 0.0]), "sigma": np.diag([1.0, 4.0])}
    b = {"mu": np.array([3.0, 4.0]), "sigma": np.diag([9.0, 1.0])}
    assert fid_statistics_to_metric(a, b, verbose=False)[
        "frechet_inception_distance"
    ] == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)
    points = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    near, far = (
        prc_features_to_metric(
            points + shift,
            points,
            prc_neighborhood=3,
            prc_batch_size=64,
            save_cpu_ram=False,
            verbose=False,
        )
        for shift in (0.0, 100.0)
    )
    assert (near["precision"], near["recall"], far["precision"], far["recall"]) == (1, 1, 0, 0)
