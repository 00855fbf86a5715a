// What the harness and a contestant say to each other: lines of JSON, requests on the contestant's stdin, answers on its file
// descriptor 3, because native libraries write what they like to stdout. One request at a time.

/** Who can take part. `sharp` is a dependency of ours, measured alone. */
export type Peer = 'node-llama-cpp' | 'onnxruntime-node' | 'torch' | 'Pillow' | 'sharp';
export type Contestant = 'ours' | Peer;

/** Kinds of weights: names of ours, and of llama.cpp's files. */
export type Weights = 'f32' | 'bf16' | 'int8' | 'int4' | 'w8a8' | 'w4a8' | 'BF16' | 'Q8_0' | 'Q4_0';

/** Work that a contestant can be asked to do; `model` is a file or folder. */
export type Job = { threads: number } & (
  | { kind: 'decode'; model: string; weights: Weights; prompt: number; tokens: number }
  | { kind: 'prefill'; model: string; weights: Weights; tokens: number }
  | { kind: 'linear'; weights: Weights; m: number; n: number; k: number; copies: number }
  | { kind: 'vision'; model: string; weights: Weights; batch: number }
  | { kind: 'qformer'; model: string; weights: Weights }
  | { kind: 'image'; file: string; size: number }
);

export type Request =
  /** Load and warm up. */
  | { prepare: Job }
  /** Run at least once, and again until `turn` milliseconds have passed. */
  | { turn: number }
  | { release: true };

export interface Answer {
  /** To `prepare`: what is worth a line in the report. */
  note?: string;
  /** To `prepare` of a language model of ours: what it holds. */
  bytes?: { weights: number; kvCache: number };
  /** To `turn`: milliseconds of each run. */
  ms?: number[];
  error?: string;
}

/** A job made ready; `run` does it once and returns the milliseconds that count. */
export interface Prepared {
  note?: string;
  bytes?: Answer['bytes'];
  run: () => number | Promise<number>;
  release: () => void | Promise<void>;
}
