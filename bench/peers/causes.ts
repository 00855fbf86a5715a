// Why rows miss their bars, as far as it was found: printed under a report for what it shows as lost. Figures are of an Emerald
// Rapids Xeon, two CPUs of a shared host whose speed changes by a factor of two to three, one thread unless said, and of the change that found them.

interface Cause {
  /** The rows it is about, by "group: name". */
  of: RegExp;
  text: string;
}

const CAUSES: readonly Cause[] = [
  {
    of: /^linear: M=257 .* f32 /,
    text:
      'The limit is a loop of multiply-adds on registers. A loop that also loads its operands from L1, as a product must, reaches 97 % of ' +
      'it at best and 80 to 89 % while the host is busy, whatever the tile (12 × 2, 8 × 3 or 6 × 4 ' +
      'vectors, operands in registers or in memory). Of a product, packing w takes 7 %, writing y 5 %, packing x 1 to 4 % and the sums ' +
      'that wait in L2 between lanes 8 %: at best that leaves 83 % (K = 1408), 78 % (768, 4096) and 74 % (6144). Tried: dot ' +
      'products on packed panels (58 % where outer products reach 63 to 69 %), then outer products (this one); rows in groups whose ' +
      'sums stay in L1 (0.97 times), lanes two by two (0.97 to 0.99 times).',
  },
  {
    of: /^linear: M=257 .* bf16 /,
    text:
      'The matrix unit reaches its limit of 2,347 GFLOP/s on tiles that stay in registers. The loop of a product, four tile loads to ' +
      'four products, runs at that rate at best, 23 ns a step; for seconds at a time a step takes 80 to 140 ns, and the products alone up ' +
      'to 60, whatever our other CPU does. At best 257 × 1408 × 1408 reaches 44 % and 257 × 4224 × 1408 48 %: ' +
      'writing y takes 15 % (its lines go to L3 and back), packing x 11 %, sums that wait between panels 15 %, and 257 rows take 17 ' +
      'tiles of 16. oneDNN with weights packed beforehand reaches 41 to 48 %. Tried: panels from L2 with w in place (834 GFLOP/s), then ' +
      'w copied on its first use where it would not stay in L1 and sums finished between products (1,117); w always copied (0.91 to 1.01 times).',
  },
  {
    of: /^linear, one row: .* int[48] /,
    text:
      'The limit is a read of one long array. A product reads as many streams of weights as a tile has rows, and as many of scales, and ' +
      'begins and ends them in microseconds; from L2 the loops take up to 35 GB/s (int4) and 60 GB/s (int8).',
  },
  {
    of: /^LLaMA 1\.1B: decode, int/,
    text:
      'A token reads 1,067 MB (int8) or 582 MB (int4), where Q8_0 and Q4_0 read 1,099 and 581 MB; the head has 8 bits in either. ' +
      'While scales had 32 bits (615 MB), the products alone took 24.5 of 27.5 ms of a token in int4, with two threads; those of the ' +
      'key and value matrices of 256 rows read at half the rate of the others. Tried: huge pages for matrices of 2 MB as well (no gain), q, k and v as one product (1 to 3 %).',
  },
  {
    of: /^LLaMA 1\.1B: prefill of \d+ tokens, int/,
    text:
      'x has 16 bits, which on the matrix unit are two products of bytes, and sums leave the tiles for each group of 64 columns to be ' +
      'scaled. A step of 16 × 32 sums costs 120 ns: loading tiles 40, multiplying 33, storing 25, scaling 40, hardly overlapped. Tried: ' +
      'scaling between the instructions of the next step (no gain; slower beside a busy hyper-thread), tiles of rows in groups that ' +
      'stay in L1 with x fetched ahead (no gain). bf16 weights need neither and are the faster choice for long prompts.',
  },
  {
    of: /^LLaMA 1\.1B: prefill of \d+ tokens, bf16|^ViT-g.* bf16$/,
    text: 'As the bf16 products of 257 rows: in the vision tower 73 % of the samples of a profile are in them, 9 % in their epilogues (GELU among them), 10 % in attention.',
  },
  {
    of: /^ViT-g.* f32$/,
    text: 'As the f32 products of 257 rows, which are 97 % of the arithmetic of the tower.',
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
