// Why rows miss their bars, as far as it was found: printed under a report for what it shows as lost. Figures are of a Zen 5 EPYC
// unless an entry names the Emerald Rapids Xeon or the Zen 3 EPYC, all with two CPUs of a shared host, and of the change that found
// them.

interface Cause {
  /** The rows it is about, by "group: name". */
  of: RegExp;
  text: string;
}

const CAUSES: readonly Cause[] = [
  {
    of: /^linear: M=(32|257) /,
    text:
      'The limit is a loop of multiply-adds on registers. A group of k in a register tile, 24 multiply-adds with their loads, takes 11.8 ' +
      'cycles of 12; with the eight shuffles and four stores that pack w on the way 14.7, and 18 in the product itself: the tile that packs w ' +
      'costs 1.5 times the others, 9 % of a product of 32 rows, and the tile of what is left, 2 rows of 32, half as much as one of 6. Of 257 × ' +
      '1408 × 1408 in bf16 with one thread 93 % are in register tiles, 4 in packing x, 2 in finishing y; w from DRAM instead of a cache costs ' +
      '10 to 20 % with 32 rows. Two threads wait 2 to 5 % for each other, and for seconds the kernel keeps both on one CPU. oneDNN with weights ' +
      'packed beforehand is as fast to some percent with 257 rows. Found: fetching x ahead into L1 cost 4 to 15 % (gone), even tiles of 6 and 5 ' +
      'rows 5 to 19 % with 28, 32 and 33 rows (they are filled now), functions that begin anywhere up to 19 % (they begin at lines now). Tried: ' +
      'dot products along k on packed panels (0.7 to 1.1 times outer products), outer products lane by lane (0.86 to 0.96), tiles of 8 × 3, ' +
      '4 × 6, 12 × 2 and 5 × 5 vectors and blocks of 64 and 128 groups (no gain), w straight from its rows (0.83 at k = 4096), w packed by copies of ' +
      '16 bytes (0.92 to 0.97), fetching w into L1 (0.97 to 1.04), every second line of it (0.83 to 0.94), in bursts (0.8 to 0.98), while w is ' +
      'packed too (0.86 to 0.97), four rows of w at once (0.90 to 1.01), a panel ahead as one stream (0.7 to 1.0), adding lanes with blends ' +
      '(0.96 to 1.0), groups of four columns, which need no shuffle across lanes (0.96 to 1.01; f32 with rows of x as they are 0.91 to 0.93), packing ' +
      'the next panel while this one is multiplied (0.63 to 0.99), packing x by whole vectors (0.97 to 1.01), ' +
      'packed rows of x apart, each a stream of its own (bf16 0.94 to 0.98), fetching the next rows while x is packed (0.99 to 1.02). With 257 rows packing w costs 1 to ' +
      '3 %, x that comes from L2 2 to 3, the lanes 0 to 2; without all of these and without w from memory the loops reach 93 to 99 %. With 32 ' +
      'rows packing w costs 5 to 11 % and fetching it 9 to 20. ' +
      'With a matrix unit (Emerald Rapids Xeon, bf16): a step of four tile loads and four products takes 23 ns at best, its limit, and ' +
      '80 to 140 ns for seconds at a time; at best 257 × 1408 × 1408 reaches 44 %: writing y takes 15 %, packing x 11 %, sums that ' +
      'wait between panels 15 %, and 257 rows take 17 tiles of 16. ' +
      'With AVX2 alone (Zen 3 EPYC, no bf16 instructions, so that the limit is that of f32): the limit has no other instructions between its ' +
      'multiply-adds, a tile of 3 × 4 vectors has 7 loads for 12. On that host a loop of multiply-adds reaches 94 GFLOP/s in the middle of 400 ' +
      'samples, with as many additions of integers in between 79, the tile 84 to 89, though each has 98 at best: the other thread of the core ' +
      'probably works for others. One thread spends 88 % of 257 × 1408 × 1408 in tiles, 6 in packing w, 3 in packing x. Found: GCC kept ' +
      'sums in memory, which halved the speed (they are in registers now). Tried: tiles of 6 × 2 vectors (as fast), w straight from memory in ' +
      'multiply-adds (0.7), fetching x ahead (0.94 to 1.05), blocks of 96 and 136 rows (0.90 to 1.19 times, slower at k = 1408, ' +
      'faster at 6144), the same with w packed once for all blocks (0.99 to 1.07), panels of rows below 17 (0.5 to 1.05).',
  },
  {
    of: /^linear, one row: .* int[48] /,
    text:
      'The limit is a read of one long array. A product reads as many streams of weights as a tile has rows, and as many of scales, and ' +
      'begins and ends them in microseconds; from L2 the loops of one thread take up to 51 GB/s (int4) and 69 GB/s (int8).',
  },
  {
    of: /^linear, one row: .* bf16 /,
    text:
      'Four rows of w read side by side come 1.2 times as fast from DRAM as eight; from a cache they wait for their multiply-adds, 18 cycles for ' +
      '256 bytes.',
  },
  {
    of: /^LLaMA 1\.1B: decode, int/,
    text:
      'A token reads 1,067 MB (int8) or 582 MB (int4), where Q8_0 and Q4_0 read 1,099 and 581 MB; the head has 8 bits in either. ' +
      'Products of 2,048 × 2,048 read at 45 GB/s with two threads in int4, those of the key and value matrices of 256 rows at 20, ' +
      'those of the head at 55. Tried: q, k and v as one product (1 to 3 %).',
  },
  {
    of: /^LLaMA 1\.1B: prefill of \d+ tokens, int/,
    text:
      'x has 16 bits unless asked otherwise, so that a product costs as many multiply-adds as one in bf16; of the limit of bf16, products of ' +
      '256 rows reach 81 to 85 % while the host is quiet. The multiply-adds of a tile alone reach 96; the end of each unit of 64 columns, ' +
      'a conversion, a product of scales and a multiply-add for each sum, takes 10. Tried: w widened to 16 bits panel by panel (0.99 to 1.02; without ' +
      'VNNI 0.8 in int8 and 1.0 to 1.06 in int4), the end of a unit between the multiply-adds of the next (0.85 to 1.0), blocks of 256 to 1,024 columns ' +
      'of k, which keep w in L1 (0.95 to 0.99). Found: with the packed quads of a row of x together, 1.02 to 1.035 times as fast (they are now).',
  },
  {
    of: /^LLaMA 1\.1B: prefill of \d+ tokens, bf16/,
    text:
      'Nine tenths of the samples of a profile are in products: 79 % in their register tiles, 5 % in epilogues, 3 % in packing x; 3 % are in attention. ' +
      'The tiles alone, at 78 % of the limit, take 750 of 950 ms.',
  },
  {
    of: /^ViT-g.* bf16$/,
    text:
      'Without a matrix unit the limit of bf16 is twice that of f32, and onnxruntime-node reaches 75 to 80 % of the latter: twice its speed ' +
      'would take as much of the bf16 limit, epilogues, attention and norms included. Attention in bf16 dot products takes 1.7 to 2.2 ms a layer ' +
      'with one thread, in f32 2.9 to 3.6. ' +
      'With AVX2 alone (Zen 3 EPYC) bf16 weights are multiplied in f32, at the limit of f32, and twice the speed of onnxruntime-node would be ' +
      'above it.',
  },
  {
    of: /^ViT-g.* f32$/,
    text:
      'As the f32 products of 257 rows, which are 97 % of the arithmetic of the tower. Attention takes 2.9 to 3.6 ms a layer with one thread, ' +
      '5 % of the tower; its multiply-adds alone would take 1.7.',
  },
  {
    of: /^image: /,
    text:
      'Fresh memory: a page fault costs 15 to 18 µs on this host. Decoding takes 25 ms with 1,100 of them for 4.5 MB of pixels and 7.5 ms without, ' +
      'resizing 1.3 ms. The copy that a worker can be given took 19 ms with as many, and takes 1 in memory that the worker gives back. ' +
      'Pillow decodes in 42 to 52 ms with 2,600 to 2,900 faults and in 8 with 400.',
  },
  {
    of: /^busy neighbour: int4/,
    text:
      'A thread that shares its CPU stops for 4 ms with a task in hand. It is left out then, at first for some times as long and at most for 250 ms, ' +
      'so that a turn of 16 tokens, which begins with the loop, sees five such stops by that arithmetic, 20 of 330 ms.',
  },
  {
    of: /^start: /,
    text: 'Nearly all of it is Node itself: see the empty program of the same run.',
  },
];

/** Lines of Markdown: what was found about those of `lost`, each "group: name". */
export function causesOf(lost: readonly string[]): string[] {
  return CAUSES.flatMap(({ of, text }) => {
    const rows = [...new Set(lost.filter((title) => of.test(title)))];
    return rows.length === 0 ? [] : [`- **${rows.join('; ')}**: ${text}`];
  });
}
