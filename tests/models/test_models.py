"""What is peculiar to one architecture, and what each refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler, Flux2KleinPipeline, FluxPipeline
from diffusers.pipelines.z_image import pipeline_z_image

from directalign.diffusion.sampling import sample
from directalign.models import common, model_class, trainable
from directalign.types import DirectAlignError
from models.cases import CASES, PLAIN
from models.srpo_by_hand import PROMPTS
from models.test_equality import LONG, close, image_of, noise_for, noisy, rollout_of
from tiny import MEDIUM, SIZE

CPU = torch.device("cpu")
LATENTS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=PLAIN)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = CASES[name].folder(tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def model(name, folders):
    return CASES[name].load(folders(name))


def load(name, folder, **settings):
    return CASES[name].load(CASES[name].folder(folder, **settings))


SIZES = {
    "qwen_image_21": (4, 2, 4),
    "ernie_image": (16, 4, 8),
    "flux2": (16, 4, 8),
    "flux2_klein": (16, 4, 8),
    "sd3": (16, 8, 16),
}


def test_sizes(name, model):
    assert model.latent_shape(SIZE, 2 * SIZE) == SIZES.get(name, (4, 8, 16))
    fixed = {"hidream": 2 * SIZE, "krea2": 128 * 4, "qwen_image_21": 64 * 16}
    fixed |= {n: 128 * 4 for n in PLAIN if n.startswith("qwen_image") and n not in fixed}
    assert model.default_size == (fixed.get(name, SIZE),) * 2
    multiple = {"qwen_image_21": 32, "sana": 4}.get(name, 8)
    refusal = f"32x34: both sides must be multiples of {multiple}"
    with pytest.raises(DirectAlignError, match=refusal):
        model.latent_shape(SIZE, SIZE + 2)


def test_guidance_must_fit_the_network(name, model, tmp_path):
    case = CASES[name]
    x_t, sigma, cond = noisy(model, case)
    guided = replace(cond.guided(case.embedded, 3.0), unconditional=None)
    needed = (
        "needs the embedding of the empty prompt"
        if case.two_passes
        else "without a second pass: set cfg_scale: 1"
    )
    with pytest.raises(DirectAlignError, match=needed):
        model.predict(x_t, sigma, guided)
    if name == "flux":
        with pytest.raises(DirectAlignError, match=r"rollout\.embedded_guidance and method\."):
            model.predict(x_t, sigma, cond.guided(None, 1.0))
        model = load("flux", tmp_path, guidance_embeds=False)
        assert model.predict(x_t, sigma, cond.guided(None, 1.0)).shape == x_t.shape
    if case.embedded is None or name == "flux":
        with pytest.raises(
            DirectAlignError, match=r"no input for it: leave rollout\.embedded_guid"
        ):
            model.predict(x_t, sigma, cond.guided(3.5, 1.0))


EDITING = "takes {} channels, text-to-image needs {}: give a plain"
REFINER = {"projection_class_embeddings_input_dim": 5 * 4 + 12}
REFUSED = [
    ("flux", {"in_channels": 32}, EDITING.format(32, 16)),
    ("sd", {"in_channels": 9}, EDITING.format(9, 4)),
    ("qwen_image", {"transformer": {"guidance_embeds": True}}, "guidance_embeds is on"),
    ("qwen_image", {"transformer": {"use_additional_t_cond": True}}, "use_additional_t_cond is on"),
    ("qwen_image", {"scheduler": {"invert_sigmas": True}}, "invert_sigmas is on"),
    ("z_image", {"transformer": {"siglip_feat_dim": 8}}, r"takes images too \(siglip_feat_dim\)"),
    (
        "flux2",
        {"transformer": {"guidance_embeds": False}},
        "guidance_embeds is off, which FLUX.2 d",
    ),
    ("flux2_klein", {"transformer": {"guidance_embeds": True}}, "guidance_embeds is on, which FLU"),
    ("sana", {"scheduler": {"prediction_type": "epsilon", "use_flow_sigmas": False}}, "not Sana's"),
    ("sdxl", {"unet": {"addition_embed_type": None}}, "addition_embed_type is None"),
    ("sdxl", {"unet": {"time_cond_proj_dim": 8}}, "takes its guidance as an input"),
    ("sdxl", {"unet": REFINER}, "takes 32 numbers beside the prompt, SDXL gives 36: refiners"),
    (
        "kolors",
        {"unet": {"projection_class_embeddings_input_dim": 36}},
        "takes 36 numbers beside the prompt, Kolors gives 40",
    ),
    (
        "hidream",
        {"scheduler": {"use_flow_sigmas": False}},
        "a UniPCMultistepScheduler is no solver",
    ),
    ("sd3", {"scheduler": {"stochastic_sampling": True}}, "stochastic_sampling is on"),
    ("sd", {"scheduler": {"prediction_type": "sample"}}, "prediction_type sample"),
    ("sd", {"scheduler": {"rescale_betas_zero_snr": True}}, "set rescale_betas_zero_snr to false"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_a_checkpoint_of_another_kind_is_refused(name, settings, message, tmp_path):
    with pytest.raises(DirectAlignError, match=message) as caught:
        load(name, tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_architecture_is_refused(name, folders):
    other = "sd" if name != "sd" else "sdxl"
    wanted, held = (model_class(each).pipeline for each in (name, other))
    with pytest.raises(DirectAlignError, match=f"holds a {held}, not a {wanted}: set model.arch"):
        CASES[name].load(folders(other))


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_other_vaes_and_samplers_are_refused(tmp_path):
    folder = CASES["sdxl"].folder(tmp_path)
    vae, scheduler = folder / "vae/config.json", folder / "scheduler/scheduler_config.json"
    edit(vae, latents_mean=[0.1, 0, 0, 0], latents_std=[1, 1, 1, 1])
    with pytest.raises(DirectAlignError, match="latents_mean"):
        CASES["sdxl"].load(folder)
    edit(scheduler, clip_sample=True)
    with pytest.raises(DirectAlignError, match="clip_sample is on"):
        CASES["sdxl"].load(folder)
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    with pytest.raises(DirectAlignError, match="a EDMEulerScheduler has no DDPM table"):
        CASES["sdxl"].load(folder)


@pytest.mark.parametrize(("name", "steps"), [("sd", 1000), ("sdxl", 1001)])
def test_more_steps_than_levels_are_refused(name, steps, folders):
    with pytest.raises(DirectAlignError, match="ask for fewer"):
        CASES[name].load(folders(name)).sigmas(steps, SIZE, SIZE)


def test_tokens_and_their_places_are_the_pipelines():
    assert torch.equal(common.pack(LATENTS), FluxPipeline._pack_latents(LATENTS, 2, 3, 4, 6))
    assert torch.equal(common.unpack(common.pack(LATENTS), 4, 6), LATENTS)
    ids = FluxPipeline._prepare_latent_image_ids(1, 2, 3, "cpu", torch.float32)
    assert torch.equal(common.image_places(2, 3, CPU)[:, :3].float(), ids)
    places = Flux2KleinPipeline._prepare_latent_ids(LATENTS)[0]
    assert torch.equal(common.image_places(4, 6, CPU), places)
    texts = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 5, 3))[0]
    assert torch.equal(common.text_places(5, CPU), texts)


def test_flux_sequences_have_512_tokens_unless_the_folder_says_otherwise(tmp_path):
    folder = CASES["flux"].folder(tmp_path)
    (folder / "directalign.json").unlink()
    cond = CASES["flux"].load(folder).encode_prompt(["a star"])
    assert cond.tensors["sequence"].shape[1] == 512


def test_a_distilled_klein_takes_no_guidance(tmp_path):
    case = CASES["flux2_klein"]
    model = case.load(case.folder(tmp_path, is_distilled=True))
    pipeline, noise = case.pipeline(tmp_path), noise_for(model)
    expected = case.call(pipeline, model, PROMPTS, noise, rollout_of(case))
    close(image_of(model, case, noise, rollout_of(case)), expected, atol=1e-4)
    with pytest.raises(DirectAlignError, match=r"cfg_scale 4\.0: this FLUX\.2 klein is distilled"):
        image_of(model, case, noise, rollout_of(case, cfg_scale=4.0))


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *("qwen_image", "z_image", "ernie_image", "krea2", "lumina2", "qwen_image_21"),
        "qwen_image_edit",
    ],
)
def test_a_prediction_does_not_depend_on_the_other_prompts_of_the_batch(name, folders):
    case, model = CASES[name], CASES[name].load(folders(name))
    x_t, sigma, cond = noisy(model, case)
    single = model.predict(x_t[:1], sigma[:1], case.encode(model, PROMPTS[:1]))
    for other in (PROMPTS[1], LONG):
        batched = model.predict(x_t, sigma, case.encode(model, [PROMPTS[0], other]))
        close(batched[:1], single, atol=1e-6)
    sequence, mask = cond.tensors["sequence"], cond.tensors["mask"]
    hidden = torch.where(mask.view(*mask.shape, *[1] * (sequence.ndim - 2)), sequence, 9.0)
    assert not torch.equal(hidden, sequence)
    moved = replace(cond, tensors={**cond.tensors, "sequence": hidden})
    close(model.predict(x_t, sigma, moved), model.predict(x_t, sigma, cond), atol=1e-6)


def test_a_processor_is_read_as_its_tokenizer(folders, tmp_path):
    """FLUX.2 dev's model_index.json names one that needs torchvision."""
    case = CASES["flux2"]
    folder = shutil.copytree(folders("flux2"), tmp_path / "flux2")
    edit(folder / "model_index.json", tokenizer=["transformers", "PixtralProcessor"])
    ours, theirs = (case.load(each).encode_prompt(PROMPTS) for each in (folder, folders("flux2")))
    assert torch.equal(ours.tensors["sequence"], theirs.tensors["sequence"])


def test_a_qwen_image_21_with_levels_of_its_own(tmp_path):
    case = CASES["qwen_image_21"]
    model = case.load(case.folder(tmp_path, sample_sigmas=[1.0, 0.7, 0.2]))
    pipeline, noise, rollout = case.pipeline(tmp_path), noise_for(model), rollout_of(case, steps=3)
    close(
        image_of(model, case, noise, rollout),
        case.call(pipeline, model, PROMPTS, noise, rollout),
        atol=1e-4,
    )
    with pytest.raises(DirectAlignError, match="4: this checkpoint is sampled at 3 levels"):
        model.sigmas(4, SIZE, SIZE)


def test_a_model_that_reads_sources_with_prompts_refuses_prompts_alone(folders):
    case, folder = CASES["qwen_image_edit"], folders("qwen_image_edit")
    with pytest.raises(DirectAlignError, match=r"free is not supported here .*: set offload"):
        case.load(folder, text_encoders="free")
    model = case.load(folder)
    with pytest.raises(DirectAlignError, match="reads each prompt with its source image"):
        model.encode_prompt(PROMPTS)
    with pytest.raises(DirectAlignError, match=r"holds <\|image_pad\|>, the placeholder"):
        case.encode(model, ["a <|image_pad|>"])


@torch.no_grad()
def test_qwen_image(folders):
    case = CASES["qwen_image"]
    model, pipeline = case.load(folders("qwen_image")), case.pipeline(folders("qwen_image"))
    assert model.encode_prompt([*PROMPTS, LONG]).tensors["mask"].sum(1).tolist() == [8, 12, 512]
    instruction = model.template.split("{}")[0]
    assert len(model.tokenizers[0](instruction).input_ids) == model.dropped == 34
    x_t, sigma, cond = noisy(model, case)
    guided = (model.predict(x_t, sigma, cond.guided(None, scale)) for scale in (1.0, 3.0))
    one, three = (common.pack(each).norm(dim=-1) for each in guided)
    close(three, one, atol=1e-5)
    assert model.sigmas(4, SIZE, SIZE)[-2:].tolist() == pytest.approx([0.02, 0])
    for vae in (model.vae, pipeline.vae):
        vae.decoder.conv_out.bias += 2.5
    bright, clamped = model.decode(x_t), case.vae.decode(pipeline, x_t)
    assert bright.max() > 1.2
    close(bright.clamp(0, 1), clamped, atol=1e-5)


def test_qwen_image_with_a_fixed_shift(tmp_path):
    scheduler = {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None}
    sigmas = load("qwen_image", tmp_path, scheduler=scheduler).sigmas(2, SIZE, SIZE)
    close(sigmas, torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64), atol=1e-7)


@pytest.mark.skipif(
    not hasattr(pipeline_z_image, "get_default_z_image_sigmas"),
    reason="this release repeats the last level",
)
def test_the_grid_of_z_image_is_the_pipelines_own(folders):
    case = CASES["z_image"]
    model, pipeline = case.load(folders("z_image")), case.pipeline(folders("z_image"))
    noise = noise_for(model)
    images = case.call(pipeline, model, PROMPTS, noise, rollout_of(case), sigmas=None)
    close(image_of(model, case, noise, rollout_of(case)), images, atol=1e-4)


def test_adapters_cover_every_attention_and_both_kinds_of_blocks(folders, tmp_path):
    names = trainable(CASES["flux2_klein"].load(folders("flux2_klein"), tune="lora"))
    assert any(name.startswith("transformer_blocks.0.ff_context.linear_in") for name in names)
    assert any(name.startswith("single_transformer_blocks.0.attn.to_qkv") for name in names)
    medium = CASES["sd3"].folder(tmp_path, transformer=MEDIUM)
    for folder, dual in ((folders("sd3"), False), (medium, True)):
        names = trainable(CASES["sd3"].load(folder, tune="lora"))
        assert any(".attn.add_k_proj." in name for name in names)
        assert any(".attn2.to_out.0." in name for name in names) is dual


def test_sizes_beyond_the_positions_of_a_model_and_a_missing_t5_are_refused(tmp_path):
    case = CASES["sd3"]
    model = case.load(case.folder(tmp_path))
    assert model.latent_shape(SIZE, 192) == (16, 8, 48)
    with pytest.raises(DirectAlignError, match=r"end at 192 pixels a side \(pos_embed_max_size 24"):
        model.latent_shape(SIZE, 200)
    aura = load("aura_flow", tmp_path / "aura")
    with pytest.raises(DirectAlignError, match="end at 192 pixels a side: choose a smaller"):
        aura.latent_shape(SIZE, 200)
    hidream = load("hidream", tmp_path / "hidream")
    assert hidream.latent_shape(3 * SIZE, 3 * SIZE) == (4, 24, 24)
    with pytest.raises(DirectAlignError, match="is 80 tokens, and this model takes 64 at most"):
        hidream.latent_shape(SIZE, 5 * SIZE)
    (tmp_path / "tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(DirectAlignError, match=r"tokenizer_3: lacks .*tokenizer\.json"):
        case.load(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("upcast", [True, False])
def test_a_vae_that_overflows_in_half_precision_stays_in_float32(tmp_path, upcast):
    case = CASES["sdxl"]
    case.folder(tmp_path, force_upcast=upcast)
    low, exact = (case.load(tmp_path, tune="lora", dtype=each) for each in ("bfloat16", "float32"))
    assert low.vae.dtype == (torch.float32 if upcast else torch.bfloat16)
    assert next(low.prompts.modules["text_encoder"].parameters()).dtype == torch.bfloat16
    x0 = noise_for(low)
    close(low.decode(x0), exact.decode(x0), atol=1e-6 if upcast else 5e-2)


def test_the_path_and_prediction_of_ddpm_models_follow_the_scheduler(folders, tmp_path):
    epsilon = CASES["sd"].load(folders("sd"))
    v = CASES["sd_v_zero_snr"].load(CASES["sd_v_zero_snr"].folder(tmp_path))
    assert (epsilon.path, epsilon.prediction) == ("vp", "epsilon")
    assert (v.path, v.prediction, v.sigmas(5, SIZE, SIZE)[0]) == ("vp", "v", 1)
    levels = (1 - epsilon.scheduler.alphas_cumprod[[751, 501, 251, 1]].double()).sqrt()
    close(epsilon.sigmas(4, SIZE, SIZE)[:-1], levels, atol=1e-12)


def test_a_model_of_the_users_own(tmp_path, folders):
    source = "from directalign.models.sd import StableDiffusion\n\nclass Mine(StableDiffusion):\n"
    (tmp_path / "mine.py").write_text(f"{source}    title = 'mine'\n")
    case = replace(CASES["sd"], architecture=f"{tmp_path / 'mine.py'}:Mine")
    model = case.load(folders("sd"))
    cond = model.encode_prompt(PROMPTS)
    images = model.decode(sample(model, cond, noise_for(model), model.sigmas(2, SIZE, SIZE)))
    assert images.shape == (2, 3, SIZE, SIZE) and model.title == "mine"
    for architecture, message in (
        ("fluxx", "fluxx is not known: choose one of flux, .*; did you mean flux"),
        (f"{tmp_path / 'mine.py'}:Yours", "has no class 'Yours'"),
        (f"{tmp_path / 'other.py'}:Mine", "no such Python file"),
    ):
        with pytest.raises(DirectAlignError, match=f"model.architecture: .*{message}"):
            model_class(architecture)
