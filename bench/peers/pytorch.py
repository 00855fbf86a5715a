"""PyTorch and Pillow as contestants: the protocol of protocol.ts, requests on stdin, answers on file descriptor 3.

Models are those of transformers with random weights, in eager mode, as a user would call them. A linear layer has its weight reordered
once into oneDNN's own layout for its number of rows ("prepacked": torch.ops.mkldnn._reorder_linear_weight, then
_linear_pointwise), as a runtime on top of oneDNN would do it; torch's own F.linear reorders it in every call, and is what remains
where that refuses bf16, on CPUs without AVX-512.
"""

import json
import os
import sys
import time

torch = None


def import_torch(threads):
    global torch
    import torch as module

    torch = module
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)


def dtype_of(job):
    return {"f32": torch.float32, "bf16": torch.bfloat16}[job["weights"]]


def timed(run):
    def once():
        begin = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begin)

    return once


def random_model(make, dtype):
    """A module with random weights, its initialisation skipped: ten times faster, the same speed afterwards."""
    with torch.device("meta"):
        model = make()
    model = model.to(dtype).to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    for buffer in model.buffers():
        buffer.zero_()
    return model


def language_model(job):
    import transformers

    with open(os.path.join(job["model"], "config.json")) as file:
        config = transformers.LlamaConfig(**json.load(file))
    model = random_model(lambda: transformers.LlamaForCausalLM(config), torch.bfloat16)
    rotary = model.model.rotary_emb
    rotary.inv_freq.copy_(10000.0 ** (-torch.arange(0, 64, 2).float() / 64).to(rotary.inv_freq.dtype))
    salt = iter(range(10**9))

    def prompt(length):
        shift = 13 * next(salt)
        return torch.tensor([[1] + [300 + (7 * i + shift) % 2000 for i in range(1, length)]])

    def prefill():
        model(prompt(job["tokens"]), use_cache=True, logits_to_keep=1).logits.argmax()

    def decode():
        step = model(prompt(job["prompt"]), use_cache=True, logits_to_keep=1)
        token = step.logits[:, -1].argmax(-1, keepdim=True)
        begin = time.perf_counter()
        for _ in range(job["tokens"]):
            step = model(token, past_key_values=step.past_key_values, use_cache=True)
            token = step.logits[:, -1].argmax(-1, keepdim=True)
        return 1000 * (time.perf_counter() - begin)

    return timed(prefill) if job["kind"] == "prefill" else decode


def linear(job):
    m, n, k, dtype = job["m"], job["n"], job["k"], dtype_of(job)
    x = torch.randn(m, k).to(dtype)
    pool = torch.randn(n, k).mul_(k**-0.5)

    def prepacked(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    reorder, multiply = torch.ops.mkldnn._reorder_linear_weight, prepacked
    try:
        reorder(pool.to(dtype), m)
    except RuntimeError:
        reorder, multiply = lambda weight, _: weight.clone(), torch.nn.functional.linear
    weights = [reorder(pool.to(dtype), m) for _ in range(job["copies"])]
    index = {"next": 0}

    def run():
        index["next"] = (index["next"] + 1) % len(weights)
        multiply(x, weights[index["next"]])

    return timed(run)


def vision(job):
    import transformers

    dtype = dtype_of(job)
    if job["kind"] == "vision":
        config = transformers.Blip2VisionConfig()  # the defaults are ViT-g's sizes
        model = random_model(lambda: transformers.Blip2VisionModel(config), dtype)
        pixels = torch.randn(job["batch"], 3, config.image_size, config.image_size).to(dtype)
        return timed(lambda: model(pixel_values=pixels))
    config = transformers.Blip2QFormerConfig()
    model = random_model(lambda: transformers.Blip2QFormerModel(config), dtype)
    projection = torch.nn.Linear(config.hidden_size, 2048).to(dtype)
    queries = torch.randn(1, 32, config.hidden_size).to(dtype)
    features = torch.randn(1, 257, config.encoder_hidden_size).to(dtype)
    return timed(lambda: projection(model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state))


def image(job):
    import io

    import numpy
    from PIL import Image

    with open(job["file"], "rb") as file:
        data = file.read()
    mean = numpy.array([0.48145466, 0.4578275, 0.40821073], dtype=numpy.float32)
    std = numpy.array([0.26862954, 0.26130258, 0.27577711], dtype=numpy.float32)
    size = (job["size"], job["size"])

    def run():
        resized = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        values = numpy.asarray(resized, dtype=numpy.float32) / 255
        numpy.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))

    return timed(run)


def prepare(job):
    if job["kind"] == "image":
        return image(job)
    import_torch(job["threads"])
    make = {"prefill": language_model, "decode": language_model, "linear": linear, "vision": vision, "qformer": vision}
    return make[job["kind"]](job)


def take_turn(run, turn):
    times, end = [], time.perf_counter() + turn / 1000
    while not times or time.perf_counter() < end:
        times.append(run())
    return times


def main():
    answers = os.fdopen(3, "w", buffering=1)
    run = None
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        try:
            if "prepare" in request:
                run = None
                run = prepare(request["prepare"])
                run()
            elif "turn" in request:
                answer = {"ms": take_turn(run, request["turn"])}
            else:
                run = None
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")


main()
