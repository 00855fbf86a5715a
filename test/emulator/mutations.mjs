// One mistake each, planted in the kernels as they ship: scripts/mutation-tests.mjs proves that the native tests on the
// emulated GPU notice every one of them. MUTATIONS.md is the result.
//
// file: in cuda/. find: text that stands there exactly once; replace: what a slip would have left instead. object: the
// translation unit that is compiled anew with it, program: the native test that must then fail. caught: how, one of the
// kinds of scripts/mutation-tests.mjs (several where schedules differ).

const remove = (find) => ({ find, replace: '' });

/** @typedef {{ what: string, file: string, find: string, replace: string, object: string, program: string, caught: string[] }} Mutation */

const attention = { object: 'attention_f16.cu', program: 'attention_test' };
const paged = { object: 'attention_f16.cu', program: 'paged_attention_test' };
const gemm = { object: 'gemm_f16.cu', program: 'gemm_test' };
const decode = { object: 'decode.cu', program: 'decode_test' };
const quantized = { object: 'quant_decode.cu', program: 'quant_linear_test' };
const qformer = { object: 'qformer_fused.cu', program: 'qformer_cross_attention_test' };
const merge = { object: 'lora_merge.cu', program: 'lora_merge_test' };
const apply = { object: 'lora_apply.cu', program: 'lora_apply_test' };
const sampling = { object: 'sampling_warp.cu', program: 'sampling_test' };
const append = { object: 'kv_cache.cu', program: 'paged_attention_test' };

/** @type {Mutation[]} */
export const mutations = [
  {
    what: 'attention by rows: no barrier once K has landed',
    file: 'attention_rows.cuh',
    ...remove('__syncthreads();  // K (and q) have landed; everybody is done with V of the block before'),
    ...attention,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'attention by rows: no barrier once V has landed',
    file: 'attention_rows.cuh',
    ...remove('__syncthreads();  // V has landed; everybody is done with K'),
    ...attention,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'attention by rows: V is not waited for',
    file: 'attention_rows.cuh',
    find: 'cp_async_wait_all();\n    __syncthreads();  // V has landed',
    replace: '__syncthreads();  // V has landed',
    ...attention,
    caught: ['copy under way'],
  },
  {
    what: 'attention by rows: blocks that rows see in part are not masked',
    file: 'attention_rows.cuh',
    ...remove('if (!inside) mask_block(s, first, rows.range);'),
    ...attention,
    caught: ['wrong value'],
  },
  {
    what: 'attention: the mask lets one key too many through',
    file: 'attention_softmax.cuh',
    find: 'key >= range[i / 2].end) s[n][i]',
    replace: 'key > range[i / 2].end) s[n][i]',
    ...attention,
    caught: ['wrong value'],
  },
  {
    what: 'attention by rows: rows past the last of a sequence are stored',
    file: 'attention_rows.cuh',
    find: 'if (r >= tile.rows || chunk * 8 >= p.head_dim) continue;',
    replace: 'if (chunk * 8 >= p.head_dim) continue;',
    ...attention,
    caught: ['race', 'out of bounds'],
  },
  {
    what: 'attention: tiles without swizzle',
    file: 'attention_tile.cuh',
    find: '(chunk ^ static_cast<int32_t>(repeat)) * 8',
    replace: '(chunk + 0 * static_cast<int32_t>(repeat)) * 8',
    ...attention,
    caught: ['bank conflicts'],
  },
  {
    what: 'attention by key blocks: the wait lets one group too many pend',
    file: 'attention_keys.cuh',
    find: 'cp_async_wait<Shape::kStages - 2>();',
    replace: 'cp_async_wait<Shape::kStages - 1>();',
    ...paged,
    caught: ['copy under way'],
  },
  {
    what: 'attention by key blocks: lanes do not meet before a stage is read and refilled',
    file: 'attention_keys.cuh',
    ...remove(
      '__syncwarp(0xffffffffu);  // this step has landed for all lanes; all lanes are done with the step before',
    ),
    ...paged,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'attention by key blocks: a partial overwrites a ring that lanes still read',
    file: 'attention_keys.cuh',
    ...remove('__syncwarp(0xffffffffu);  // all lanes are done with the ring as a ring'),
    ...paged,
    caught: ['race'],
  },
  {
    what: 'paged decode: slots are read before all lanes have stored them',
    file: 'paged_kernel.cuh',
    find: 'slots.store(key, slot_of(p, tile.sequence, first + key));\n    __syncwarp(0xffffffffu);',
    replace: 'slots.store(key, slot_of(p, tile.sequence, first + key));',
    ...paged,
    caught: ['race', 'uninitialised'],
  },
  {
    what: 'split keys: a block arrives without a fence behind its partials',
    file: 'attention_arrival.cuh',
    ...remove('__threadfence();  // cumulative: after the barrier it covers the writes of the whole CTA'),
    ...paged,
    caught: ['fence'],
  },
  {
    what: 'split keys: the last block reads partials without a fence',
    file: 'attention_arrival.cuh',
    ...remove(
      '__threadfence();                // what the others published before they arrived is visible from here on',
    ),
    ...paged,
    caught: ['fence'],
  },
  {
    what: 'GEMM: four stages, one group too many may pend',
    file: 'gemm_mainloop.cuh',
    find: 'cp_async_wait<2>();',
    replace: 'cp_async_wait<3>();',
    ...gemm,
    caught: ['copy under way'],
  },
  {
    what: 'GEMM: no barrier between the steps of the main loop',
    file: 'gemm_mainloop.cuh',
    find: 'wait_for_stage(stages);\n        __syncthreads();',
    replace: 'wait_for_stage(stages);',
    ...gemm,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'GEMM: columns past the end of k are copied instead of zeros',
    file: 'gemm_load.cuh',
    find: 'cp_async16(to, from + (offset + k), k < limit_);',
    replace: 'cp_async16(to, from + (offset + k), true);',
    ...gemm,
    caught: ['out of bounds', 'uninitialised', 'wrong value'],
  },
  {
    what: 'GEMM: rows past the end are clamped one too late',
    file: 'gemm_load.cuh',
    find: 'args.m - 1 - row',
    replace: 'args.m - row',
    ...gemm,
    caught: ['out of bounds'],
  },
  {
    what: 'GEMM: fragments of x are read without the swizzle',
    file: 'gemm_mainloop.cuh',
    find: 'x_base_ = Tile::offset(x_row, lane / 16);',
    replace: 'x_base_ = x_row * Tile::kStep + lane / 16 * kCopyElements;',
    ...gemm,
    caught: ['wrong value', 'bank conflicts'],
  },
  {
    what: 'split-K: no fence before the ticket',
    file: 'gemm_split.cuh',
    ...remove('__threadfence();  // cumulative: after the barrier it covers the stores of the whole block'),
    ...gemm,
    caught: ['fence'],
  },
  {
    what: 'split-K: no fence before the chunks are read back',
    file: 'gemm_split.cuh',
    find: 'if (flag.load(0) == 0) return false;\n  __threadfence();',
    replace: 'if (flag.load(0) == 0) return false;',
    ...gemm,
    caught: ['fence'],
  },
  {
    what: 'decode: lanes do not meet before a stage of the ring is read',
    file: 'decode_stream.cuh',
    ...remove('__syncwarp();  // the stage is there for all lanes, and all have read the one before it'),
    ...decode,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'decode: the stage being read is refilled',
    file: 'decode_stream.cuh',
    find: 'ring.load(ahead, stage == 0 ? stages - 1 : stage - 1);',
    replace: 'ring.load(ahead, stage);',
    ...decode,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'decode: no barrier between the exchange of sums and its readers',
    file: 'decode_stream.cuh',
    find: 'exchange.put(chunk, sums);\n  __syncthreads();',
    replace: 'exchange.put(chunk, sums);',
    ...decode,
    caught: ['race', 'uninitialised'],
  },
  {
    what: 'decode: tokens past the last are copied',
    file: 'decode_stream.cuh',
    find: 'valid && row < tokens_.m);',
    replace: 'valid);',
    ...decode,
    caught: ['out of bounds'],
  },
  {
    what: 'quantized decode: codes past the end of k are copied',
    file: 'quant_stream.cuh',
    find: 'const bool codes_valid = k + code_chunk * (128 / kBits) < tokens_.k;',
    replace: 'const bool codes_valid = true;',
    ...quantized,
    caught: ['out of bounds'],
  },
  {
    what: 'quantized decode: lanes do not meet before a stage of the ring is read',
    file: 'quant_stream.cuh',
    ...remove('__syncwarp();  // the stage is there for all lanes, and all have read the one before it'),
    ...quantized,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'Q-Former block: rings are refilled while other warps read partials in them',
    file: 'qformer_fused.cuh',
    ...remove('__syncthreads();  // the rings are free for the next round'),
    ...qformer,
    caught: ['race', 'copy under way'],
  },
  {
    what: 'Q-Former block: queries past the last are stored',
    file: 'qformer_fused.cuh',
    ...remove('if (query >= a.num_query) continue;'),
    ...qformer,
    caught: ['race', 'out of bounds'],
  },
  {
    what: 'LoRA merge: a tile is overwritten while other warps read it',
    file: 'lora_merge.cu',
    ...remove('__syncthreads();  // the tiles are no longer read'),
    ...merge,
    caught: ['race'],
  },
  {
    what: 'LoRA merge: columns of a past the edge are read',
    file: 'lora_merge.cu',
    find: 'rank < op.rank && col < op.in ? a',
    replace: 'rank < op.rank ? a',
    ...merge,
    caught: ['out of bounds'],
  },
  {
    what: 'LoRA apply: sums of warps are read before they are stored',
    file: 'lora_apply.cu',
    find: '__syncthreads();\n  if (thread >= (end - begin) * kRanks) return;',
    replace: 'if (thread >= (end - begin) * kRanks) return;',
    ...apply,
    caught: ['race', 'uninitialised'],
  },
  {
    what: 'sampling: the bins of the next pass are cleared while the found one is read',
    file: 'radix_select.cuh',
    ...remove('__syncthreads();  // found and the bins may change again'),
    ...sampling,
    caught: ['race'],
  },
  {
    what: 'sampling: an exchange reuses the slots of the one before',
    file: 'sampling_row.cuh',
    ...remove('turn_ ^= 1;'),
    ...sampling,
    caught: ['race'],
  },
  {
    what: 'KV append: a negative slot is written',
    file: 'kv_cache.cu',
    ...remove('if (slot < 0) return;'),
    ...append,
    caught: ['out of bounds'],
  },
];
