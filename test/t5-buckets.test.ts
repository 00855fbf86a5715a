// Relative position buckets of T5 against the reference's, exactly (test/fixtures/kernels).

import { describe, expect, it } from 'vitest';
import { relativePositionBucket, relativePositionBuckets, type BucketOptions } from '../lib/models/t5-buckets.js';
import { Goldens, readJson } from './support/fixtures.js';

interface BucketCase {
  prefix: string;
  num_buckets: number;
  max_distance: number;
  bidirectional: boolean;
}

const { cases } = readJson<{ cases: BucketCase[] }>('kernels', 't5_buckets.json');
const goldens = new Goldens('kernels', 't5_buckets.safetensors');
const ENCODER: BucketOptions = { numBuckets: 32, maxDistance: 128, bidirectional: true };

describe('the relative position bucket of T5', () => {
  it.each(cases)('$prefix $num_buckets buckets up to $max_distance, bidirectional: $bidirectional', (c) => {
    const options = { numBuckets: c.num_buckets, maxDistance: c.max_distance, bidirectional: c.bidirectional };
    const found = goldens.ids(`${c.prefix}relative_position`).map((p) => relativePositionBucket(p, options));
    expect(found).toEqual([...goldens.ids(`${c.prefix}bucket`)]);
  });

  it('puts everything beyond the largest distance into the last bucket of its direction', () => {
    expect([-1e6, 1e6].map((p) => relativePositionBucket(p, ENCODER))).toEqual([15, 31]);
    expect([-1e6, 1e6].map((p) => relativePositionBucket(p, { ...ENCODER, bidirectional: false }))).toEqual([31, 0]);
  });

  it('is laid out with queries as rows and keys as columns', () => {
    expect([...relativePositionBuckets(2, 3, ENCODER)]).toEqual([0, 17, 18, 1, 0, 17]);
    expect(relativePositionBuckets(0, 3, ENCODER)).toHaveLength(0);
  });
});
