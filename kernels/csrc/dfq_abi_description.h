// What dfq_abi_describe returns.
// Written by generate_abi.py from dfrot_kernels/abi; edit the description, not this file.
#pragma once

#define DFQ_ABI_DESCRIPTION \
  "version 4\n" \
  "enum dfq_status: DFQ_OK = 0, DFQ_NO_MEMORY = 1, DFQ_BAD_ARGUMENT = 2\n" \
  "enum dfq_dtype: DFQ_FLOAT32 = 0, DFQ_BFLOAT16 = 1, DFQ_FLOAT16 = 2\n" \
  "enum dfq_instruction_set: DFQ_SCALAR = 0, DFQ_AVX2 = 1, DFQ_AVX512 = 2, DFQ_NEON = 3, DFQ_DOTPROD = 4, " \
  "DFQ_I8MM = 5\n" \
  "enum dfq_kind: DFQ_CODES8 = 8, DFQ_TILES = 16\n" \
  "struct dfq_openmp: const void* parallel, const void* num_threads, const void* thread_num\n" \
  "struct dfq_linear: const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero?, const int32_t* sums?, " \
  "const float* bias?, int64_t n, int64_t k, int64_t group, int64_t bits, int64_t symmetric, double clip, const" \
  " float* base_t?, int64_t order, int64_t block\n" \
  "struct dfq_block: const float* input_norm, const float* mlp_norm, const float* q_norm?, const float* " \
  "k_norm?, const float* k_shift?, struct dfq_linear q, struct dfq_linear k, struct dfq_linear v, struct " \
  "dfq_linear o, struct dfq_linear gate, struct dfq_linear up, struct dfq_linear down\n" \
  "struct dfq_cache: uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero?, uint8_t* v_packed, uint16_t* " \
  "v_scale, uint8_t* v_zero?, void* k_sink?, void* v_sink?\n" \
  "struct dfq_decoder: const struct dfq_block* blocks, const float* final_norm, int64_t dtype, int64_t layers, " \
  "int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t mlp, int64_t window, int64_t " \
  "sinks, double eps, double scaling, int64_t kv_bits, int64_t kv_symmetric, double kv_clip, const float* " \
  "r3_base_t?, int64_t r3_order, int64_t r3_block\n" \
  "struct dfq_draft_linear: const void* data, const uint16_t* scale?, const uint8_t* zero?, const float* bias?," \
  " int64_t kind, int64_t n, int64_t k, int64_t group\n" \
  "struct dfq_draft_block: const float* input_norm, const float* side_norm?, const float* mlp_norm, const " \
  "float* q_norm?, const float* k_norm?, const float* slopes?, const float* feature_norm?, double " \
  "attention_gate, double mlp_gate, int64_t cross, int64_t joins, struct dfq_draft_linear q, struct " \
  "dfq_draft_linear k, struct dfq_draft_linear v, struct dfq_draft_linear o, struct dfq_draft_linear gate, " \
  "struct dfq_draft_linear up, struct dfq_draft_linear down\n" \
  "struct dfq_draft: const struct dfq_draft_block* blocks, const float* final_norm?, int64_t dtype, int64_t " \
  "layers, int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t mlp, double eps\n" \
  "struct dfq_draft_buffer: void* k, void* v, int64_t capacity\n" \
  "dfq_pack: const uint8_t* codes, int64_t n, int64_t k, int64_t bits, uint8_t* packed, int64_t threads\n" \
  "dfq_unpack: const uint8_t* packed, int64_t n, int64_t k, int64_t bits, uint8_t* codes, int64_t threads\n" \
  "dfq_quantize_per_token: const void* x, int64_t dtype, int64_t m, int64_t k, int64_t bits, int64_t symmetric," \
  " double clip, int8_t* codes, float* scale, int32_t* zero, int64_t threads\n" \
  "dfq_hadamard: const void* x, int64_t dtype, int64_t rows, int64_t block, const float* base, int64_t order, " \
  "void* out, int64_t threads\n" \
  "dfq_kv_quantize: const void* x, int64_t dtype, int64_t rows, int64_t width, int64_t bits, int64_t symmetric," \
  " double clip, uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t threads\n" \
  "dfq_kv_dequantize: const uint8_t* packed, const uint16_t* scale, const uint8_t* zero?, int64_t rows, int64_t" \
  " width, int64_t bits, int64_t dtype, void* out, int64_t threads\n" \
  "dfq_hadamard_quantize: const void* x, int64_t dtype, int64_t m, int64_t k, const float* base?, int64_t " \
  "order, int64_t block, int64_t bits, int64_t symmetric, double clip, int8_t* codes, float* scale, int32_t* " \
  "zero, int64_t threads\n" \
  "dfq_rmsnorm_quantize: const void* x, int64_t dtype, int64_t m, int64_t k, void* residual?, const void* " \
  "weight?, double epsilon, int64_t bits, int64_t symmetric, double clip, int8_t* codes, float* scale, int32_t*" \
  " zero, int64_t threads\n" \
  "dfq_silu_mul_hadamard_quantize: const void* gate, const void* up, int64_t dtype, int64_t m, int64_t k, const" \
  " float* base?, int64_t order, int64_t block, int64_t bits, int64_t symmetric, double clip, int8_t* codes, " \
  "float* scale, int32_t* zero, int64_t threads\n" \
  "dfq_dequantize: const uint8_t* packed, const uint16_t* scale, const uint8_t* zero?, int64_t n, int64_t k, " \
  "int64_t bits, int64_t group, float* w, int64_t threads\n" \
  "dfq_w4a16_mm: const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const uint8_t* packed, const " \
  "uint16_t* scale, const uint8_t* zero?, int64_t group, void* out, int64_t threads\n" \
  "dfq_w4a8_mm: const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k, " \
  "const uint8_t* packed, const uint16_t* scale, const uint8_t* zero?, int64_t group, float* out, int64_t " \
  "threads\n" \
  "dfq_prepack: const uint8_t* packed, int64_t n, int64_t k, int64_t group, uint8_t* tiles, int32_t* sums?, " \
  "int64_t threads\n" \
  "dfq_unprepack: const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed, int64_t threads\n" \
  "dfq_tiled_w4a16: const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const uint8_t* tiles, const " \
  "uint16_t* scale, const uint8_t* zero?, int64_t group, const float* bias?, void* out, int64_t threads\n" \
  "dfq_tiled_w4a8: const int8_t* q, const float* x_scale, const int32_t* x_zero?, int64_t m, int64_t n, int64_t" \
  " k, const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero?, const int32_t* sums?, int64_t group, " \
  "const float* bias?, int64_t dtype, void* out, int64_t threads\n" \
  "dfq_dense: const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const void* weight, int64_t kind, " \
  "const uint16_t* scale?, int64_t group, void* out, int64_t threads\n" \
  "dfq_kv_append: const void* key, const void* value, int64_t dtype, int64_t batch, int64_t rows, int64_t " \
  "heads, int64_t k_dim, int64_t v_dim, uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero?, uint8_t* " \
  "v_packed, uint16_t* v_scale, uint8_t* v_zero?, int64_t position, int64_t bits, int64_t symmetric, double " \
  "clip, const float* base?, int64_t order, int64_t block, const float* shift?, int64_t threads\n" \
  "dfq_kv_attention: const void* query, int64_t dtype, int64_t batch, int64_t rows, int64_t heads, int64_t " \
  "kv_heads, int64_t k_dim, int64_t v_dim, const uint8_t* k_packed, const uint16_t* k_scale, const uint8_t* " \
  "k_zero?, const uint8_t* v_packed, const uint16_t* v_scale, const uint8_t* v_zero?, int64_t length, int64_t " \
  "bits, double scaling, const float* base?, int64_t order, int64_t block, const int64_t* first?, const " \
  "uint8_t* tree?, int64_t trees, const void* k_sink?, const void* v_sink?, int64_t sinks, const int64_t* " \
  "sink_start?, void* out, int64_t threads\n" \
  "dfq_prompt_attention: const void* query, int64_t dtype, int64_t batch, int64_t rows, int64_t heads, int64_t " \
  "kv_heads, int64_t k_dim, int64_t v_dim, const uint8_t* k_packed, const uint16_t* k_scale, const uint8_t* " \
  "k_zero?, const uint8_t* v_packed, const uint16_t* v_scale, const uint8_t* v_zero?, int64_t length, int64_t " \
  "bits, double scaling, int64_t window, const void* k_sink?, const void* v_sink?, int64_t sinks, void* out, " \
  "int64_t threads\n" \
  "dfq_decode: const struct dfq_decoder* model, const struct dfq_cache* caches, const void* hidden, const " \
  "float* cos, const float* sin, int64_t batch, int64_t rows, int64_t position, void* out, void* states?, " \
  "int64_t threads\n" \
  "dfq_decode_tree: const struct dfq_decoder* model, const struct dfq_cache* caches, const void* hidden, const " \
  "float* cos, const float* sin, int64_t rows, int64_t position, const int64_t* parents, void* out, void* " \
  "states?, int64_t threads\n" \
  "dfq_decode_batch: const struct dfq_decoder* model, const struct dfq_cache* caches, const void* hidden, const" \
  " float* cos, const float* sin, const int64_t* positions, int64_t lines, void* out, int64_t threads\n" \
  "dfq_prefill_before: const struct dfq_decoder* model, int64_t layer, const struct dfq_cache* caches, const " \
  "void* hidden, const float* cos, const float* sin, int64_t batch, int64_t rows, int64_t position, int64_t " \
  "rotate, void* query, int64_t threads\n" \
  "dfq_prefill_after: const struct dfq_decoder* model, int64_t layer, void* hidden, const void* mixed, int64_t " \
  "lines, int64_t threads\n" \
  "dfq_prefill_norm: const struct dfq_decoder* model, void* x, int64_t lines, int64_t threads\n" \
  "dfq_draft_pass: const struct dfq_draft* draft, const struct dfq_draft_buffer* buffers, const void* x, const " \
  "void* stream?, int64_t rows, const void* fresh?, int64_t news, const float* cos, const float* sin, const " \
  "int64_t* positions, int64_t at, int64_t verified, const uint8_t* tree?, int64_t cross_at, int64_t features, " \
  "int64_t drafted, const int64_t* places?, const uint8_t* cross_tree?, void* out, int64_t threads\n"
