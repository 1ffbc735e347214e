"""The untrained networks of the two embedded pipelines, in the real architectures at toy size."""

from __future__ import annotations

from .autoencoder import LATENT_CHANNELS
from .tokenizers import MAX_TOKENS
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, T5Config, T5EncoderModel


# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
# (diffusers and transformers annotate their constructors and outputs more narrowly than they are)









TEXT_WIDTH = 96


def flux_transformer() -> FluxTransformer2DModel:
    """FLUX at 2.4 M parameters: two double and four single blocks, 16 image tokens."""
    torch.manual_seed(21)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def sd_unet() -> UNet2DConditionModel:
    """A Stable Diffusion UNet at 2.2 M parameters: 8x8 latents, two levels."""
    torch.manual_seed(22)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def clip_text_encoder(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModel:
    """CLIP text encoder: pooled vector for FLUX, sequence for SD."""
    torch.manual_seed(23)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_text_encoder(tokenizer: PreTrainedTokenizerBase) -> T5EncoderModel:
    """T5 encoder: the token sequence that FLUX attends to."""
    torch.manual_seed(24)
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=24,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
