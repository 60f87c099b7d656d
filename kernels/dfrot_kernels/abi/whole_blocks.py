"""The C interface of the calls that run whole blocks of a model: tables that describe the model, and the calls."""

from __future__ import annotations

from dfrot_kernels.abi.types import Function, Struct, fields, function

_LINEARS = ", ".join(f"struct {{0}} {name}" for name in ("q", "k", "v", "o", "gate", "up", "down"))

DECODER_STRUCTS = (
    Struct(
        "dfq_linear",
        fields(
            "const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero?, const int32_t* sums?, "
            "const float* bias?, int64_t n, int64_t k, int64_t group, int64_t bits, int64_t symmetric, double clip, "
            "const float* base_t?, int64_t order, int64_t block"
        ),
        "One linear on quantized or 16-bit activations; weights as in dfq_tiled_w4a16. bits: of the activations, 16 "
        "= not quantized. base_t [order, order], transposed, of the Hadamard transform in blocks of `block` that "
        "its input takes first; null: none.",
    ),
    Struct(
        "dfq_block",
        fields(
            "const float* input_norm, const float* mlp_norm, const float* q_norm?, const float* k_norm?, "
            "const float* k_shift?, " + _LINEARS.format("dfq_linear")
        ),
        "Gains of the norms as float32. q_norm, k_norm [head_dim] or null. k_shift [kv_heads, head_dim] or null: "
        "subtracted from keys behind R3, before they are quantized. q, k, v read the first norm, gate and up the "
        "second.",
    ),
    Struct(
        "dfq_cache",
        fields(
            "uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero?, uint8_t* v_packed, uint16_t* v_scale, "
            "uint8_t* v_zero?, void* k_sink?, void* v_sink?"
        ),
        "Keys and values of one block as dfq_kv_append writes them. k_sink, v_sink [sinks, batch, kv_heads, "
        "head_dim] of the model's dtype: the first positions in full precision, which are written there beside "
        "the codes; null where the model has no sinks.",
    ),
    Struct(
        "dfq_decoder",
        fields(
            "const struct dfq_block* blocks, const float* final_norm, int64_t dtype, int64_t layers, int64_t hidden, "
            "int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t mlp, int64_t window, int64_t sinks, "
            "double eps, double scaling, int64_t kv_bits, int64_t kv_symmetric, double kv_clip, "
            "const float* r3_base_t?, int64_t r3_order, int64_t r3_block"
        ),
        "A stack of decoder blocks. window: positions that a row sees, itself included; 0 = all. sinks: leading "
        "positions read from k_sink and v_sink. r3_base_t: transposed, of the Hadamard transform of keys and "
        "queries (R3), or null. What the torch modules round to the model's dtype is rounded here, in the same "
        "order.",
    ),
)

DRAFT_STRUCTS = (
    Struct(
        "dfq_draft_linear",
        fields(
            "const void* data, const uint16_t* scale?, const uint8_t* zero?, const float* bias?, int64_t kind, "
            "int64_t n, int64_t k, int64_t group"
        ),
        "A weight [n, k] of a draft. kind: how it is stored, of enum dfq_kind. bias [n], added to the product, or "
        "null. data null: there is none.",
    ),
    Struct(
        "dfq_draft_block",
        fields(
            "const float* input_norm, const float* side_norm?, const float* mlp_norm, const float* q_norm?, "
            "const float* k_norm?, const float* slopes?, const float* feature_norm?, double attention_gate, "
            "double mlp_gate, int64_t cross, int64_t joins, " + _LINEARS.format("dfq_draft_linear")
        ),
        "norms: gains as float32. side_norm [hidden]: of a self block whose q, k, v read [norm(x), norm(h)] side by "
        "side, x the inputs of the call and h the residual stream; null: they read norm(h). slopes [heads]: of the "
        "lean of a cross block, or null. attention_gate, mlp_gate: factors of what the two halves add. "
        "q.data null: a block without attention. cross: 1 where keys and values come from features. feature_norm "
        "[hidden]: of a norm on new features before they are keys; null: none. joins: 1 where the residual stream gets "
        "the call's `stream` added before this block.",
    ),
    Struct(
        "dfq_draft",
        fields(
            "const struct dfq_draft_block* blocks, const float* final_norm?, int64_t dtype, int64_t layers, "
            "int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t mlp, double eps"
        ),
        "A draft. final_norm null: outputs are not normed. dtype: of inputs, outputs and buffers, float32 or bfloat16. "
        "Everything between the inputs and the "
        "outputs is float32, whatever the weights are stored in: a draft need not round as its modules do, since "
        "every drafted token is verified.",
    ),
    Struct(
        "dfq_draft_buffer",
        fields("void* k, void* v, int64_t capacity"),
        "Keys and values of one block, [kv_heads, capacity, head_dim] each.",
    ),
)

_MODEL = "const struct dfq_decoder* model"

DECODER = (
    function(
        "dfq_decode",
        f"{_MODEL}, const struct dfq_cache* caches, const void* hidden, const float* cos, const float* sin, "
        "int64_t batch, int64_t rows, int64_t position, void* out, void* states?",
        "All blocks for a few positions of a few sequences. hidden [batch, rows, hidden] of the model's dtype: the "
        "embeddings of the tokens at `position` and on -> out, of the same shape and dtype, after the final norm. "
        "caches [layers] have room for position + rows positions. cos, sin [rows, head_dim]. batch * rows at most "
        "16. states [layers, batch, rows, hidden] of that dtype: the residual stream behind every block; null: not "
        "wanted.",
    ),
    function(
        "dfq_decode_tree",
        f"{_MODEL}, const struct dfq_cache* caches, const void* hidden, const float* cos, const float* sin, "
        "int64_t rows, int64_t position, const int64_t* parents, void* out, void* states?",
        "dfq_decode for a tree of tokens of one sequence: parents [rows] (-1: none; else below the node's own "
        "number) in place of one behind the other, cos and sin of position + depth. Every row comes out as if its "
        "ancestors alone preceded it, to the last bit; the caches hold node i at position + i.",
    ),
    function(
        "dfq_decode_batch",
        f"{_MODEL}, const struct dfq_cache* caches, const void* hidden, const float* cos, const float* sin, "
        "const int64_t* positions, int64_t lines, void* out",
        "dfq_decode for one position each of several sequences: hidden [lines, hidden], the embedding of the token at "
        "positions[i] of sequence i -> out, every line as if it were alone, to the last bit. caches [lines, layers] "
        "of one sequence each, with room for positions[i] + 1 positions; positions are at least the model's sinks. "
        "cos, sin [lines, head_dim]. lines at most 16.",
    ),
    function(
        "dfq_prefill_before",
        f"{_MODEL}, int64_t layer, const struct dfq_cache* caches, const void* hidden, const float* cos, "
        "const float* sin, int64_t batch, int64_t rows, int64_t position, int64_t rotate, void* query",
        "The first half of one block for many positions (a prompt), before an attention that the caller computes: "
        "hidden [batch, rows, hidden] -> query [batch, rows, heads, head_dim], rotated by RoPE and, if `rotate`, by "
        "R3; keys and values go to the cache.",
    ),
    function(
        "dfq_prefill_after",
        f"{_MODEL}, int64_t layer, void* hidden, const void* mixed, int64_t lines",
        "The second half: mixed [lines, heads * head_dim], the attention's result; hidden [lines, hidden] is "
        "updated in place.",
    ),
    function(
        "dfq_prefill_norm",
        f"{_MODEL}, void* x, int64_t lines",
        "x [lines, hidden] in place: the norm after the last block.",
    ),
)

DRAFT = (
    function(
        "dfq_draft_pass",
        "const struct dfq_draft* draft, const struct dfq_draft_buffer* buffers, const void* x, const void* stream?, "
        "int64_t rows, const void* fresh?, int64_t news, const float* cos, const float* sin, "
        "const int64_t* positions, int64_t at, int64_t verified, const uint8_t* tree?, int64_t cross_at, "
        "int64_t features, int64_t drafted, const int64_t* places?, const uint8_t* cross_tree?, void* out",
        "One pass of a draft over a few new slots: self-attention blocks, gated cross-attention to features, gated "
        "MLPs, residuals. x [rows, hidden], slots at `positions` [rows] (rows of cos and sin [.., head_dim]) -> out "
        "[rows, hidden], after the final norm if there is one. stream [rows, hidden]: where the residual stream of "
        "a draft with a side_norm begins (others begin at x), or what a block that joins adds; such drafts need it, "
        "for others null. rows and news at most 16, together with what is in the "
        "buffers within their capacity. Self blocks: the rows' keys go to buffer rows from `at` on; a slot sees the "
        "buffer rows below `verified`, and of those from there to at + rows the ones that tree [rows, at + rows - "
        "verified] shows it (null: all). Cross blocks: fresh [news, hidden] become keys from buffer row `cross_at` "
        "on. Row 0 is the null key, always visible; rows 1 .. features are those of positions 0 .. features - 1, "
        "visible to slots of larger positions; the `drafted` ones behind them have positions `places` and are "
        "visible where cross_tree [rows, drafted] says so (null: everywhere).",
    ),
)

MODEL_STRUCTS: tuple[Struct, ...] = DECODER_STRUCTS + DRAFT_STRUCTS
CALLS: tuple[Function, ...] = DECODER + DRAFT
