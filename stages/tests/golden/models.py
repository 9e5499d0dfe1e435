"""Makes the golden files of stages/tests/model_*.rs: logits, losses, gradients and running statistics of PyTorch in
float64, and the error of PyTorch's own float32 beside them. Weights and inputs come from a formula (`fill`), so that the
files hold results only; of each gradient at most 512 evenly spread entries are kept.

python models.py [MODEL ...]     made with torch 2.12 on the CPU
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

ENTRIES = 512
M64 = (1 << 64) - 1


def uniform(name, n):
    """n numbers in [-1, 1), exact in float32: the top 24 bits of splitmix64 from the FNV-1a digest of the name."""
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = ((digest ^ byte) * 0x100000001B3) & M64
    with np.errstate(over="ignore"):
        z = np.uint64(digest) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0


def fill(name, shape):
    """The value of a parameter or buffer, by its name and shape; rounded to float32."""
    n = int(np.prod(shape)) if len(shape) else 1
    u = uniform(name, n)
    if name.endswith("running_var"):
        v = 1.0 + 0.5 * u
    elif name.endswith("running_mean"):
        v = 0.1 * u
    elif len(shape) >= 2:
        v = u * np.sqrt(6.0 / np.prod(shape[1:]))
    elif name.endswith("bias"):
        v = 0.1 * u
    else:
        v = 1.0 + 0.2 * u
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def set_weights(model):
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if tensor.dtype.is_floating_point:
                tensor.copy_(fill(name, tuple(tensor.shape)))


class Block(nn.Module):
    """models/resnet_cifar.py of LDAM-DRW."""

    def __init__(self, inputs, outputs, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if stride != 1 and option == "A" else None
        self.shortcut = nn.Sequential()
        if stride != 1 and option == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad is None:
            return F.relu(out + self.shortcut(x))
        return F.relu(out + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0))


class ResNetCifar(nn.Module):
    def __init__(self, depth, channels, classes, option):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for layer, outputs in enumerate((16, 32, 64), 1):
            blocks = []
            for _ in range((depth - 2) // 6):
                blocks.append(Block(inputs, outputs, outputs // inputs, option))
                inputs = outputs
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def entries(tensor):
    flat = tensor.detach().double().flatten().numpy()
    return np.ascontiguousarray(flat[:: -(-len(flat) // ENTRIES)])


def run(make, inputs, dtype):
    """Logits, loss, gradients and running statistics of one training pass; logits in evaluation mode before it."""
    model = make()
    set_weights(model)
    model = model.to(dtype)
    x, labels = inputs
    x = x.to(dtype) if x.dtype.is_floating_point else x
    model.eval()
    with torch.no_grad():
        evaluated = model(x)
    model.train()
    logits = model(x)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    out = {"eval": evaluated.double().numpy(), "train": logits.detach().double().numpy()}
    out["loss"] = np.array([loss.item()])
    for name, parameter in model.named_parameters():
        out[f"gradient/{name}"] = entries(parameter.grad)
    for name, buffer in model.named_buffers():
        if buffer.dtype.is_floating_point:
            out[f"buffer/{name}"] = entries(buffer)
    return out


def make(file, model, inputs):
    exact, float32 = run(model, inputs, torch.float64), run(model, inputs, torch.float32)
    tensors = dict(exact)
    for name, value in exact.items():
        if name.startswith("gradient/"):
            error = np.linalg.norm(float32[name] - value) / np.linalg.norm(value)
            tensors[f"error/{name}"] = np.array([error])
    path = Path(__file__).parent / f"{file}.safetensors"
    save_file(tensors, path)
    errors = sorted(v.item() for k, v in tensors.items() if k.startswith("error/"))
    print(f"{path.name}: {path.stat().st_size} bytes, loss {exact['loss'][0]:.6f}, float32 errors up to {errors[-1]:.1e}")


def images(name, n, channels, height, width, classes):
    x = uniform(name, n * height * width * channels).reshape(n, height, width, channels)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.arange(n) * 7 % classes


MODELS = {
    "resnet8a": (lambda: ResNetCifar(8, 3, 10, "A"), images("images", 6, 3, 16, 16, 10)),
    "resnet8b": (lambda: ResNetCifar(8, 1, 5, "B"), images("images", 5, 1, 13, 11, 5)),
    "resnet20a": (lambda: ResNetCifar(20, 1, 10, "A"), images("images", 8, 1, 28, 28, 10)),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name, *MODELS[name])
