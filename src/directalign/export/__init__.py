"""What a run leaves, in the shapes that others read: LoRA files for diffusers, ComfyUI and kohya's tools, whole pipelines, a model card, the Hub."""



