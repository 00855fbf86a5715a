// Why rows miss their bars, as far as it was found: printed under a report for what it shows as lost. Figures are of a Zen 5 EPYC
// unless an entry names the Emerald Rapids Xeon, both with two CPUs of a shared host, and of the change that found them.

interface Cause {
  /** The rows it is about, by "group: name". */
  of: RegExp;
  text: string;
}

const CAUSES: readonly Cause[] = [
  {
    of: /^linear: M=(32|257) /,
    text:
      'The limit is a loop of multiply-adds on registers. The register tile alone, over packed operands from L1 or L2, runs at 95 to 96 % ' +
      'of it. Of a product of 257 × 1408 × 1408 with two threads, rounding and packing x took 10 % in bf16 and 6 % in f32 (two threads ' +
      'pack no faster than one; a line takes 245 ns from core to core on this host), finishing y 1 to 2 %, and the threads waited 2 to 5 % ' +
      'for each other. Since then each of two threads packs x for itself (1.15 to 1.3 times as fast at 768 × 768, 0.98 to 1.05 elsewhere), and f32 ' +
      'takes x from its rows up to 1,536 columns (1.1 times as fast at 768 × 768, 0.94 at 4096 × 4096), and threads know the columns they go ' +
      'on with and end with single tasks (1.0 to 1.1 times at 1,408 columns and with 32 rows). oneDNN with weights packed beforehand is ' +
      'as fast to some percent at 257 × 1408 × 1408. Tried: dot products along k on packed panels ' +
      '(0.7 to 1.1 times outer products), outer products lane by lane (0.86 to 0.96 of this way), tiles of 8 × 3, 4 × 6, 12 × 2 and 5 × 5 vectors ' +
      'and blocks of 64 and 128 groups (no gain). With 32 rows the tile that packs w costs 1.25 times ' +
      'the others: 6 % of the product at 1,408 columns, 12 at 4096 × 4096; finishing y takes 3 %, and w from DRAM instead of a cache 10 to 20. ' +
      'Tried: w straight from its rows (0.83 at k = 4096, no gain below), every second line fetched ahead (0.83 to 0.94), fetching in bursts ' +
      '(0.8 to 0.98), more evenly (0.97 to 1.05), while w is packed too (0.86 to 0.97), into L1 instead of L2 (1.0 to 1.08; 0.97 with 257 rows). ' +
      'With a matrix unit (Emerald Rapids Xeon, bf16): a step of four tile loads and four products takes 23 ns at best, its limit, and ' +
      '80 to 140 ns for seconds at a time; at best 257 × 1408 × 1408 reaches 44 %: writing y takes 15 %, packing x 11 %, sums that ' +
      'wait between panels 15 %, and 257 rows take 17 tiles of 16.',
  },
  {
    of: /^linear, one row: .* int[48] /,
    text:
      'The limit is a read of one long array. A product reads as many streams of weights as a tile has rows, and as many of scales, and ' +
      'begins and ends them in microseconds; from L2 the loops of one thread take up to 51 GB/s (int4) and 69 GB/s (int8).',
  },
  {
    of: /^linear, one row: .* bf16 /,
    text: 'Not looked into. Two threads, and one in another run of the same day, read 86 to 103 % of what the plain read did.',
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
      '257 rows reach 78 to 83 % with one thread and 70 to 77 with two.',
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
      'would take as much of the bf16 limit, epilogues, attention and norms included. Of the 1.73 s that one thread takes at best, 1.43 are in ' +
      'register tiles, at 82 to 86 % of the limit, 0.12 in attention, whose products are f32 without a matrix unit, 0.05 in finishing y and ' +
      '0.03 in packing x.',
  },
  {
    of: /^ViT-g.* f32$/,
    text: 'As the f32 products of 257 rows, which are 97 % of the arithmetic of the tower.',
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
      'Not looked into. Five hours earlier the same figure was 0.989, with 45 tokens/s beside the loop and 46 alone; now one thread alone makes ' +
      '48 to 49 and beside the loop 41 to 45.',
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
