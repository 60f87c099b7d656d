"""What it takes to run blocks, from the shapes that an architecture's description has."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.arch import BoundArch, Tap
from dfrot.planning.work import StageCost


@dataclass(frozen=True)
class BlockShapes:
    """The linears of one block, and sums over them."""

    arch: BoundArch
    """The architecture."""
    source_itemsize: int
    """Bytes of a stored weight."""

    @property
    def weights(self) -> int:
        """Weights of the linears of a block, all experts included."""
        return sum(rows * cols for rows, cols in map(self.arch.shape, self.arch.spec.linears))

    @property
    def embed(self) -> int:
        """Weights of the embedding, or of the head."""
        return self.arch.vocab_size * self.arch.hidden

    @property
    def stored(self) -> int:
        """Bytes of the checkpoint's weights."""
        tables = 1 if self.arch.tied else 2
        return self.source_itemsize * (self.arch.n_layers * self.weights + tables * self.embed)

    def share(self, expert: int | None) -> float:
        """The share of tokens that a linear of an expert sees; 1 outside mixtures."""
        if expert is None or not self.arch.n_experts:
            return 1.0
        return float(self.arch.config.get("num_experts_per_tok", 1)) / self.arch.n_experts

    def tap_weights(self, tap: Tap) -> int:
        """Weights of the linears of a tap."""
        return sum(rows * cols for rows, cols in map(self.arch.shape, tap.linears))

    def width(self, tap: Tap) -> int:
        """Columns of the linears of a tap."""
        return self.arch.sizes[tap.linears[0].cols]

    def product_flops(self, taps: tuple[Tap, ...]) -> float:
        """FLOPs per token of the linears of some taps."""
        return sum(2.0 * self.tap_weights(tap) * self.share(tap.expert) for tap in taps)

    def attention_flops(self, seqlen: int) -> float:
        """FLOPs per token of attention over `seqlen` tokens, the half that a causal mask leaves."""
        return 2.0 * seqlen * self.arch.sizes["q"]

    @property
    def values(self) -> float:
        """Values per token that norms, RoPE, residual adds, copies and activations touch."""
        sizes = self.arch.sizes
        experts = float(self.arch.config.get("num_experts_per_tok", 1)) if self.arch.n_experts else 1.0
        return 26.0 * sizes["hidden"] + 18.0 * (sizes["q"] + 2 * sizes["kv"]) + 24.0 * sizes["intermediate"] * experts

    def load_block(self, cost: StageCost, times: float = 1.0) -> None:
        """Count reading one block's weights as float32."""
        cost.add(load=times * self.weights, read=times * self.weights * self.source_itemsize)

    def load_all(self, cost: StageCost, times: float = 1.0) -> None:
        """Count reading every block once, block after block."""
        self.load_block(cost, times * self.arch.n_layers)

    def run_blocks(self, cost: StageCost, tokens: float, seqlen: int, loads: float = 1.0, plain: bool = False) -> None:
        """Count a float32 pass of `tokens` tokens in windows of `seqlen` through all blocks. plain: in a stage that
        leaves the library of products to torch."""
        calls = tokens * self.arch.n_layers
        products, attention = ("plain32", "plain_attention") if plain else ("products32", "attention")
        flops = {products: self.product_flops(self.arch.taps()), attention: self.attention_flops(seqlen)}
        cost.add(elements=calls * self.values, **{kind: calls * amount for kind, amount in flops.items()})
        self.load_all(cost, loads)

    def run_head(self, cost: StageCost, tokens: float, plain: bool = False) -> None:
        """Count the head's product for `tokens` tokens, and reading it; as `run_blocks`."""
        cost.add(**{"plain32" if plain else "products32": 2.0 * tokens * self.embed})
        cost.add(load=self.embed, read=self.embed * self.source_itemsize)

    def block_memory(self) -> int:
        """Bytes of one block in float32."""
        return 4 * self.weights

    def token_memory(self, tokens: int) -> int:
        """Bytes of the float32 activations of one block for `tokens` tokens."""
        sizes = self.arch.sizes
        return 4 * tokens * (6 * sizes["hidden"] + 2 * (sizes["q"] + 2 * sizes["kv"]) + 4 * sizes["intermediate"])
