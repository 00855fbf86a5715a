"""The same cases through PyTorch on the same card: `peers.py bench.json out.json`.

Each case runs on several copies of its data inside one CUDA graph, like ours; the best of the formulations tried counts.
What we fuse (norms, activations, residuals) is part of the peer's time as well, as ops of its own or as its library fuses it.
"""

import json
import statistics
import sys

import torch
import torch.nn.functional as F

ROTATION_BYTES = 512e6
MAX_COPIES = 64
REPLAY_US = 4000
SAMPLES = 15


def rand(*shape, dtype, scale=1.0):
    return torch.randn(*shape, device="cuda", dtype=torch.float32).mul_(scale).to(dtype)


def rms_norm(x):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def linear(p, dtype):
    x, w = rand(p["m"], p["k"], dtype=dtype), rand(p["n"], p["k"], dtype=dtype, scale=p["k"] ** -0.5)
    bias = rand(p["n"], dtype=dtype) if p["bias"] else None
    residual = rand(p["m"], p["n"], dtype=dtype) if p["residual"] else None
    activation = ACTIVATIONS[p["activation"]]

    def run():
        y = activation(F.linear(x, w, bias))
        return y if residual is None else y + residual

    return run


def quant_linear(p, dtype):
    """PyTorch has no grouped weight-only product of this dtype in general: its dense one, with the weight widened before."""
    return linear({**p, "bias": False, "residual": True, "activation": "none"}, dtype)


def gated(p, dtype):
    x = rand(p["m"], p["k"], dtype=dtype)
    gate_up = rand(2 * p["n"], p["k"], dtype=dtype, scale=p["k"] ** -0.5)

    def run():
        gate, up = F.linear(rms_norm(x), gate_up).chunk(2, dim=-1)
        return F.silu(gate) * up

    return run


def attention(p, dtype):
    q, k, v = (rand(p["batch"], p["heads"], p["tokens"], p["headDim"], dtype=dtype) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=p["causal"])


def paged(p, dtype):
    q = rand(p["batch"], p["heads"], 1, p["headDim"], dtype=dtype)
    k, v = (rand(p["batch"], p["heads"], p["context"], p["headDim"], dtype=dtype) for _ in range(2))
    return lambda: F.scaled_dot_product_attention(q, k, v)


def decoder(p, dtype):
    hidden, mlp, heads, head_dim, batch = p["hidden"], p["mlp"], p["heads"], p["headDim"], p["batch"]
    weight = lambda n, k: rand(n, k, dtype=dtype, scale=k**-0.5)
    qkv, o = weight(3 * hidden, hidden), weight(hidden, hidden)
    gate_up, down = weight(2 * mlp, hidden), weight(hidden, mlp)
    x = rand(batch, hidden, dtype=dtype)
    keys, values = (rand(batch, heads, p["context"], head_dim, dtype=dtype) for _ in range(2))
    cos, sin = rand(head_dim, dtype=dtype), rand(head_dim, dtype=dtype)

    def rope(y):
        first, second = y.chunk(2, dim=-1)
        return y * cos + torch.cat((-second, first), dim=-1) * sin

    def run():
        q, k, v = F.linear(rms_norm(x), qkv).view(batch, 3, heads, head_dim).unbind(1)
        keys[:, :, -1] = rope(k)
        values[:, :, -1] = v
        y = F.scaled_dot_product_attention(rope(q).unsqueeze(2), keys, values)
        middle = x + F.linear(y.reshape(batch, hidden), o)
        gate, up = F.linear(rms_norm(middle), gate_up).chunk(2, dim=-1)
        return middle + F.linear(F.silu(gate) * up, down)

    return run


def qformer(p, dtype):
    batch, queries, keys, hidden, heads = (p[name] for name in ("batch", "queries", "keys", "hidden", "heads"))
    x = rand(batch, queries, hidden, dtype=dtype)
    k, v = (rand(batch, heads, keys, hidden // heads, dtype=dtype) for _ in range(2))
    wq, wo = (rand(hidden, hidden, dtype=dtype, scale=hidden**-0.5) for _ in range(2))
    bq, bo, gamma, beta = (rand(hidden, dtype=dtype) for _ in range(4))

    def run():
        q = F.linear(x, wq, bq).view(batch, queries, heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, queries, hidden)
        return F.layer_norm(x + F.linear(y, wo, bo), (hidden,), gamma, beta, 1e-12)

    return run


def lora_merge(p, dtype):
    w, a, b = rand(p["n"], p["k"], dtype=dtype), rand(p["rank"], p["k"], dtype=dtype), rand(p["n"], p["rank"], dtype=dtype)
    return lambda: torch.addmm(w, b, a, alpha=0.5)


def lora_apply(p, dtype):
    x, y = rand(p["m"], p["k"], dtype=dtype), rand(p["m"], p["n"], dtype=dtype)
    a, b = rand(p["slots"], p["rank"], p["k"], dtype=dtype), rand(p["slots"], p["n"], p["rank"], dtype=dtype)
    rows = torch.arange(p["m"], device="cuda") % p["slots"]

    def run():
        inner = torch.bmm(a[rows], x.unsqueeze(2))
        return y + torch.bmm(b[rows], inner).squeeze(2)

    return run


KINDS = {
    "linear": linear,
    "quantLinear": quant_linear,
    "gated": gated,
    "attention": attention,
    "paged": paged,
    "decoder": decoder,
    "qformer": qformer,
    "loraMerge": lora_merge,
    "loraApply": lora_apply,
}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def measure(row):
    dtype = DTYPES[row["params"]["dtype"]]
    copies = min(MAX_COPIES, max(2, -(-int(ROTATION_BYTES) // max(1, int(row["bytes"])))))
    calls = max(copies, min(512, int(REPLAY_US / row.get("floorUs", REPLAY_US)) + 1))
    runs = [KINDS[row["kind"]](row["params"], dtype) for _ in range(copies)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for run in runs[:2]:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            runs[i % copies]()
    times = []
    for i in range(SAMPLES + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(1000 * begin.elapsed_time(end) / calls)
    return {"us": statistics.median(times), "minUs": min(times), "maxUs": max(times)}


def main():
    with open(sys.argv[1]) as file:
        bench = json.load(file)
    report = {"torch": torch.__version__, "cuda": torch.version.cuda, "times": {}}
    with torch.inference_mode():
        for row in bench["rows"]:
            try:
                report["times"][row["name"]] = measure(row)
            except Exception as error:  # one case must not end the others
                report["times"][row["name"]] = {"error": str(error).splitlines()[0]}
            torch.cuda.empty_cache()
            print(row["name"], report["times"][row["name"]], flush=True)
            with open(sys.argv[2], "w") as file:
                json.dump(report, file, indent=1)


main()
