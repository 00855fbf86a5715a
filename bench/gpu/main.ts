// Measures ops on one device: `bench.js --device cuda --out FILE [--smoke] [--filter TEXT] [--dtype f16|bf16|f32]`.
//
// Calls on several copies of their data are recorded into one graph, so that a measurement holds device work and no calls
// from JavaScript; a sample is one replay with a synchronisation. Writes JSON after every case.

import { writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { Tensor, devices, keep, ops, record, scope, type Dtype, type QuantizedWeight } from '../../lib/tensor/index.js';
import { summarise } from '../measure.js';
import { MODEL_SIZES, SMOKE_SIZES, type DeviceData, type GpuCase } from './case.js';
import { gpuCases } from './cases.js';
import { limitsOf, type Limits } from './limits.js';

/** Copies of a call's data hold this much together: several times any L2 cache. */
const ROTATION_BYTES = 512e6;
const MAX_COPIES = 64;
/** A replay takes at least about this long at the floor, ms, so that the synchronisation does not count. */
const REPLAY_MS = 4;
const SAMPLES = 15;

interface Row {
  name: string;
  kind: string;
  params: GpuCase['params'];
  flops: number;
  bytes: number;
  floorUs?: number;
  us?: number;
  minUs?: number;
  maxUs?: number;
  calls?: number;
  error?: string;
}

/** Tensors on `device` that are freed together. Values repeat a pool: speed does not depend on them. */
class Data implements DeviceData {
  readonly #tensors: Tensor[] = [];
  readonly #pool = Float32Array.from({ length: 65_521 }, (_, i) => Math.sin(i * 12.9898) * 0.9 + 0.05);

  constructor(
    private readonly device: string,
    readonly dtype: Dtype,
  ) {}

  random(shape: readonly number[], dtype: Dtype = this.dtype, scale = 1): Tensor {
    const count = shape.reduce((all, extent) => all * extent, 1);
    const values = new Float32Array(count);
    const pool = this.#pool.map((value) => value * scale);
    for (let at = 0; at < count; at += pool.length) values.set(pool.subarray(0, Math.min(pool.length, count - at)), at);
    const made = Tensor.fromArray(values, shape, { device: this.device });
    if (dtype === 'f32') return this.#own(made);
    const converted = this.#own(made.cast(dtype));
    made.dispose();
    return converted;
  }
  ints(values: readonly number[], shape: readonly number[] = [values.length]): Tensor {
    return this.#own(Tensor.fromArray(Int32Array.from(values), shape, { device: this.device }));
  }
  ones(count: number): Tensor {
    return this.#own(Tensor.fromArray(new Float32Array(count).fill(1), [count], { device: this.device }));
  }
  quantized(n: number, k: number, bits: 4 | 8, group: number): QuantizedWeight {
    const w = this.random([n, k], this.dtype, k ** -0.5);
    const { q, scales } = ops.quantize(w, { bits, group });
    this.#tensors.splice(this.#tensors.indexOf(w), 1);
    w.dispose();
    return { q: this.#own(q), scales: this.#own(scales) };
  }
  dispose(): void {
    for (const tensor of this.#tensors.splice(0)) tensor.dispose();
  }
  #own(tensor: Tensor): Tensor {
    this.#tensors.push(keep(tensor));
    return tensor;
  }
}

function measureCase(one: GpuCase, device: string, dtype: Dtype, limits: Limits | undefined, smoke: boolean): Row {
  const { name, kind, params, flops, bytes } = one;
  const row: Row = { name, kind, params: { ...params, dtype }, flops, bytes };
  const floorMs = limits && 1000 * Math.max(bytes / limits.bandwidth, flops / limits.tensorFlops);
  if (floorMs !== undefined) row.floorUs = 1000 * floorMs;
  const copies = smoke ? 2 : Math.min(MAX_COPIES, Math.max(2, Math.ceil(ROTATION_BYTES / bytes)));
  const calls = smoke ? 2 : Math.max(copies, Math.min(512, Math.ceil(REPLAY_MS / (floorMs ?? REPLAY_MS))));
  const data = new Data(device, dtype);
  try {
    const runs = Array.from({ length: copies }, () => one.make(data));
    const graph = record(() => {
      for (let i = 0; i < calls; i++) scope(() => runs[i % copies]!());
    });
    const flag = data.ints([0]);
    const sample = (): number => {
      const begin = performance.now();
      graph.replay();
      flag.toArray();
      return performance.now() - begin;
    };
    for (let i = 0; i < (smoke ? 1 : 3); i++) sample();
    const { median, min, max } = summarise(Array.from({ length: smoke ? 2 : SAMPLES }, sample));
    graph.dispose();
    Object.assign(row, {
      us: (1000 * median) / calls,
      minUs: (1000 * min) / calls,
      maxUs: (1000 * max) / calls,
      calls,
    });
  } catch (error) {
    row.error = error instanceof Error ? error.message : String(error);
  } finally {
    data.dispose();
  }
  return row;
}

function main(): void {
  const { values } = parseArgs({
    options: {
      device: { type: 'string', default: 'cuda' },
      out: { type: 'string' },
      filter: { type: 'string', default: '' },
      dtype: { type: 'string' },
      smoke: { type: 'boolean', default: false },
    },
  });
  const found = devices().find(({ name }) => name === values.device || name === `${values.device}:0`);
  if (found === undefined) throw new Error(`there is no device '${values.device}'`);
  const dtype = (values.dtype ?? (found.activationDtypes.includes('f16') ? 'f16' : 'f32')) as Dtype;
  const limits = limitsOf(found.device);
  const rows: Row[] = [];
  const report = { device: found, dtype, limits, rows };
  const cases = gpuCases(values.smoke ? SMOKE_SIZES : MODEL_SIZES, dtype === 'f32' ? 4 : 2);
  for (const one of cases.filter(({ name }) => name.includes(values.filter))) {
    const row = measureCase(one, found.name, dtype, limits, values.smoke);
    rows.push(row);
    console.log(`${row.name}: ${row.error ?? `${row.us!.toFixed(1)} µs (floor ${row.floorUs?.toFixed(1) ?? '?'})`}`);
    if (values.out !== undefined) writeFileSync(values.out, JSON.stringify(report, null, 1));
  }
  if (rows.length === 0 || rows.some(({ error }) => error !== undefined)) process.exitCode = 1;
}

main();
