// What a card can do at most, from its data sheet: bytes/s of its memory, flop/s of dense f16 products with f32 accumulation.

export interface Limits {
  bandwidth: number;
  tensorFlops: number;
  source: string;
}

/** By a word of the device's name; the first that matches. NVIDIA's data sheets, dense figures. */
const CARDS: readonly (readonly [RegExp, gigabytes: number, teraflops: number])[] = [
  [/H200/, 4800, 989],
  [/H100.*(PCIe|NVL)/, 2000, 756],
  [/H100/, 3350, 989],
  [/B200|GB200/, 8000, 2250],
  [/A100.*80GB/, 2039, 312],
  [/A100/, 1555, 312],
  [/A10G?\b/, 600, 125],
  [/L40S/, 864, 362],
  [/L4\b/, 300, 121],
  [/RTX 5090/, 1792, 210],
  [/RTX 4090/, 1008, 165],
  [/RTX 3090/, 936, 71],
  [/T4\b/, 320, 65],
];

/** Undefined for a card (or a CPU) that is not in the list: then there is no floor to compare with. */
export function limitsOf(device: string): Limits | undefined {
  const card = CARDS.find(([name]) => name.test(device));
  return card && { bandwidth: card[1] * 1e9, tensorFlops: card[2] * 1e12, source: 'data sheet' };
}
