"""Makes the golden files of stages/tests/model_*.rs: logits, losses, gradients and running statistics of PyTorch in
float64, and the error of PyTorch's own float32 beside them. Weights and inputs come from a formula (`fill`), so that the
files hold results only; of each gradient some evenly spread entries are kept.

python models.py [MODEL ...]     made with torch 2.12 on the CPU
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

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


def fill(name, shape, shift):
    """The value of a parameter or buffer, by its name and shape; rounded to float32. Batch norms' biases are `shift`
    larger: with 2, few activations of a deep network lie near the ReLU's corner (see `apart`)."""
    n = int(np.prod(shape)) if len(shape) else 1
    u = uniform(name, n)
    if name.endswith("running_var"):
        v = 1.0 + 0.5 * u
    elif name.endswith("running_mean"):
        v = 0.1 * u
    elif "embeddings" in name and len(shape) == 2:
        v = u
    elif name.startswith("bert.") and len(shape) == 2:
        v = u * np.sqrt(1.5 / shape[1])  # attention that does not saturate
    elif len(shape) >= 2:
        v = u * np.sqrt(6.0 / np.prod(shape[1:]))
    elif name.endswith("bias"):
        norm = "bn" in name or "downsample.1" in name
        v = 0.1 * u + (shift if norm else 0.0)
    elif name.endswith("bn3.weight"):
        v = 0.25 + 0.05 * u  # a deep network whose float32 error stays small
    else:
        v = 1.0 + 0.2 * u
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def set_weights(model, shift):
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if tensor.dtype.is_floating_point:
                tensor.copy_(fill(name, tuple(tensor.shape), shift))


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


class Mlp(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, 200), nn.Linear(200, 200), nn.Linear(200, classes)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Linear(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Bottleneck(nn.Module):
    """torchvision's block, v1.5; `inner` is width_per_group / 64."""

    expansion = 4

    def __init__(self, inputs, width, stride, inner):
        super().__init__()
        inside = width * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        self.downsample = downsample(inputs, width * 4, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + (self.downsample(x) if self.downsample else x))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride, inner):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = downsample(inputs, width, stride)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (self.downsample(x) if self.downsample else x))


def downsample(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block, blocks, width, inner, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, n in enumerate(blocks):
            layer = []
            for i in range(n):
                layer.append(block(inputs, width << stage, 2 if stage and not i else 1, inner))
                inputs = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class BertLayer(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = nn.Module()
        for name in ("query", "key", "value"):
            setattr(self.attention.self, name, nn.Linear(hidden, hidden))
        self.attention.output = part(hidden, hidden)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(hidden, inner)
        self.output = part(inner, hidden)


def part(inputs, hidden):
    module = nn.Module()
    module.dense, module.LayerNorm = nn.Linear(inputs, hidden), nn.LayerNorm(hidden, eps=1e-12)
    return module


class Bert(nn.Module):
    """BertForSequenceClassification; golden values have no dropout."""

    def __init__(self, vocabulary, hidden, layers, heads, inner, positions, classes, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.bert = nn.Module()
        e = self.bert.embeddings = nn.Module()
        e.word_embeddings = nn.Embedding(vocabulary, hidden)
        e.position_embeddings = nn.Embedding(positions, hidden)
        e.token_type_embeddings = nn.Embedding(2, hidden)
        e.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(BertLayer(hidden, inner) for _ in range(layers))
        self.bert.pooler = nn.Module()
        self.bert.pooler.dense = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, tokens):
        n, _, length = tokens.shape
        drop = lambda x: F.dropout(x, self.dropout, self.training)
        words, types, mask = tokens[:, 0], tokens[:, 1], tokens[:, 2]
        e = self.bert.embeddings
        x = e.word_embeddings(words) + e.token_type_embeddings(types) + e.position_embeddings.weight[:length]
        x = drop(e.LayerNorm(x))
        mask = (1.0 - mask.to(x.dtype))[:, None, None] * -1e4
        for layer in self.bert.encoder.layer:
            a = layer.attention
            q, k, v = (
                getattr(a.self, name)(x).view(n, length, self.heads, -1).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            p = drop((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + mask).softmax(-1))
            context = (p @ v).transpose(1, 2).reshape(n, length, -1)
            x = a.output.LayerNorm(drop(a.output.dense(context)) + x)
            inner = F.gelu(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(drop(layer.output.dense(inner)) + x)
        return self.classifier(drop(torch.tanh(self.bert.pooler.dense(x[:, 0]))))


def sentences(n, length, vocabulary, classes):
    """Tokens from the formula; two segments; the i-th sentence is 2i tokens shorter than the tensor."""
    words = torch.from_numpy(((uniform("words", n * length) + 1.0) / 2.0 * vocabulary).astype(np.int64)).view(n, length)
    types = (torch.arange(length) >= length // 2).long().expand(n, length)
    mask = (torch.arange(length)[None] < length - 2 * torch.arange(n)[:, None]).long()
    return torch.stack([words, types, mask], 1), torch.arange(n) * 7 % classes


def entries(tensor, keep):
    flat = tensor.detach().double().flatten().numpy()
    return np.ascontiguousarray(flat[:: -(-len(flat) // keep)])


def run(make, inputs, dtype, keep, shift, layout=torch.contiguous_format):
    """Logits, loss, gradients and running statistics of one training pass; logits in evaluation mode before it."""
    model = make()
    set_weights(model, shift)
    model = model.to(dtype)
    x, labels = inputs
    x = x.to(dtype) if x.dtype.is_floating_point else x
    if x.ndim == 4:
        model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
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
        # Of a table of embeddings the sums of its columns: most rows are not used.
        table = "embeddings" in name and parameter.ndim == 2
        out[f"gradient/{name}"] = entries(parameter.grad.sum(0) if table else parameter.grad, keep)
    for name, buffer in model.named_buffers():
        if buffer.dtype.is_floating_point:
            out[f"buffer/{name}"] = entries(buffer, keep)
    return out


def decisions(make, x, dtype, shift):
    """What each ReLU compares with 0 and each max pool with the next largest, in a training pass."""
    relu, max_pool, seen = F.relu, F.max_pool2d, []

    def watched_relu(x):
        seen.append(x)
        return relu(x)

    def watched_pool(x, *sizes):
        windows = F.unfold(F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1)), 3, stride=2)
        top = windows.topk(2, 1).values
        # A pool after a ReLU: where all are 0, none has a gradient.
        seen.append(torch.where(top[:, 0] > 0, top[:, 0] - top[:, 1], 1.0))
        return max_pool(x, *sizes)

    F.relu, F.max_pool2d = watched_relu, watched_pool
    try:
        model = make()
        set_weights(model, shift)
        with torch.no_grad():
            model.to(dtype).train()(x.to(dtype))
    finally:
        F.relu, F.max_pool2d = relu, max_pool
    return seen


def apart(make, x, shift):
    """How far the nearest decision is from its corner, in units of the largest error that PyTorch's float32 makes in
    that layer. Below about 1 it is chance which side a correct float32 program takes, and one activation on the other
    side changes every gradient below it by far more than rounding does."""
    exact, single = (decisions(make, x, dtype, shift) for dtype in (torch.float64, torch.float32))
    return min((a.abs().min() / (a - b).abs().max()).item() for a, b in zip(exact, single))


def make(file, model, inputs, keep=512, shift=0.0, search=False):
    """PyTorch's own float32 error is the larger of those in its two layouts, which sum in different orders.

    With `search`, of the inputs "images", "images1", ... the first whose decisions are all further from their corner
    than twice the largest error of PyTorch's float32: only then do gradients have a rounding error to speak of."""
    number = 0
    if search:
        name = lambda: f"images{number or ''}"
        while (distance := apart(model, inputs(name())[0], shift)) < 2.0:
            number += 1
        print(f"{file}: {name()}: no decision nearer than {distance:.1f} of the largest float32 error")
        inputs = inputs(name())
    exact = run(model, inputs, torch.float64, keep, shift)
    layouts = torch.contiguous_format, torch.channels_last
    both = [run(model, inputs, torch.float32, keep, shift, layout) for layout in layouts]
    float32 = both[0]
    tensors = dict(exact, entries=np.array([float(keep)]), input=np.array([float(number)]))
    for name, value in exact.items():
        if name.startswith("gradient/"):
            weight = exact.get(name.replace("bias", "weight"))
            if name.endswith("bias") and np.linalg.norm(value) < 1e-10 * np.linalg.norm(weight):
                # Zero by symmetry, rounding errors have no relative size: BERT's key.bias, and a batch norm's bias whose
                # ReLU lets all through to 1x1 convolutions, whose own batch norms take it away.
                del tensors[name]
                continue
            error = max(np.linalg.norm(one[name] - value) for one in both) / np.linalg.norm(value)
            tensors[f"error/{name}"] = np.array([error])
    path = Path(__file__).parent / f"{file}.safetensors"
    save_file(tensors, path)
    errors = sorted(v.item() for k, v in tensors.items() if k.startswith("error/"))
    logits = {k: np.linalg.norm(float32[k] - exact[k]) / np.linalg.norm(exact[k]) for k in ("eval", "train")}
    print(logits)
    print(f"{path.name}: {path.stat().st_size} bytes, loss {exact['loss'][0]:.6f}, float32 errors up to {errors[-1]:.1e}")


def images(name, n, channels, height, width, classes):
    x = uniform(name, n * height * width * channels).reshape(n, height, width, channels)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.arange(n) * 7 % classes


def resnet50():
    return ResNet(Bottleneck, [3, 4, 6, 3], 64, 1, 3, 2)


def wideresnet50():
    return ResNet(Bottleneck, [3, 4, 6, 3], 64, 2, 3, 2)


MODELS = {
    "resnet8a": (lambda: ResNetCifar(8, 3, 10, "A"), images("images", 6, 3, 16, 16, 10)),
    "resnet8b": (lambda: ResNetCifar(8, 1, 5, "B"), images("images", 5, 1, 13, 11, 5)),
    "resnet20a": (lambda: ResNetCifar(20, 1, 10, "A"), lambda name: images(name, 8, 1, 28, 28, 10), 512, 2.0, True),
    "linear": (lambda: Linear(3 * 5 * 4, 3), images("images", 4, 3, 5, 4, 3)),
    "mlp": (lambda: Mlp(3 * 5 * 4, 3), images("images", 4, 3, 5, 4, 3)),
    "bert": (lambda: Bert(60, 48, 2, 4, 80, 20, 3), sentences(4, 18, 60, 3)),
    "bertbase": (lambda: Bert(30522, 768, 12, 12, 3072, 512, 2), sentences(2, 16, 30522, 2), 48),
    "resnet10": (lambda: ResNet(Basic, [1] * 4, 20, 1, 3, 2), images("images", 4, 3, 65, 61, 2), 128),
    "resnet50": (resnet50, images("images", 8, 3, 64, 64, 2), 48),
    "resnet50apart": (resnet50, lambda name: images(name, 4, 3, 36, 36, 2), 48, 2.0, True),
    "wideresnet50": (wideresnet50, images("images", 8, 3, 64, 64, 2), 48),
    "wideresnet50apart": (wideresnet50, lambda name: images(name, 4, 3, 36, 36, 2), 48, 2.0, True),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name, *MODELS[name])
