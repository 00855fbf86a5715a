// T5 adds a learned bias per head to each attention score, chosen by the bucket of the distance between key and query: one
// bucket per distance while it is small, logarithmically wider ones up to `maxDistance`, the last for everything beyond. An
// encoder has half of the buckets for either direction; a decoder sees only what came before.
// Source: Raffel et al. 2020, section 2.1. Bit for bit the reference's: the logarithm is rounded to f32 at each step.

export interface BucketOptions {
  /** relative_attention_num_buckets */
  numBuckets: number;
  /** relative_attention_max_distance */
  maxDistance: number;
  /** True in the encoder. */
  bidirectional: boolean;
}

/** The bucket of `relativePosition` = position of the key − position of the query. */
export function relativePositionBucket(relativePosition: number, options: BucketOptions): number {
  const { maxDistance, bidirectional } = options;
  const numBuckets = bidirectional ? Math.floor(options.numBuckets / 2) : options.numBuckets;
  const first = bidirectional && relativePosition > 0 ? numBuckets : 0;
  const distance = bidirectional ? Math.abs(relativePosition) : Math.max(-relativePosition, 0);
  const exact = Math.floor(numBuckets / 2);
  if (distance < exact) return first + distance;
  // f32 from step to step: near a power of the ratio, one rounding decides the bucket.
  const { fround } = Math;
  const share = fround(fround(Math.log(fround(distance / exact))) / Math.log(maxDistance / exact));
  const wide = exact + Math.trunc(fround(share * (numBuckets - exact)));
  return first + Math.min(wide, numBuckets - 1);
}

/** Buckets of every query (rows) and key (columns), row-major: the indices into the table of biases. */
export function relativePositionBuckets(queries: number, keys: number, options: BucketOptions): Int32Array {
  const byDistance = new Map<number, number>();
  const bucketOf = (relative: number): number => {
    const known = byDistance.get(relative) ?? relativePositionBucket(relative, options);
    byDistance.set(relative, known);
    return known;
  };
  return Int32Array.from({ length: queries * keys }, (_, i) => bucketOf((i % keys) - Math.floor(i / keys)));
}
