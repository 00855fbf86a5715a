// Inverse frequencies of rotary position embeddings (Su et al., RoFormer, section 3.2.2), with the two context
// extensions that LLaMA checkpoints carry: linear position interpolation (Chen et al. 2023) and the wavelength-dependent
// rule of LLaMA 3.1. Both change the frequencies only, so the rope kernel knows neither.

/** How the frequencies of a checkpoint were stretched for longer contexts. */
export type RopeScaling =
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      /** tokens */
      originalMaxPositionEmbeddings: number;
    };

/** theta^(−2j/head_dim) for j < head_dim / 2, scaled: [head_dim / 2] f32, rounded to f32 where the reference rounds. */
export function rotaryFrequencies(headDim: number, theta: number, scaling?: RopeScaling): Float32Array {
  return Float32Array.from({ length: headDim / 2 }, (_, j) => {
    const frequency = 1 / Math.fround(theta ** Math.fround((2 * j) / headDim));
    return scaling === undefined ? frequency : scaleFrequency(Math.fround(frequency), scaling);
  });
}

function scaleFrequency(frequency: number, scaling: RopeScaling): number {
  if (scaling.type === 'linear') return frequency / scaling.factor;
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = scaling;
  const rotations = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
  if (rotations < lowFreqFactor) return frequency / factor;
  if (rotations > highFreqFactor) return frequency;
  const share = (rotations - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return ((1 - share) * frequency) / factor + share * frequency;
}
