"""HiDream-I1: rectified flow on plain latents; a mixture of experts beside T5 and every layer of a
Llama, with a pooled embedding of two CLIPs.

The network predicts x0 - noise. Guidance takes two passes. HiDream-I1-Full names a multistep
solver; here, as with a plain Euler scheduler in the pipeline, sampling is Euler under the same
shift. The pipeline's call scales every size to the area of its `default_sample_size`, 1024x1024;
here an image has the size that is asked for. Left out: the distilled Dev and Fast, which are
sampled with new noise at every step.

The repository of the release comes without the Llama (3.1 8B Instruct): `model.args.llama` names
its folder or hub id. A folder that was saved with it needs none.
"""

import math
from collections.abc import Mapping
from pathlib import Path as FilePath
from types import MethodType
from typing import Any, ClassVar

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HiDreamImageTransformer2DModel,
    SchedulerMixin,
)
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from transformers import CLIPTextModelWithProjection, LlamaForCausalLM, T5EncoderModel

from .. import config
from ..types import Conditioning, DirectAlignError, Latents, PerSample
from . import vae
from .checkpoint_source import Source
from .common import DiffusersModel, parts_of


class HiDream(DiffusersModel):
    """A HiDream-I1-Full checkpoint."""

    title = "HiDream-I1"
    pipeline = "HiDreamImagePipeline"
    parts = parts_of(
        HiDreamImageTransformer2DModel,
        (*[CLIPTextModelWithProjection] * 2, T5EncoderModel, LlamaForCausalLM),
        scheduler=SchedulerMixin,
    )
    separate_parts: ClassVar = {"llama": ("tokenizer_4", "text_encoder_4")}
    left_out: ClassVar = dict.fromkeys(
        ("HiDream-ai/HiDream-I1-Dev", "HiDream-ai/HiDream-I1-Fast"),
        "is sampled with new noise at every step, which is not supported: give "
        "HiDream-ai/HiDream-I1-Full",
    )
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    packing = 1
    components = "HiDream-ai/HiDream-I1-Full"
    max_sequence_length = 128  # of each text encoder
    usual_cfg = 5.0
    published = "hidream_i1"
    lora_targets = (
        *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out"),
        *("attn1.to_q_t", "attn1.to_k_t", "attn1.to_v_t", "attn1.to_out_t"),
    )

    def __init__(
        self,
        source: Source,
        model: config.ModelConfig,
        device: torch.device,
        seed: int,
        llama: str = "",
    ) -> None:
        """`llama`: folder or hub id of the Llama; `source` has its files."""
        del llama
        super().__init__(source, model, device, seed)

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        cls._check_channels(folder, parts)
        scheduler = parts["scheduler"]
        plain = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        if not (plain or scheduler.config.get("use_flow_sigmas")):
            raise DirectAlignError(
                f"{folder / 'scheduler'}: a {type(scheduler).__name__} is no solver of a flow "
                f"without noise, which {cls.title}-Full has: give that in model.path, or a copy of "
                "this folder with the scheduler of HiDream-I1-Full"
            )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        llama_tokenizer = self.tokenizers[-1]
        llama_tokenizer.pad_token = llama_tokenizer.eos_token
        shift = self.scheduler.config.get("flow_shift")
        if shift is not None:
            self.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        network, cell = parts["transformer"], vae.downscaling(self.vae)
        self.patch, self.max_tokens = network.config["patch_size"], network.max_seq
        self.default_size = tuple(side * cell for side in network.config["max_resolution"])
        self.multiple = self.patch * cell
        network._repeated_blocks = ["HiDreamBlock"]  # the library's class has no list of them
        for module in network.modules():
            if isinstance(module, MOEFeedForwardSwiGLU):
                module.moe_infer = MethodType(_sum_of_experts, module)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` (b, d) from both CLIPs, `sequence` (b, 128, D) from T5, and `layers`
        (b, layers, 128, D) from Llama."""
        modules: dict[str, Any] = self.prompts.modules
        first, second, t5, llama = (modules[name] for name in self.text_parts)
        texts = [self._cut(prompts, number) for number in range(4)]
        clips = (first(texts[0].input_ids), second(texts[1].input_ids))
        sequence = t5(texts[2].input_ids, attention_mask=texts[2].attention_mask)[0]
        states = llama.model(
            texts[3].input_ids,
            attention_mask=texts[3].attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return {
            "pooled": torch.cat([each.text_embeds for each in clips], -1),
            "sequence": sequence,
            "layers": torch.stack(states[1:], dim=1),
        }

    def _cut(self, prompts: list[str], number: int) -> Any:
        longest = self.tokenizers[number].model_max_length if number > 1 else 218
        return self._tokens(prompts, min(self.max_sequence_length, longest), number)

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        from_noise = self._network(
            hidden_states=x_t.to(self.dtype),
            timesteps=(self.scheduler.config["num_train_timesteps"] * sigma).float(),
            encoder_hidden_states_t5=cond.tensors["sequence"],
            encoder_hidden_states_llama3=cond.tensors["layers"].transpose(0, 1),
            pooled_embeds=cond.tensors["pooled"],
        )
        return -from_noise

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's grid; its shift is fixed, or that of the largest image."""
        exponent = calculate_shift(self.max_tokens)
        self.scheduler.set_timesteps(num_inference_steps, mu=exponent)
        return self.scheduler.sigmas.double()

    def call_settings(self, height: int, width: int) -> dict[str, Any]:
        """The side of a square of this area, a little more: the pipeline rounds sides down."""
        side = math.sqrt(height * width) / vae.downscaling(self.vae)
        return {"default_sample_size": side * (1 + 1e-9)}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); an image that is not square is padded to `max_resolution`, and within it."""
        shape = super().latent_shape(height, width)
        tokens = shape[1] * shape[2] // self.patch**2
        if height != width and tokens > self.max_tokens:
            raise DirectAlignError(
                f"image size {height}x{width}: is {tokens:,} tokens, and this model takes "
                f"{self.max_tokens:,} at most unless it is square (max_resolution): choose a "
                "smaller size"
            )
        return shape


def _sum_of_experts(feed_forward: Any, tokens: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the k experts of each of the tokens (n, d), of the same shape.

    `experts`: (n * k,) their numbers, k per token; `weights`: (n * k, 1). It replaces the library's
    method, which has no gradient; in training mode, where that is not called, the network returns
    its images in another layout.
    """
    k, number = feed_forward.num_activated_experts, len(feed_forward.experts)
    order = experts.argsort(stable=True)
    places = torch.arange(number, device=experts.device)
    ends = (experts[:, None] == places).sum(0).cumsum(0).tolist()
    is_fake = ends[-1] != len(experts)  # the numbers of fake tensors are not known: equal shares
    parts = tokens[order // k].tensor_split(number if is_fake else ends[:-1])
    made = [expert(part) for expert, part in zip(feed_forward.experts, parts, strict=True)]
    by_token = torch.cat(made)[order.argsort()] * weights
    return by_token.unflatten(0, (-1, k)).sum(1).to(made[0].dtype)
