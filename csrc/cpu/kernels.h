// The table of kernels of one instruction set. Each family owns one struct of function pointers, filled by its
// *_kernels.h, which kernel_set.h compiles once per instruction set. Families call `kernels().FAMILY.function(...)`
// inside parallel_for.
#pragma once

#include <stdint.h>

#include "attention_job.h"
#include "backend/backend.h"
#include "quant_layout.h"

namespace qformer::cpu {

// ---- linear ----
// y = act(sums + bias) + residual, or act(sums) * up where `up` is given, of m rows and n columns.
struct Finish {
  const float* sums;
  const float* up;
  int64_t ld_sums, ld_up;
  const float* bias;      // may be null
  const float* residual;  // may be null
  float* y;
  int64_t ldr, ldy, m, n;
  int32_t activation;
};

// Bytes that a kernel fetches into L2 while it computes: `rows` times `bytes`, `stride` bytes apart.
struct Ahead {
  const char* from;
  int64_t stride, bytes, rows;
};

// Packed rows of x times rows of w: sums[i * ld_sums + j] = x row i · w row j.
struct RowsJob {
  const float* x;
  int64_t m;      // <= DotKernels::max_rows
  const void* w;  // n rows, ldw elements apart; of a quantised weight from a multiple of kQuantRows on
  int64_t ldw, n, k;
  float* sums;
  int64_t ld_sums;
  const uint16_t* scales;  // of these rows, where they are quantised
  int64_t group;           // a multiple of kQuantUnit
  bool from_memory;        // w is part of a matrix that no cache near a core holds
};

// A block of k of rows of x, packed, times the same of up to panel_columns rows of w (linear_panel.h). Rows of x lie in
// tiles of tile_rows, the last of what is left: even ones, like 6, 6, 5, 5, 5, 5 of 32, are up to a fifth slower on a
// Zen 5 EPYC.
struct PanelJob {
  const float* x;
  int64_t ldx;    // of rows as they are, not packed, where kernels take them so (DotKernels::takes_rows); else 0
  const void* w;  // `columns` rows, ldw elements apart
  int64_t ldw, columns;
  float* packed_w;      // working memory: panel_floats
  int64_t rows, count;  // count <= DotKernels::block: elements of the block
  bool first;           // sums start here, else they are added to
  float* sums;          // rows * panel_columns, rows ld_sums apart
  int64_t ld_sums;
  Ahead ahead;
  float* y;  // where the sums will go, fetched to be written; null if that is not yet
  int64_t ldy;
};

// Dot products of rows of x with rows of w for one pair of element types. All ways give the same bits per element.
struct DotKernels {
  int32_t w_bits;             // of an element
  int32_t step, step_floats;  // of k: a packed row takes step_floats for each step, also for the last one
  int32_t max_rows;           // of `rows`
  int32_t block;              // elements of k per block of `multiply`
  bool takes_rows;            // `multiply` reads whole steps of k from rows of x that are not packed

  // Packs `count` elements of k of some rows of x, rounded to what is multiplied.
  void (*pack_x)(const float* x, int64_t ldx, int64_t rows, int64_t count, float* out);
  void (*rows)(const RowsJob& job);       // w where it lies
  void (*multiply)(const PanelJob& job);  // null for quantised weights
};

inline constexpr int64_t kTileBytes = 1024;  // of a tile of operands: 16 rows of 64 bytes
inline constexpr int64_t kTileFloats = 256;  // of a tile of sums: 16 rows of 64 bytes, however many columns are used
inline constexpr int64_t kBlockTiles = 3;    // tiles of rows of x that are multiplied together, at most

// Complete sums of one block of tiles on their way to y. They are finished between the products of the next block, so
// that the matrix unit does not wait for the vector units.
struct WaitingTiles {
  Finish finish;    // of the rows of the block and of up to 32 columns; its own sums and up are not used
  const float* up;  // tiles like `sums`, where the call is gated
  int64_t tile_rows;
  int64_t next = 0, count = 0;  // parts of the work
  alignas(64) float sums[2 * kBlockTiles * kTileFloats];
  alignas(64) float turned[2 * kTileFloats];
  alignas(64) float turned_up[2 * kTileFloats];
};

// Products of bf16 weights with x rounded to bf16 on a matrix unit, for 32 rows of w at a time (linear_amx.h). Steps
// are 32 columns of k. x is packed in tiles of `columns` rows (1, 2, 4, 8 or 16); sums wait in tiles too, 16 x 16 f32
// each.
struct TileJob {
  const void* w;  // two tiles of 16 rows, w_stride bytes apart
  int64_t w_stride;
  int64_t w_tile;  // bytes from the first tile to the second
  int64_t w_step;  // bytes from one step to the next
  void* copy;      // where not null: gets the tiles of w as copy_w leaves them, and they are read from there again
  const void* x;   // packed tiles of consecutive steps
  int64_t x_tiles;
  int64_t x_stride;  // bytes from one tile of rows to the next
  int32_t columns;
  int64_t steps;
  bool fresh;   // sums start from zero, else from `sums`
  float* sums;  // two tiles for each tile of x: [x_tiles][2][16][16]
  // Where given, the sums are complete with this job and go to y instead, the last ones with the next job that is
  // given the same `waiting`, or with finish_waiting. For all rows of x and up to 32 columns.
  const Finish* finish;
  const float* up;  // tiles like `sums`, where the call is gated
  WaitingTiles* waiting;
  // Rows of w, fetched into L2 meanwhile: 64 bytes per step of 32 rows, ahead_stride bytes apart, ahead_rows of them
  // for each block of x, perhaps none. Need not be mapped.
  const char* ahead;
  int64_t ahead_stride, ahead_rows;
};

struct TileKernels {
  // The unit's registers belong to the thread from configure to release; idle threads must not hold them.
  void (*configure)(int32_t columns);
  void (*release)();
  // `rows` <= columns rows of x as the tiles of `steps` steps, 64 * columns * steps bytes; zeros past `rows` and k
  void (*pack_x)(const float* x, int64_t ldx, int64_t rows, int64_t k, int32_t columns, int64_t steps, void* out);
  // `rows` <= 32 rows of w as [ceil(k / 32)][32][32] bf16, zeros past `rows` and k; out: 64-byte aligned
  void (*copy_w)(const void* w, int64_t ldw, int64_t rows, int64_t k, void* out);
  void (*multiply)(const TileJob& job);
  void (*finish_waiting)(WaitingTiles& waiting);
};

struct LinearKernels {
  int32_t tile_rows, panel_columns;
  int64_t panel_floats;  // of a packed block of a panel
  int64_t far_columns;   // of a task, where packed x does not stay in L3
  DotKernels f32, f16, bf16, bf16_products;
  void (*finish)(const Finish& job);
  void (*lora_row)(const void* w, const float* a, const float* b, void* y, int64_t rank, int64_t n, float scaling,
                   int32_t dtype);
  const TileKernels* bf16_tiles = nullptr;  // where given, all products of bf16_products are formed by it
};

// ---- quant ----
struct QuantKernels {
  DotKernels int8, int4;        // times x in 16 bits
  DotKernels int8_x8, int4_x8;  // times x in 8 bits
  // One group of `count` columns: its levels and its scale, as QfQuantize says.
  void (*quantize_group)(const float* w, int64_t count, int32_t bits, int8_t* levels, uint16_t* scale);
};

// ---- norm ----
struct NormKernels {
  // y = (x - mean) / sqrt(var + eps) * weight + bias of one row
  void (*layer_norm_row)(const float* x, const float* weight, const float* bias, float* y, int64_t cols, float eps);
  // y = x / sqrt(mean(x²) + eps) * weight of one row
  void (*rms_norm_row)(const float* x, const float* weight, float* y, int64_t cols, float eps);
};

// ---- softmax ----
struct SoftmaxKernels {
  // y = softmax(x), log 1: log_softmax(x), over n entries; y may equal x
  void (*softmax_row)(const float* x, float* y, int64_t n, int32_t log);
  // largest entry; NaN where there is one, -inf for an empty row
  float (*row_max)(const float* x, int64_t n);
  // y = exp(x - shift)
  void (*exp_shifted)(const float* x, float shift, float* y, int64_t n);
};

// ---- rope ----
struct RopeKernels {
  // x, y: [heads, head_dim] of one token; cosine, sine: [head_dim / 2]
  void (*rope_token)(const float* x, const float* cosine, const float* sine, float* y, int64_t heads, int64_t head_dim);
};

// ---- attention ----
struct AttentionKernels {
  // workspace: attention_workspace_bytes, 64-byte aligned
  void (*run)(const AttentionJob& job, float* workspace);
  // bf16 products, or null. workspace: bf16_attention_workspace_bytes. Returns the first key of the job with a value
  // that is not finite: tokens that see it must go through `run`. kAllFinite where there is none.
  int64_t (*run_bf16)(const AttentionJob& job, float* workspace);
};

// ---- elementwise ----
struct ElementwiseKernels {
  // y = a op b over n elements; op is a QfBinary
  void (*binary)(const float* a, const float* b, float* y, int64_t n, int32_t op);
  // y = act(x) * scale + shift over n elements
  void (*unary)(const float* x, float* y, int64_t n, int32_t activation, float scale, float shift);
  // y = x with conversion, f32 | f16 | bf16 on either side, over n elements
  void (*convert)(const void* x, int32_t x_dtype, void* y, int32_t y_dtype, int64_t n);
};

// ---- image ----
inline constexpr int32_t kResampleBits = 22;  // fractional bits of the filter taps
inline constexpr int64_t kResizeRows = 16;    // rows of one horizontal call

// Output i of an axis is the sum over k < count[i] of weights[i * taps + k] * input[first[i] + k].
struct ResampleTaps {
  int64_t outputs, taps;
  const int64_t* first;
  const int64_t* count;
  const int32_t* weights;
  // The same weights in signed bytes, where they fit and the kernels ask for them: [outputs][quads][kTapDigits], the
  // bytes of four columns from a multiple of four on in each number. Else null.
  const int32_t* digits;
  int64_t quads;
};
inline constexpr int64_t kTapDigits = 3;

struct ImageKernels {
  bool takes_digits;
  // src: [rows, width, 3] -> dst: [rows, outputs, 3], rows <= kResizeRows; scratch: 3 * kResizeRows bytes for each of
  // `width` columns, rounded up to 64
  void (*resize_horizontal)(const uint8_t* src, int64_t rows, int64_t width, const ResampleTaps& axis, uint8_t* dst,
                            uint8_t* scratch);
  // one output row, src: [count, columns] -> dst: [columns]
  void (*resize_vertical)(const uint8_t* src, int64_t columns, const int32_t* weights, int64_t count, uint8_t* dst);
};

struct CpuKernels {
  const char* level;  // as in QfDeviceInfo
  int32_t lanes;
  LinearKernels linear;
  QuantKernels quant;
  NormKernels norm;
  SoftmaxKernels softmax;
  RopeKernels rope;
  AttentionKernels attention;
  ElementwiseKernels elementwise;
  ImageKernels image;
};

// The table chosen when first asked: the best the CPU runs, or the one QFORMER_ISA names (scalar, avx2, avx512,
// avx512bf16, amx, neon). A name this CPU cannot run is ignored.
const CpuKernels& kernels();

// The table of that name, or null where this build or this CPU lacks it.
const CpuKernels* find_kernels(const char* level);

// Makes kernels() return `table` from now on; null restores the choice. For tests: no op may be running.
void override_kernels(const CpuKernels* table);

}  // namespace qformer::cpu
