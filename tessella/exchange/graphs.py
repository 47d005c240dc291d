"""The functions of a model that are exported: each a module with plain tensors in and out.

A graph that is exported has no Python in it, so what a model checks, splits into pieces or keeps in
states does not come along: what remains are the two halves of a tokenizer, a pass of a density
model over a whole grid, and one step of a transformer with its caches as inputs and results.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.heads import Head
from tessella.models import DensityModel
from tessella.models.condition import Condition
from tessella.models.gpt import GPT
from tessella.models.transformer import Transformer
from tessella.nn.attention import EPSILON
from tessella.nn.rotary import rms_norm, rotate
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.multiscale import MultiscaleVQGAN
from tessella.tokenizers.quantizers import Quantizer
from tessella.tokenizers.reconstructing import ReconstructingTokenizer, SingleGridTokenizer
from tessella.tokenizers.tokenizer import as_tuple
from tessella.tokenizers.vqvae2 import VQVAE2

EXAMPLES = 2
"""Images in the inputs with which a graph is traced; it then takes any number."""


@dataclass(frozen=True)
class Graph:
    """A function to be exported.

    Args:
        name: of its file.
        about: what it does, in a sentence.
        module: the function.
        inputs: example inputs by name.
        outputs: names of the results.
        batched: inputs whose first dimension is the number of images.
        exact: results that must be equal, such as symbols; the others must be near.
    """

    name: str
    about: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    batched: tuple[str, ...]
    exact: frozenset[str] = field(default_factory=frozenset)

    def example(self) -> tuple[torch.Tensor, ...]:
        """The example inputs in order."""
        return tuple(self.inputs.values())

    @torch.no_grad()
    def run(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The results by name, computed here."""
        results = self.module(*inputs)
        given = results if isinstance(results, tuple) else (results,)
        return dict(zip(self.outputs, given, strict=True))


class Encoding(nn.Module):
    """Images to symbols: the first half of a tokenizer."""

    def __init__(self, tokenizer: ReconstructingTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``uint8 [n, h, w, c]`` to the symbols ``int64 [n, h', w', depth]`` of each grid."""
        features = self.tokenizer.encode_float(images.to(torch.float32) / 255)
        parts = features if isinstance(features, tuple) else (features,)
        symbols = []
        for quantizer, part in zip(quantizers_of(self.tokenizer), parts, strict=True):
            symbols.append(quantizer.encode(part))
        return tuple(symbols)


class Decoding(nn.Module):
    """Symbols to images: the second half of a tokenizer."""

    def __init__(self, tokenizer: ReconstructingTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, *symbols: torch.Tensor) -> torch.Tensor:
        """Symbols of each grid to images ``float32 [n, h, w, c]`` in 0..1."""
        given = symbols if len(symbols) > 1 else symbols[0]
        height, width = self.tokenizer.image_size
        decoded = self.tokenizer.decode_float(self.tokenizer.look_up(given))
        return decoded[:, :height, :width].clamp(0, 1)


class Scoring(nn.Module):
    """A pass over a whole grid: parameters of every symbol, and log-probabilities."""

    def __init__(self, model: DensityModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, symbols: torch.Tensor, *conditions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score symbols.

        Args:
            symbols: ``int64 [n, h, w, c]``.
            conditions: class of each image ``int64 [n]``, then a grid of codes, as far as the model
                takes them.

        Returns:
            What the head takes, and the log-probability of every symbol in nats, ``[n, h, w, c]``.
        """
        given = list(conditions)
        labels = given.pop(0) if self.model.classes else None
        codes = given.pop(0) if self.model.conditioning.codes is not None else None
        parameters = self.model.head_parameters(symbols, Condition(labels, codes))
        return parameters, self.model.head(parameters).log_prob(symbols)


class CachedStep(nn.Module):
    """One step of a transformer, its caches as inputs and results.

    The caches are ``float32 [layers, n, heads, places, size]``, zeros at first.
    """

    @property
    @abstractmethod
    def cache_shape(self) -> tuple[int, int, int, int]:
        """Layers, heads, places and size of the caches."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head of the model, which takes the parameters of a symbol."""

    @abstractmethod
    def token(
        self, previous: torch.Tensor, place: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The vector of a place before the blocks: ``[n, width]``."""

    @abstractmethod
    def attention(self, layer: int, x: torch.Tensor, place: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value of a place: ``[n, heads, size]`` each."""

    @abstractmethod
    def rest(self, layer: int, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The stream after a block, given what it has seen: ``[n, width]``."""

    @abstractmethod
    def parameters_at(self, x: torch.Tensor) -> torch.Tensor:
        """Parameters of the head, from the stream after all blocks."""

    def forward(
        self,
        previous: torch.Tensor,
        place: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the symbol at a place.

        Args:
            previous: the symbol before it, ``int64 [n]``; ignored at place 0.
            place: index of the place, an ``int64`` without dimensions.
            keys, values: the caches.
            labels: class of each image, ``int64 [n]``; ignored by a model without classes.

        Returns:
            The parameters of the head, ``[n, size]``, and both caches.
        """
        x = self.token(previous, place, labels)
        places = torch.arange(keys.shape[3])
        here = (places == place)[:, None]  # [places, 1]
        known = (places <= place)[None, None, None]  # [1, 1, 1, places]
        new_keys = []
        new_values = []
        for layer in range(keys.shape[0]):
            query, key, value = self.attention(layer, x, place)
            new_keys.append(torch.where(here, key[:, :, None], keys[layer]))
            new_values.append(torch.where(here, value[:, :, None], values[layer]))
            shared = query.shape[1] // key.shape[1]
            seen = F.scaled_dot_product_attention(
                query[:, :, None],
                new_keys[-1].repeat_interleave(shared, 1),
                new_values[-1].repeat_interleave(shared, 1),
                attn_mask=known,
            )
            x = self.rest(layer, x, seen.flatten(1))
        return self.parameters_at(x), torch.stack(new_keys), torch.stack(new_values)


class TransformerStep(CachedStep):
    """:class:`CachedStep` of a ``transformer`` on a grid of one channel."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("cos_sin", model.cos_sin.detach().clone())
        self.cos_sin: torch.Tensor

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        attention = self.model._blocks()[0].attention
        layers = len(self.model.blocks)
        return layers, attention.kv_heads, self.model.grid.pixels, attention.size

    @property
    def head(self) -> Head:
        return self.model.head

    def token(
        self, previous: torch.Tensor, place: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        symbol = F.embedding(previous, self.model.embedding.table()[0])
        prefix = self.model._prefix(labels, 1)
        first = torch.where(place == 0, prefix, symbol)
        positions = (self.model.rows + self.model.columns).flatten(0, 1)
        return first + positions.index_select(0, place.view(1))

    def attention(self, layer: int, x: torch.Tensor, place: torch.Tensor) -> list[torch.Tensor]:
        block = self.model._blocks()[layer]
        part = block.attention
        normed = rms_norm(x, block.before_attention.weight, EPSILON)
        # [n, heads + 2 kv_heads, size]
        vectors = part.project(normed).unflatten(-1, (-1, part.size))
        turned, values = vectors.tensor_split([part.heads + part.kv_heads], dim=1)
        turned = rotate(turned, self.cos_sin.index_select(0, place.view(1)))
        queries, keys = turned.tensor_split([part.heads], dim=1)
        return [queries, keys, values]

    def rest(self, layer: int, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        block = self.model._blocks()[layer]
        x = x + block.attention.merge(seen)
        return x + block.feedforward(rms_norm(x, block.before_feedforward.weight, EPSILON))

    def parameters_at(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.output.last(rms_norm(x, self.model.norm.weight, EPSILON))


class GPTStep(CachedStep):
    """:class:`CachedStep` of a ``gpt`` on a grid of one channel."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        heads = self.model._blocks()[0].heads
        width = self.model.positions.shape[1]
        return len(self.model.blocks), heads, self.model.places, width // heads

    @property
    def head(self) -> Head:
        return self.model.head

    def token(
        self, previous: torch.Tensor, place: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        symbol = F.embedding(previous, self.model.vectors[0])
        first = torch.where(place == 0, self.model._prefix(labels, 1), symbol)
        return first + self.model.positions.index_select(0, place.view(1))

    def attention(self, layer: int, x: torch.Tensor, place: torch.Tensor) -> list[torch.Tensor]:
        block = self.model._blocks()[layer]
        parts = block._queries_keys_values(x[:, None])
        return [part[:, :, 0] for part in parts]

    def rest(self, layer: int, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        block = self.model._blocks()[layer]
        x = x + block.merge(seen)
        return x + block._feedforward(x)

    def parameters_at(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.parameters_from_free(self.model.output(self.model.norm(x)))


def quantizers_of(tokenizer: ReconstructingTokenizer) -> list[Quantizer]:
    """The quantizer of each grid of a tokenizer, coarse to fine."""
    if isinstance(tokenizer, VQVAE2):
        return [tokenizer.top, tokenizer.bottom]
    if isinstance(tokenizer, MultiscaleVQGAN):
        return [tokenizer.quantizer] * len(tokenizer.grids())
    assert isinstance(tokenizer, SingleGridTokenizer)
    return [tokenizer.quantizer]


def graphs_of_tokenizer(tokenizer: ReconstructingTokenizer) -> list[Graph]:
    """Encoder and decoder of a tokenizer, for images of its size."""
    grids = tokenizer.grids()
    names = tuple(f"symbols_{number}" for number in range(len(grids)))
    if len(grids) == 1:
        names = ("symbols",)
    make = torch.Generator().manual_seed(0)
    shape = (EXAMPLES, *tokenizer.image_size, tokenizer.channels)
    images = torch.randint(256, shape, generator=make).to(torch.uint8)
    symbols = as_tuple(tokenizer.encode(images))
    encoder = Graph(
        "encoder",
        "images, uint8 in 0..255, to symbols",
        Encoding(tokenizer),
        {"images": images},
        names,
        ("images",),
        frozenset(names),
    )
    decoder = Graph(
        "decoder",
        "symbols to images, float32 in 0..1",
        Decoding(tokenizer),
        dict(zip(names, symbols, strict=True)),
        ("images",),
        names,
    )
    return [encoder, decoder]


def graph_of_model(model: DensityModel, name: str) -> Graph:
    """A pass of a density model over a whole grid.

    Raises:
        ConfigError: for a masked model, which has no such pass.
    """
    if model.states_bound:
        raise ConfigError(
            f"{model.name} has no pass that gives the log-probabilities of a grid, so there is no "
            "graph of it: export its weights as safetensors, or the run of its tokenizer"
        )
    make = torch.Generator().manual_seed(0)
    grid = model.grid
    symbols = torch.randint(grid.levels, (EXAMPLES, *grid.shape), generator=make)
    inputs = {"symbols": symbols}
    if model.classes:
        inputs["labels"] = torch.arange(EXAMPLES) % model.classes
    codes = model.conditioning.codes
    if codes is not None:
        inputs["codes"] = torch.randint(codes.levels, (EXAMPLES, *codes.shape), generator=make)
    return Graph(
        name,
        f"symbols to the parameters of the head {model.head.name}, and log-probabilities in nats",
        Scoring(model),
        inputs,
        ("parameters", "log_probs"),
        tuple(inputs),
    )


def graph_of_step(model: DensityModel, name: str) -> Graph | None:
    """One cached step of a transformer; None of other models, and of grids of several channels."""
    module: CachedStep
    if model.grid.channels > 1 or model.head.joint or model.conditioning.codes is not None:
        return None
    if isinstance(model, Transformer):
        module = TransformerStep(model)
    elif isinstance(model, GPT):
        module = GPTStep(model)
    else:
        return None
    layers, heads, places, size = module.cache_shape
    cache = torch.zeros(layers, EXAMPLES, heads, places, size)
    inputs = {
        "previous": torch.arange(EXAMPLES) % model.grid.levels,
        "place": torch.tensor(min(1, places - 1)),
        "keys": cache,
        "values": cache.clone(),
        "labels": torch.zeros(EXAMPLES, dtype=torch.int64),
    }
    return Graph(
        name,
        "the symbol before a place and the caches, to the parameters at the place and the caches",
        module,
        inputs,
        ("parameters", "new_keys", "new_values"),
        ("previous", "keys", "values", "labels"),
    )


def graphs_of(role: str, network: object) -> list[Graph]:
    """The graphs of one network of a saved model.

    Args:
        role: ``tokenizer``, ``prior`` or ``model``; graphs of models are named after it.
        network: the network.
    """
    if isinstance(network, ReconstructingTokenizer):
        return graphs_of_tokenizer(network)
    if isinstance(network, Tokenizer) or not isinstance(network, DensityModel):
        return []
    step = graph_of_step(network, f"{role}_step")
    passes = [graph_of_model(network, f"{role}_forward")]
    return passes if step is None else [*passes, step]
